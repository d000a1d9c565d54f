// Numbers that lie in files as plain bytes, on their way to where they are kept: read, looked at and packed in one call.
#pragma once

#include "pack.h"
#include "scan.h"

enum moesaic_pour_error {
    MOESAIC_POUR_SHORT = -1,  // the file ended before; other errors are those of errno
};

// Rows that lie one behind the other in a file.
typedef struct {
    moesaic_pack_args pack;  // where they go; `source`, `stride` and `alone` are not looked at
    moesaic_scan_args scan;  // `count` and `dtype` of what is read; what the scan writes; `data` is not looked at
    void* out;               // [count]: they go there as they are, and `pack` is not looked at; null otherwise
    int64_t offset;          // of the first in the file
    int32_t file;            // its descriptor
    int32_t error;           // written: 0, or why it was not read
} moesaic_pour_piece;

typedef struct {
    moesaic_pour_piece* pieces;
    int64_t count;
} moesaic_pour_args;

// By all threads, a piece each: small pieces are packed from the core's own cache.
MOESAIC_API void moesaic_pour(const moesaic_pour_args*);
