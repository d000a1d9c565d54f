// Products with packed weights: linear layers, and a whole layer of experts.
#pragma once

#include "types.h"

enum moesaic_activation {
    MOESAIC_NO_ACTIVATION = 0,
    MOESAIC_SILU = 1,
    MOESAIC_GELU = 2,       // with erf
    MOESAIC_GELU_TANH = 3,
    MOESAIC_RELU = 4,
    MOESAIC_RELU2 = 5,      // relu(x)^2
    MOESAIC_SWIGLUOAI = 6,  // gated: g sigmoid(alpha g) (u + 1) with g <= limit and -limit <= u <= limit
    MOESAIC_SILU_CLAMPED = 7,  // gated: min(silu(g), limit) u with -limit <= u <= limit
};

// What becomes of a product. Of a gated matrix: activation(gate) * up.
typedef struct {
    int32_t kind;  // moesaic_activation
    float alpha;   // of swigluoai
    float limit;   // of swigluoai and silu_clamped
} moesaic_activate;

// out = activation(scale * x W^T + bias).
typedef struct {
    moesaic_count rows;
    const float* x;         // [rows, matrix.cols]
    float* out;             // [rows, matrix.rows], or [rows, matrix.rows / 2] of a gated matrix
    moesaic_matrix matrix;
    const float* bias;      // [matrix.rows] or null; of a gated matrix gate's first
    float scale;
    moesaic_activate activation;
} moesaic_linear_args;

MOESAIC_API void moesaic_linear(const moesaic_linear_args* args);

// One expert's weights, where they lie now.
typedef struct {
    moesaic_matrix gate_up;     // gated [2I, H], or ungated [I, H]
    moesaic_matrix down;        // [H, I]
    const float* gate_up_bias;  // [gate_up.rows] or null
    const float* down_bias;     // [H] or null
} moesaic_expert;

// out[t] = sum over j in order of weights[t, j] * expert[ids[t, j]](hidden[t]). A choice is left out where its id is
// not one of [0, num_experts) or its expert has no slot.
typedef struct {
    moesaic_count rows;
    const float* hidden;   // [rows, hidden_size]
    const int32_t* ids;    // [rows, top_k]
    const float* weights;  // [rows, top_k]
    float* out;            // [rows, hidden_size]
    const moesaic_expert* slots;
    const int32_t* slot_of;  // [num_experts], negative where an expert has none
    int64_t hidden_size;
    int32_t num_experts;
    int32_t top_k;
    int32_t weight_on_input;  // 1: weights scale the experts' inputs, and outputs are only summed
    int32_t block_size;       // most rows of an expert that one unit of work takes; 0: chosen here
    moesaic_activate activation;
    int64_t* tally;           // [2] or null: adds the rows routed to experts, and the rows that their blocks have room for
} moesaic_fused_moe_args;

MOESAIC_API void moesaic_fused_moe(const moesaic_fused_moe_args* args);

// Reads a buffer once with all threads: the bandwidth that benchmarks compare with.
typedef struct {
    const void* data;
    int64_t bytes;
} moesaic_stream_read_args;

MOESAIC_API void moesaic_stream_read(const moesaic_stream_read_args* args);
