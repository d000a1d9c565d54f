// Products with one matrix of each token's chosen experts, for what stands between the two in a layer of its own: the
// experts of attention, which own the projections of queries and outputs.
#pragma once

#include "matmul.h"

// Choices lie in groups: number c of choice j of token t is element [t, c / group, j, c % group], so that the choices'
// heads which share a key are neighbours. A choice is left out where its id is not one of [0, num_experts) or its
// expert has no slot.
//
// spread: out[t, :, j, :] = expert[ids[t, j]].gate_up * x[t]; zeros for a choice that is left out.
typedef struct {
    moesaic_count rows;
    const float* x;      // [rows, K]
    const int32_t* ids;  // [rows, top_k]
    float* out;          // [rows, N / group, top_k, group]
    const moesaic_expert* slots;
    const int32_t* slot_of;  // [num_experts], negative where an expert has none
    int64_t inputs;          // K
    int64_t outputs;         // N
    int64_t group;
    int32_t num_experts;
    int32_t top_k;
} moesaic_spread_linear_args;

MOESAIC_API void moesaic_spread_linear(const moesaic_spread_linear_args* args);

// gather: out[t] = sum over j in order of weights[t, j] * expert[ids[t, j]].down * x[t, :, j, :].
typedef struct {
    moesaic_count rows;
    const float* x;        // [rows, K / group, top_k, group]
    const int32_t* ids;    // [rows, top_k]
    const float* weights;  // [rows, top_k]
    float* out;            // [rows, N]
    const moesaic_expert* slots;
    const int32_t* slot_of;
    int64_t inputs;   // K
    int64_t outputs;  // N
    int64_t group;
    int32_t num_experts;
    int32_t top_k;
} moesaic_gather_linear_args;

MOESAIC_API void moesaic_gather_linear(const moesaic_gather_linear_args* args);
