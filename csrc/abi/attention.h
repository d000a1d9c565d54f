// Paged attention: the KV cache, the table of rotary positions, what is written and how it is read.
#pragma once

#include "types.h"

enum moesaic_kv_kind {
    MOESAIC_KV_F32 = 0,
    MOESAIC_KV_F16 = 1,
    MOESAIC_KV_BF16 = 2,
    MOESAIC_KV_INT8 = 3,  // codes with one fp32 scale for each token, KV head, and key or value
};

enum moesaic_latent {
    MOESAIC_NOT_LATENT = 0,
    MOESAIC_LATENT = 1,           // a value is the first value_dim numbers of its key, and not kept apart
    MOESAIC_LATENT_BY_TOKEN = 2,  // and tokens lie one after the other, to be read at chosen positions
};

// One layer's cache: blocks of `block_size` tokens, any number from 1 up. csrc/kernels/kv_layout.h says where a token lies.
typedef struct {
    void* data;  // aligned to 64 bytes
    int32_t kind;
    int32_t block_size;
    int32_t heads;  // KV heads
    int32_t key_dim;
    int32_t value_dim;
    int32_t latent;  // moesaic_latent
} moesaic_kv_cache;

// Bytes of one block of such a cache.
MOESAIC_API int64_t moesaic_kv_block_bytes(const moesaic_kv_cache* cache);

// Cosines, then sines, of position * inverse: table[T, 2 * half].
typedef struct {
    moesaic_count rows;  // T
    const int64_t* positions;
    const float* inverse;  // [half]
    float* table;
    int64_t half;
    float factor;  // on cosines and sines
} moesaic_rope_table_args;

MOESAIC_API void moesaic_rope_table(const moesaic_rope_table_args* args);

// out[T] = 1 + scale * log(1 + floor((position + offset) / period)), or (1 + (position + offset) / period) ^ scale
typedef struct {
    moesaic_count rows;  // T
    const int64_t* positions;
    float* out;
    int64_t period;
    int64_t offset;
    float scale;
    int32_t power;  // 1: the second
} moesaic_query_temperature_args;

MOESAIC_API void moesaic_query_temperature(const moesaic_query_temperature_args* args);

// What happens to queries, keys and values between their projection and attention, in this order: norm, clip, rotation
// (or clip, rotation, norm); then the keys and values are written to `slots`. Queries, or keys, or keys and
// values may be absent (NULL).
typedef struct {
    moesaic_count rows;  // T
    const float* query;  // [T, heads, key_dim], rows query_stride apart
    const float* key;    // [T, cache.heads, key_dim]
    const float* value;  // [T, cache.heads, value_dim]; NULL in a latent cache
    int64_t query_stride;
    int64_t key_stride;
    int64_t value_stride;
    float* out;  // queries, [T, heads, key_dim] contiguous
    const int64_t* slots;
    const float* query_norm;  // weights of RMS norms over so many heads together, 1 or all; NULL for none
    const float* key_norm;
    const float* table;  // [T, rotary], as moesaic_rope_table makes it; NULL for none
    moesaic_kv_cache cache;
    int32_t heads;
    int32_t query_norm_heads;
    int32_t key_norm_heads;
    int32_t rotary;        // numbers of a head that rotate
    int32_t rotary_start;  // the first of them
    int32_t interleaved;   // 1: pairs are neighbours; 0: pairs are halves apart
    float eps;
    float clip;  // to [-clip, clip]; infinity for none
    int32_t norm_last;  // 1: norms come after the rotation
} moesaic_prepare_qkv_args;

MOESAIC_API void moesaic_prepare_qkv(const moesaic_prepare_qkv_args* args);

// Causal attention of each query to its sequence's tokens in the cache, its own included.
typedef struct {
    moesaic_count rows;       // T
    moesaic_count sequences;  // S
    const float* query;       // [T, heads, key_dim]
    float* out;               // [T, heads, value_dim]
    const int64_t* query_start;   // [S + 1], rows of each sequence
    const int64_t* seq_lens;      // [S], tokens in the cache, these rows included
    const int64_t* block_tables;  // rows of block ids, table_stride apart
    const int64_t* table_rows;    // [S], the row of each sequence; NULL: row s
    const float* sinks;           // [heads], logits that only take weight; NULL for none
    int64_t table_stride;
    moesaic_kv_cache cache;
    int64_t window;  // tokens that a token sees, itself included; 0 for all
    int32_t heads;
    float scale;    // of the scores
    float softcap;  // scores become cap * tanh(score / cap); 0 for none
    int32_t chunked;  // 1: a token sees its own chunk of positions, cut at multiples of the window
    // Where it is not NULL, each row is a sequence by itself, of one query: number i of its seq_lens[row] tokens is the one
    // at position selected[row * selected_stride + i]. There are no query_start and no window then.
    const int32_t* selected;
    int64_t selected_stride;
} moesaic_paged_attention_args;

MOESAIC_API void moesaic_paged_attention(const moesaic_paged_attention_args* args);

// The same to the top_k keys with the highest scores alone, of each query and head; among equal ones the earliest. Not
// for latent caches.
typedef struct {
    moesaic_paged_attention_args attention;
    int64_t top_k;
} moesaic_sparse_attention_args;

MOESAIC_API void moesaic_sparse_attention(const moesaic_sparse_attention_args* args);
