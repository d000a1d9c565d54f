// Packing and unpacking of matrices.
#pragma once

#include "types.h"

enum moesaic_part {
    MOESAIC_WHOLE = 0,  // rows of a plain matrix
    MOESAIC_GATE = 1,   // the first or
    MOESAIC_UP = 2,     // the second half of a gated one
};

// Writes `num_rows` rows, from `first_row` of the part on, into a packed matrix, quantising where its format says so.
// With the last row of a part, what pads it is written too: zeros. Other rows keep their values.
typedef struct {
    moesaic_matrix matrix;  // its data is written
    const void* source;     // [num_rows, cols], row-major
    int64_t stride;         // elements from one row of the source to the next
    int32_t dtype;          // of the source: MOESAIC_F32, _F16 or _BF16
    int32_t part;           // moesaic_part
    int64_t first_row;
    int64_t num_rows;
    int32_t alone;  // 1: on the calling thread; other threads may pack other rows of the matrix meanwhile
} moesaic_pack_args;

// Writes such rows of a w8, w4, w8a8 or mxfp4 matrix from codes that are there already.
typedef struct {
    moesaic_matrix matrix;  // its data is written
    const void* codes;      // [num_rows, cols] bytes: int8 of w8 and w8a8, 0..15 of w4 and mxfp4 (E2M1, sign in bit 3)
    const float* scales;    // [num_rows, groups]; rounded to bf16
    const float* offsets;   // [num_rows, groups]; rounded to bf16; null where the format has none
    int64_t stride;         // bytes from one row of codes to the next
    int32_t part;           // moesaic_part
    int32_t alone;          // as of moesaic_pack_args
    int64_t first_row;
    int64_t num_rows;
} moesaic_pack_codes_args;

// Rows of a packed matrix as fp32: out [num_rows, cols], row r of which is `first_row` + r.
typedef struct {
    moesaic_matrix matrix;
    float* out;
    int64_t first_row;
    int64_t num_rows;
} moesaic_unpack_args;

// How many bytes a matrix takes in this library (its `data` is not looked at).
typedef struct {
    moesaic_matrix matrix;
    int64_t bytes;  // written
} moesaic_matrix_bytes_args;

// Where bytes lie, and which codes weights become: packed bytes are of use only where both are the same.
typedef struct {
    int32_t layout;     // written
    int32_t quantiser;  // written
} moesaic_pack_version_args;

MOESAIC_API void moesaic_pack(const moesaic_pack_args*);
MOESAIC_API void moesaic_pack_codes(const moesaic_pack_codes_args*);
MOESAIC_API void moesaic_unpack(const moesaic_unpack_args*);
MOESAIC_API void moesaic_matrix_bytes(moesaic_matrix_bytes_args*);
MOESAIC_API void moesaic_pack_version(moesaic_pack_version_args*);
