// Calls that were recorded once and are made again, many in one.
#pragma once

#include "types.h"

// One operation and its arguments, whatever their struct is.
typedef struct {
    void (*function)(const void*);
    const void* arguments;
} moesaic_call;

// Makes calls [first, last) of a program, in order.
typedef struct {
    const moesaic_call* calls;
    int64_t first;
    int64_t last;
} moesaic_replay_args;

MOESAIC_API void moesaic_replay(const moesaic_replay_args* args);
