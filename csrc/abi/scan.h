// What can be said of stored numbers on the way: whether they are finite, how large, and whether two lots are the same.
#pragma once

#include "types.h"

typedef struct {
    const void* data;   // [count], aligned to its elements
    int64_t count;
    int32_t dtype;      // MOESAIC_F32, _F16, _BF16; MOESAIC_W8: bytes, of which only hash and blank are written
    int32_t blank;      // written: 1 when every bit is 0
    int64_t nonfinite;  // written: how many are NaN or infinite
    int64_t first;      // written: where the first of them is, -1 where there is none
    double squares;     // written: sum of the squares of the others
    uint64_t hash;      // written: of the bytes; not a cryptographic one
} moesaic_scan_args;

// On the calling thread. Sums of squares may differ in their last bits from one instruction set to another.
MOESAIC_API void moesaic_scan(moesaic_scan_args* args);
