// What every operation of the C ABI speaks of: counts, weight formats, matrices.
#pragma once

#include <stdint.h>

#if defined(__GNUC__)
#define MOESAIC_API extern "C" __attribute__((visibility("default")))
#else
#define MOESAIC_API extern "C"
#endif

// A number that is read when the call runs: a recorded call follows the step's number of tokens through it.
typedef const int64_t* moesaic_count;

enum moesaic_kind {
    MOESAIC_F32 = 0,
    MOESAIC_F16 = 1,
    MOESAIC_BF16 = 2,
    MOESAIC_W8 = 3,    // 8-bit codes, 16-bit activations
    MOESAIC_W4 = 4,    // 4-bit codes, 16-bit activations
    MOESAIC_W8A8 = 5,  // 8-bit codes, 8-bit activations
    MOESAIC_MXFP4 = 6,  // 4-bit floats (E2M1) in groups of 32, whose scales are powers of two; 16-bit activations
};

// How the elements of a packed matrix are kept. See formats.h for the bytes.
typedef struct {
    int32_t kind;     // moesaic_kind
    int32_t group;    // quantised kinds: consecutive inputs that share a scale (32, 64, 128), 0 for a whole row
    int32_t offsets;  // quantised kinds: 1 when each group has an offset beside its scale
    int32_t gated;    // 1: rows are gate's, then up's, and a panel holds 16 of each, so that the activation fuses
} moesaic_format;

// A packed weight [rows, cols] = [outputs, inputs]; `data` is aligned to 64 bytes.
typedef struct {
    const void* data;
    int64_t rows;
    int64_t cols;
    moesaic_format format;
} moesaic_matrix;
