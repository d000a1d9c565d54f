// Element by element: weighted sums of two activations, gates, and caps. All are fp32 rows, contiguous.
#pragma once

#include "types.h"

// out = a * x + b * s * y with s = sigmoid(gate) of the row, or 1.
typedef struct {
    moesaic_count rows;
    const float* x;     // [rows, size]
    const float* y;     // [rows, size]; NULL for none
    const float* gate;  // [rows]; NULL for none
    float* out;         // [rows, size]; may be x or y
    int64_t size;
    float a;
    float b;
} moesaic_mix_args;

MOESAIC_API void moesaic_mix(const moesaic_mix_args* args);

enum moesaic_gate_kind {
    MOESAIC_GATE_SIGMOID = 0,
    MOESAIC_GATE_SOFTPLUS = 1,
    MOESAIC_GATE_IDENTITY = 2,
};

// out = x * f(gate), a gate for each element or for each `group` of them.
typedef struct {
    moesaic_count rows;
    const float* x;     // [rows, size]
    const float* gate;  // [rows, size / group], rows gate_stride apart
    float* out;         // [rows, size]; may be x
    int64_t size;
    int64_t group;
    int64_t gate_stride;
    int32_t kind;
} moesaic_apply_gate_args;

MOESAIC_API void moesaic_apply_gate(const moesaic_apply_gate_args* args);

// out = cap * tanh(x / cap)
typedef struct {
    moesaic_count rows;
    const float* x;  // [rows, size]
    float* out;      // [rows, size]; may be x
    int64_t size;
    float cap;
} moesaic_softcap_args;

MOESAIC_API void moesaic_softcap(const moesaic_softcap_args* args);

// out = x + bias
typedef struct {
    moesaic_count rows;
    const float* x;     // [rows, size]
    const float* bias;  // [size]
    float* out;         // [rows, size]; may be x
    int64_t size;
} moesaic_add_bias_args;

MOESAIC_API void moesaic_add_bias(const moesaic_add_bias_args* args);

// out = x + (sum of a row's weights whose ids are at least `first`) * y: what experts give that give what they are given.
typedef struct {
    moesaic_count rows;
    const float* x;        // [rows, size]
    const float* y;        // [rows, size]
    const int32_t* ids;    // [rows, top_k]
    const float* weights;  // [rows, top_k]
    float* out;            // [rows, size]
    int64_t size;
    int32_t top_k;
    int32_t first;
} moesaic_add_identity_args;

MOESAIC_API void moesaic_add_identity(const moesaic_add_identity_args* args);
