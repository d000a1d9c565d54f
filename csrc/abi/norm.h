// Normalisation of rows, the table of embeddings, and gathering rows.
#pragma once

#include "types.h"

// A row's norm, of x or of x + alpha * delta, which then replaces x. All are fp32; `out` may be `x` where delta is null.
typedef struct {
    moesaic_count rows;
    float* x;            // [rows, size]; written only where delta is given
    const float* delta;  // [rows, size] or null
    const float* weight; // [size]
    const float* bias;   // [size] or null; layer_norm alone adds it
    float* out;          // [rows, size]
    int64_t size;
    float alpha;
    float eps;
} moesaic_norm_args;

// x / sqrt(mean(x^2) + eps) * weight
MOESAIC_API void moesaic_rms_norm(const moesaic_norm_args* args);

// (x - mean) / sqrt(variance + eps) * weight + bias
MOESAIC_API void moesaic_layer_norm(const moesaic_norm_args* args);

// out[i] = table[ids[i]] * scale. An id outside the table gives a row of NaN.
typedef struct {
    moesaic_count rows;
    const int64_t* ids;    // [rows]
    moesaic_matrix table;  // [vocabulary, size]; f32, f16 or bf16
    int32_t packed;        // 1: panels as formats.h says; 0: row after row
    float scale;
    float* out;  // [rows, size]
} moesaic_embed_args;

MOESAIC_API void moesaic_embed(const moesaic_embed_args* args);

// out[i] = x[indices[i]]. An index outside x gives a row of NaN.
typedef struct {
    moesaic_count rows;
    const int64_t* indices;  // [rows]
    moesaic_count x_rows;
    const float* x;  // [x_rows, size]
    int64_t size;
    float* out;  // [rows, size]
} moesaic_gather_rows_args;

MOESAIC_API void moesaic_gather_rows(const moesaic_gather_rows_args* args);
