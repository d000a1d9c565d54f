// Layers that keep a state of fixed size for each sequence instead of every token's keys and values. All is fp32, and
// computed token by token in one order, so that neither chunks nor neighbours in the batch change a bit.
#pragma once

#include "types.h"

// The step's tokens by sequence, and where each sequence's state lies. A sequence whose first position is 0 begins with
// zeros, whatever its slot holds; any other continues from its slot. Slots are written at the end of a sequence's
// tokens, others are not touched.
typedef struct {
    const int64_t* query_start;  // [S + 1], rows of each sequence
    const int64_t* positions;    // [T]
    const int64_t* slots;        // [S], all different
} moesaic_stateful;

// out[t, c] = act(bias[c] + sum over k of weight[k, c] * x[t - width + 1 + k, c]), each channel by itself.
typedef struct {
    moesaic_count rows;       // T
    moesaic_count sequences;  // S
    const float* x;           // [T, channels], rows x_stride apart
    const float* weight;      // [width, channels]
    const float* bias;        // [channels]; NULL for none
    float* state;             // [slots, width - 1, channels], the last inputs, oldest first
    float* out;               // [T, channels]
    moesaic_stateful batch;
    int64_t x_stride;
    int64_t channels;
    int32_t width;
    int32_t silu;  // 1: act is silu; 0: there is none
} moesaic_causal_conv_args;

MOESAIC_API void moesaic_causal_conv(const moesaic_causal_conv_args* args);
