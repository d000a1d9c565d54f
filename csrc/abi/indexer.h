// The sparse indexer: which positions a token's attention sees.
#pragma once

#include "attention.h"

// positions[t] = the top_k positions that token t scores highest, in rising order; all that it sees where these are no
// more. The score of position s is the sum over heads h of weights[t, h] * max(query[t, h] . key[s], 0); among equal
// scores the lower position is taken, and NaN is no score.
typedef struct {
    moesaic_count rows;       // T
    moesaic_count sequences;  // S
    const float* query;       // [T, heads, key_dim]
    const float* weights;     // [T, heads]
    int32_t* positions;       // [T, top_k]
    int64_t* counts;          // [T], how many of these there are
    int64_t* tables;          // [T], the row of block_tables of each token's sequence
    const int64_t* query_start;   // [S + 1], rows of each sequence
    const int64_t* seq_lens;      // [S], tokens in the cache, these rows included
    const int64_t* block_tables;  // rows of block ids, table_stride apart
    const int64_t* table_rows;    // [S], the row of each sequence; NULL: row s
    int64_t table_stride;
    moesaic_kv_cache cache;  // of one head; its values are not looked at
    int32_t heads;
    int32_t top_k;
} moesaic_select_positions_args;

MOESAIC_API void moesaic_select_positions(const moesaic_select_positions_args* args);
