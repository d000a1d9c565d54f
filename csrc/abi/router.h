// Which experts each token goes to, and with what weights.
#pragma once

#include "types.h"

enum moesaic_scoring {
    MOESAIC_SOFTMAX = 0,
    MOESAIC_SIGMOID = 1,
    MOESAIC_SQRT_SOFTPLUS = 2,
    MOESAIC_IDENTITY = 3,
    MOESAIC_SPARSEMIXER = 4,
};

// How some rows choose otherwise than the model.
typedef struct {
    int64_t top_k;            // experts of a row: as many choices, and -1 behind them up to the call's top_k
    float temperature;        // divides the logits
    const float* bias;        // [num_experts] or null: added to the divided logits
    const uint8_t* banned;    // [num_experts] or null: 1 for experts that may not be chosen, whose logits are -inf
} moesaic_route_rule;

// Which rows do. It stays where it is for all calls of a layer, so that a recorded call finds each step's.
typedef struct {
    const int32_t* const* rule_of;    // points to [rows], indices of `rules`; or to null, where no row does
    const moesaic_route_rule* rules;  // of the first counts top_k alone: the model's own way
} moesaic_route_table;

// See `moesaic.kernels.reference_router.route` for what each option means.
typedef struct {
    moesaic_count rows;
    const float* logits;        // [rows, num_experts]
    const float* bias;          // [num_experts] or null: added for the choice alone
    const float* expert_scale;  // [num_experts] or null
    const float* choice;        // [rows, num_experts] or null: chosen by these, whatever logits and bias say
    int32_t* ids;               // [rows, top_k] out
    float* weights;             // [rows, top_k] out
    int64_t* counts;            // [num_experts] or null: adds the tokens that each expert was chosen for
    const moesaic_route_table* table;  // or null: all rows choose as the model does
    int64_t num_experts;
    int64_t top_k;
    int64_t num_groups;
    int64_t top_groups;
    int32_t scoring;            // moesaic_scoring
    int32_t select_first;       // 1: choose on the logits, then score the chosen
    int32_t group_by_max;       // 1: a group scores its best expert; 0: the sum of its two best
    int32_t renormalize;
    float masked_score;         // what experts outside the chosen groups count as
    float cap;                  // logits become cap * tanh(logits / cap); 0 for none
    float epsilon;              // added to the sum that weights are divided by
    float floor;                // the least that it may be
    float scale;
    float jitter;               // of sparsemixer
} moesaic_route_args;

MOESAIC_API void moesaic_route(const moesaic_route_args* args);

// The scores of all experts, as `moesaic_route` makes them; an expert whose logit is -inf scores 0.
typedef struct {
    moesaic_count rows;
    const float* logits;  // [rows, num_experts]
    float* scores;        // [rows, num_experts] out
    int64_t num_experts;
    int32_t scoring;      // softmax (of sparsemixer too), sigmoid or sqrt_softplus
    float cap;
} moesaic_route_scores_args;

MOESAIC_API void moesaic_route_scores(const moesaic_route_scores_args* args);

// The way back: logits that give these scores. Where a score is what the logit gives, the logit (capped) stays; of a
// softmax, the others get the logarithm of their score plus that of the row's sum of exponentials, as it was.
typedef struct {
    moesaic_count rows;
    const float* logits;  // [rows, num_experts]
    const float* scores;  // [rows, num_experts]
    float* out;           // [rows, num_experts]
    int64_t num_experts;
    int32_t scoring;
    float cap;
} moesaic_route_logits_args;

MOESAIC_API void moesaic_route_logits(const moesaic_route_logits_args* args);

// What somebody has made of scores. Rows whose scores were not finite before are nobody's fault, and left out.
enum moesaic_score_fault {
    MOESAIC_SCORE_NOT_FINITE = 1,
    MOESAIC_SCORE_NEGATIVE = 2,
    MOESAIC_SCORE_NONE = 4,  // a row has none above 0
    MOESAIC_SCORE_ZERO = 8,  // no fault: a changed row has experts that are not to be chosen
};

typedef struct {
    moesaic_count rows;
    const float* before;  // [rows, num_experts]
    const float* after;   // [rows, num_experts]
    uint8_t* changed;     // [rows] out: 1 for rows with any other score
    int64_t* found;       // [2], added to: how many they are; which of `moesaic_score_fault` they have
    int64_t num_experts;
} moesaic_route_changes_args;

MOESAIC_API void moesaic_route_changes(const moesaic_route_changes_args* args);

// Puts other choices in place of those of some rows, and counts right.
typedef struct {
    moesaic_count rows;
    int32_t* ids;              // [rows, width], changed in place
    float* weights;            // [rows, width], likewise
    const int32_t* new_ids;    // [rows, new_width]
    const float* new_weights;  // [rows, new_width]
    const float* scores;       // [rows, num_experts]: what scores 0 is left out
    const uint8_t* changed;    // [rows]: 1 for the rows concerned
    int64_t* counts;           // [num_experts] or null
    int64_t num_experts;
    int64_t width;
    int64_t new_width;         // at most `width`; -1 and 0 follow
} moesaic_route_replace_args;

MOESAIC_API void moesaic_route_replace(const moesaic_route_replace_args* args);

// What the calling thread has spent in `moesaic_route`, without `choice`, since it began.
typedef struct {
    int64_t* nanoseconds;  // out
} moesaic_route_time_args;

MOESAIC_API void moesaic_route_time(const moesaic_route_time_args* args);
