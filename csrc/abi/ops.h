// The public raw operations (moesaic/ops.py): their bindings have checked every size and id.
#pragma once

#include "types.h"

// Choices sorted by expert, each expert's padded to whole blocks. Lengths are those of the arrays.
typedef struct {
    moesaic_count rows;          // choices
    const int32_t* ids;          // [rows], each of [0, num_experts)
    int64_t num_experts;
    int64_t block_size;
    int32_t* sorted;             // [num_sorted] out: indices of choices; `rows` where there is none
    int64_t num_sorted;
    int32_t* block_experts;      // [num_blocks] out: the expert of each block; 0 beyond the last
    int64_t num_blocks;
    int32_t* num_padded;         // [1] out: places used, a multiple of block_size
} moesaic_align_blocks_args;

MOESAIC_API void moesaic_align_blocks(const moesaic_align_blocks_args* args);

// output[i] = input[i / top_k] * expert's weight^T for the choices i in the blocks; `output` is zero elsewhere.
typedef struct {
    moesaic_count rows;           // of input
    const float* input;           // [rows, k]
    const uint8_t* codes;         // [experts, n, k * bits / 8], the first input in the lowest bits
    const void* scales;           // [experts, n, k / group]
    const uint8_t* zeros;         // [experts, n * bits / 8, k / group], the first output in the lowest bits; or null
    const float* choice_weights;  // [rows * top_k] or null
    const int32_t* sorted;        // [num_blocks * block_size], choices; others than [0, rows * top_k) end a block
    const int32_t* block_experts; // [num_blocks]; -1 for none
    float* output;                // [rows * top_k, n] out
    int64_t num_blocks;
    int64_t block_size;
    int64_t top_k;
    int64_t n;
    int64_t k;
    int64_t group;                // inputs that share a scale
    int32_t bits;                 // 4 or 8
    int32_t scale_kind;           // moesaic_kind of the scales
} moesaic_wna16_gemm_args;

MOESAIC_API void moesaic_wna16_gemm(const moesaic_wna16_gemm_args* args);
