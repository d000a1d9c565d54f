// Latent attention (MLA): products of each head with its own matrix, and what is written of a token.
#pragma once

#include "attention.h"

// out[t, h, 0..N) = x[t, h] W_h^T. Strides are in floats.
typedef struct {
    moesaic_count rows;              // T
    const float* x;                  // [T, heads, matrix.cols]
    float* out;                      // [T, heads, matrix.rows]
    const moesaic_matrix* matrices;  // [heads], all of one shape and format
    int64_t heads;
    int64_t x_stride;       // from a token to the next
    int64_t x_head_stride;  // from a head to the next
    int64_t out_stride;
    int64_t out_head_stride;
} moesaic_head_linear_args;

MOESAIC_API void moesaic_head_linear(const moesaic_head_linear_args* args);

// What happens between projections and attention to the keys' and values' latent, which is normed, and to the part of
// the key that all heads share, which is rotated: both go to `slots`. The queries' last numbers are rotated to their
// place behind the absorbed ones.
typedef struct {
    moesaic_count rows;    // T
    float* query;          // [T, heads, key_dim]; of each head the last key_dim - value_dim numbers are written
    const float* rotary;   // [T, heads, key_dim - value_dim], what they become of
    const float* key;      // [T, key_dim]: latent, then the shared part
    const float* norm;     // [value_dim], weights of the latent's RMS norm
    const float* table;    // [T, key_dim - value_dim], as moesaic_rope_table makes it; NULL for none
    const int64_t* slots;  // [T]
    int64_t rotary_stride;       // from a token to the next, in floats
    int64_t rotary_head_stride;  // from a head to the next
    moesaic_kv_cache cache;      // latent
    int32_t heads;
    int32_t interleaved;  // 1: pairs are neighbours; 0: pairs are halves apart
    float eps;
} moesaic_prepare_latent_args;

MOESAIC_API void moesaic_prepare_latent(const moesaic_prepare_latent_args* args);
