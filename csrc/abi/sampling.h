// From logits to tokens, and log-probabilities.
#pragma once

#include "types.h"

// What one sequence asks for: written when it starts, read each step. `moesaic.kernels.reference_sampling` says what
// each parameter means.
typedef struct {
    double top_p;
    double min_p;
    double presence_penalty;
    double frequency_penalty;
    uint64_t seed;
    const int64_t* tokens;      // prompt and output so far
    const int64_t* stop_ids;    // [num_stops]: not to be drawn before min_tokens
    const int64_t* bias_ids;    // [num_biases]
    const float* bias_values;   // [num_biases]
    int64_t num_stops;
    int64_t num_biases;
    int64_t prompt_len;
    int64_t min_tokens;
    int64_t top_k;              // 0 for all
    float temperature;          // 0 for greedy
    float repetition_penalty;
} moesaic_sampling_params;

typedef struct {
    moesaic_count rows;
    float* logits;                          // [rows, vocab]; changed in place where parameters ask for it
    int64_t vocab;
    const moesaic_sampling_params* params;  // by slot
    const int64_t* slots;                   // [rows], each row's place in `params`
    const int64_t* lengths;                 // [rows], tokens of its sequence so far
    int64_t* tokens;                        // [rows] out; -1 for a row whose logits are not finite
} moesaic_sample_args;

MOESAIC_API void moesaic_sample(const moesaic_sample_args* args);

typedef struct {
    moesaic_count rows;
    const float* logits;    // [rows, vocab]
    int64_t vocab;
    const int64_t* tokens;  // [rows]
    const int64_t* counts;  // [rows] how many best tokens are wanted, at most `most`
    int64_t most;
    float* own;             // [rows] out: log-probability of the row's token
    int64_t* ranks;         // [rows] out: 1 + the number of tokens above it
    int64_t* found;         // [rows] out: best tokens found, fewer than wanted where logits are NaN
    int64_t* ids;           // [rows, most] out, best first, equals by id
    float* logprobs;        // [rows, most] out
} moesaic_logprobs_args;

MOESAIC_API void moesaic_logprobs(const moesaic_logprobs_args* args);
