// Routing: scores, groups, the best k with ties to the lowest id, weights and counts, a token at a time.
//
// A scoring function rises with its logit, so without a bias or groups the choice is made on the logits and only the
// chosen are scored. NaN counts as the best there is for the choice, -inf as the lowest finite number: ids are always
// valid and name no expert twice, and a weight that is NaN goes its way to the logits, where sampling reports it.
//
// Rows may have a rule of their own, which changes their logits, bans experts (a choice of -inf, as those that are
// taken) and says how many are chosen.
#include "../abi/router.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>

#include "../common/compare.h"
#include "../common/formats.h"
#include "../common/team.h"

namespace moesaic {
namespace {

constexpr int64_t CHUNK = 16;
constexpr int64_t WORK = 8192;  // logits that are worth a thread
constexpr float INF = std::numeric_limits<float>::infinity();
constexpr float LOWEST = std::numeric_limits<float>::lowest();
constexpr int SCRATCH = 10;  // slot of the workspace

// A token's buffers, each padded to whole chunks; `maxima` holds the largest choice of each chunk.
struct Scratch {
    int64_t padded;
    float* logits;
    float* choice;
    float* groups;
    float* maxima;

    explicit Scratch(int64_t num_experts) : padded(round_up(num_experts, CHUNK)) {
        const int64_t chunks = round_up(padded / CHUNK, CHUNK);
        logits = static_cast<float*>(workspace(SCRATCH, size_t(3 * padded + chunks) * sizeof(float)));
        choice = logits + padded;
        groups = choice + padded;
        maxima = groups + padded;
    }
};

float largest(const float* x, int64_t n) {
    Vec best = load(x);
    for (int64_t i = W; i < n; i += W) best = max(best, load(x + i));
    return reduce_max(best);
}

int64_t first_equal(const float* x, int64_t n, float value) {
    for (int64_t i = 0; i < n; i += W) {
        const uint32_t mask = equal(load(x + i), set1(value));
        if (mask != 0) return i + __builtin_ctz(mask);
    }
    return 0;  // not reached: the value is one of them
}

MOESAIC_INLINE Vec sqrt_softplus(Vec x) { return sqrt(softplus(x)); }

MOESAIC_INLINE Vec score(int32_t scoring, Vec x) {
    if (scoring == MOESAIC_SIGMOID) return sigmoid(x);
    return scoring == MOESAIC_SQRT_SOFTPLUS ? sqrt_softplus(x) : x;
}

// The maximum and the sum of e^(x - maximum) of n values, a multiple of W.
struct Softmax {
    float top;
    float sum;

    Softmax(const float* x, int64_t n) : top(largest(x, n)) {
        Vec total = zero();
        for (int64_t i = 0; i < n; i += W) total = add(total, exp(sub(load(x + i), set1(top))));
        sum = reduce_add(total);
    }
    Vec operator()(Vec x) const { return div(exp(sub(x, set1(top))), set1(sum)); }
};

// What the choice is made on: NaN is the best, -inf is finite so that -inf can mean taken.
MOESAIC_INLINE Vec comparable(Vec x) { return max(min(x, set1(INF)), set1(LOWEST)); }

float comparable(float x) { return std::isnan(x) ? INF : (x < LOWEST ? LOWEST : x); }

void ban(const moesaic_route_args& a, const moesaic_route_rule* rule, float* x) {
    if (rule == nullptr || rule->banned == nullptr) return;
    for (int64_t e = 0; e < a.num_experts; ++e)
        if (rule->banned[e]) x[e] = -INF;
}

void read_logits(const moesaic_route_args& a, const float* logits, const moesaic_route_rule* rule, const Scratch& s) {
    std::memcpy(s.logits, logits, size_t(a.num_experts) * sizeof(float));
    if (rule != nullptr)
        for (int64_t e = 0; e < a.num_experts; ++e)
            s.logits[e] = s.logits[e] / rule->temperature + (rule->bias != nullptr ? rule->bias[e] : 0.0f);
    if (a.cap != 0.0f) {
        const Vec cap = set1(a.cap), inverse = set1(1.0f / a.cap);
        for (int64_t e = 0; e < s.padded; e += W) store(s.logits + e, mul(tanh(mul(load(s.logits + e), inverse)), cap));
    }
    for (int64_t e = a.num_experts; e < s.padded; ++e) s.logits[e] = -INF;
    ban(a, rule, s.logits);
}

void prepare_choice(const moesaic_route_args& a, const float* given, const Scratch& s) {
    if (given != nullptr) {
        std::memcpy(s.choice, given, size_t(a.num_experts) * sizeof(float));
    } else if (a.select_first || (a.bias == nullptr && a.num_groups == 1)) {
        std::memcpy(s.choice, s.logits, size_t(s.padded) * sizeof(float));
    } else if (a.scoring == MOESAIC_SOFTMAX) {
        const Softmax softmax(s.logits, s.padded);
        for (int64_t e = 0; e < s.padded; e += W) store(s.choice + e, softmax(load(s.logits + e)));
    } else {
        for (int64_t e = 0; e < s.padded; e += W) store(s.choice + e, score(a.scoring, load(s.logits + e)));
    }
    if (given == nullptr && a.bias != nullptr)
        for (int64_t e = 0; e < a.num_experts; ++e) s.choice[e] += a.bias[e];
    for (int64_t e = 0; e < s.padded; e += W) store(s.choice + e, comparable(load(s.choice + e)));
    for (int64_t e = a.num_experts; e < s.padded; ++e) s.choice[e] = -INF;
}

// What a group of n experts is worth; one that is banned (-inf) adds nothing.
float group_score(const float* choice, int64_t n, bool by_max) {
    float best = -INF, second = -INF;
    for (int64_t i = 0; i < n; ++i) {
        second = std::max(second, std::min(best, choice[i]));
        best = std::max(best, choice[i]);
    }
    return comparable(by_max || second == -INF ? best : best + second);
}

// Experts outside the best groups count as `masked_score`.
void mask_groups(const moesaic_route_args& a, const Scratch& s) {
    const int64_t size = a.num_experts / a.num_groups;
    for (int64_t g = 0; g < a.num_groups; ++g) s.groups[g] = group_score(s.choice + g * size, size, a.group_by_max);
    for (int64_t i = 0; i < a.top_groups; ++i) {
        int64_t best = 0;
        for (int64_t g = 1; g < a.num_groups; ++g) best = s.groups[g] > s.groups[best] ? g : best;
        s.groups[best] = -INF;  // taken
    }
    const float masked = comparable(a.masked_score);
    for (int64_t g = 0; g < a.num_groups; ++g)
        for (int64_t i = 0; s.groups[g] != -INF && i < size; ++i) s.choice[g * size + i] = masked;
}

// The k best, best first: the best chunk, the first place in it that holds its maximum, again. Returns how many there
// are: fewer than k where fewer may be chosen.
int64_t pick(int64_t k, const Scratch& s, int32_t* ids) {
    const int64_t chunks = s.padded / CHUNK, padded = round_up(chunks, CHUNK);
    for (int64_t c = 0; c < padded; ++c) s.maxima[c] = c < chunks ? largest(s.choice + c * CHUNK, CHUNK) : -INF;
    for (int64_t i = 0; i < k; ++i) {
        const float best = largest(s.maxima, padded);
        if (best == -INF) return i;
        const int64_t c = first_equal(s.maxima, padded, best);
        float* chunk = s.choice + c * CHUNK;
        const int64_t place = first_equal(chunk, CHUNK, best);
        ids[i] = int32_t(c * CHUNK + place);
        chunk[place] = -INF;  // taken
        s.maxima[c] = largest(chunk, CHUNK);
    }
    return k;
}

// The weight of the i-th chosen is its part of a softmax over those not chosen before it and not far below it.
void sparsemixer(const moesaic_route_args& a, const Scratch& s, const int32_t* ids, int64_t k, float* weights) {
    for (int64_t i = 0; i < k; ++i) {
        const float best = s.logits[ids[i]];
        for (int64_t e = 0; e < s.padded; ++e) {
            const float x = s.logits[e], distance = (best - x) / std::max(std::fabs(x), best);
            s.choice[e] = distance > 2 * a.jitter ? -INF : x;
        }
        for (int64_t j = 0; j < i; ++j) s.choice[ids[j]] = -INF;
        for (int64_t e = a.num_experts; e < s.padded; ++e) s.choice[e] = -INF;
        weights[i] = 1.0f / Softmax(s.choice, s.padded).sum;  // the chosen one is the largest: its e^(x - top) is 1
    }
    std::memcpy(s.choice, weights, size_t(k) * sizeof(float));
}

// The chosen logits' scores, into s.choice: k of them, padded to whole vectors.
void score_chosen(const moesaic_route_args& a, const Scratch& s, const int32_t* ids, int64_t k, float* weights) {
    const int64_t padded = round_up(k, W);
    if (a.scoring == MOESAIC_SPARSEMIXER) return sparsemixer(a, s, ids, k, weights);
    for (int64_t i = 0; i < padded; ++i) s.choice[i] = i < k ? s.logits[ids[i]] : -INF;
    if (a.scoring == MOESAIC_SOFTMAX) {
        const Softmax softmax = a.select_first ? Softmax(s.choice, padded) : Softmax(s.logits, s.padded);
        for (int64_t i = 0; i < padded; i += W) store(s.choice + i, softmax(load(s.choice + i)));
    } else {
        for (int64_t i = 0; i < padded; i += W) store(s.choice + i, score(a.scoring, load(s.choice + i)));
    }
}

void weigh(const moesaic_route_args& a, const Scratch& s, const int32_t* ids, int64_t k, float* weights) {
    score_chosen(a, s, ids, k, weights);
    float factor = a.scale;
    if (a.renormalize) {
        float sum = 0.0f;
        for (int64_t i = 0; i < k; ++i) sum += s.choice[i];
        sum += a.epsilon;
        factor /= sum < a.floor ? a.floor : sum;
    }
    for (int64_t i = 0; i < k; ++i) {
        weights[i] = s.choice[i] * factor;
        if (a.expert_scale != nullptr) weights[i] *= a.expert_scale[ids[i]];
    }
}

void route_row(const moesaic_route_args& a, int64_t t, const moesaic_route_rule* rule, int64_t top_k, const Scratch& s) {
    int32_t* ids = a.ids + t * a.top_k;
    float* weights = a.weights + t * a.top_k;
    read_logits(a, a.logits + t * a.num_experts, rule, s);
    prepare_choice(a, a.choice != nullptr ? a.choice + t * a.num_experts : nullptr, s);
    ban(a, rule, s.choice);
    if (a.num_groups > 1) {
        mask_groups(a, s);
        ban(a, rule, s.choice);
    }
    const int64_t k = pick(top_k, s, ids);
    weigh(a, s, ids, k, weights);
    for (int64_t i = k; i < a.top_k; ++i) {
        ids[i] = -1;
        weights[i] = 0.0f;
    }
}

void route(const moesaic_route_args& a) {
    const int64_t rows = *a.rows;
    const int32_t* rule_of = a.table != nullptr ? *a.table->rule_of : nullptr;
    parallel_for(rows, WORK / a.num_experts + 1, [&](int64_t begin, int64_t end) {
        const Scratch s(a.num_experts);
        for (int64_t t = begin; t < end; ++t) {
            const moesaic_route_rule* rule = rule_of != nullptr ? a.table->rules + rule_of[t] : nullptr;
            const bool own = rule == nullptr || rule == a.table->rules;
            route_row(a, t, own ? nullptr : rule, rule != nullptr ? std::min(rule->top_k, a.top_k) : a.top_k, s);
        }
    });
    if (a.counts == nullptr) return;
    for (int64_t i = 0; i < rows * a.top_k; ++i)
        if (a.ids[i] >= 0) ++a.counts[a.ids[i]];
}

// Logits of one row as they are scored: capped, but for those of -inf.
void cap_row(const float* logits, int64_t num_experts, float cap, float* out) {
    for (int64_t e = 0; e < num_experts; e += W) {
        alignas(64) float x[W];
        const int64_t n = std::min<int64_t>(W, num_experts - e);
        for (int64_t i = 0; i < W; ++i) x[i] = i < n ? logits[e + i] : -INF;
        if (cap != 0.0f) store(x, mul(tanh(mul(load(x), set1(1.0f / cap))), set1(cap)));
        for (int64_t i = 0; i < n; ++i) out[e + i] = logits[e + i] == -INF ? -INF : x[i];
    }
    for (int64_t e = num_experts; e < round_up(num_experts, CHUNK); ++e) out[e] = -INF;
}

// Their scores; `logits` and `scores` are padded.
void score_row(int32_t scoring, int64_t padded, const float* logits, float* scores) {
    if (scoring == MOESAIC_SOFTMAX || scoring == MOESAIC_SPARSEMIXER) {
        const Softmax softmax(logits, padded);
        for (int64_t e = 0; e < padded; e += W) store(scores + e, softmax(load(logits + e)));
    } else {
        for (int64_t e = 0; e < padded; e += W) store(scores + e, score(scoring, load(logits + e)));
    }
    for (int64_t e = 0; e < padded; ++e)
        if (logits[e] == -INF) scores[e] = 0.0f;
}

void route_scores(const moesaic_route_scores_args& a) {
    parallel_for(*a.rows, WORK / a.num_experts + 1, [&](int64_t begin, int64_t end) {
        const Scratch s(a.num_experts);
        for (int64_t t = begin; t < end; ++t) {
            cap_row(a.logits + t * a.num_experts, a.num_experts, a.cap, s.logits);
            score_row(a.scoring, s.padded, s.logits, s.choice);
            std::memcpy(a.scores + t * a.num_experts, s.choice, size_t(a.num_experts) * sizeof(float));
        }
    });
}

// What has this score, beside others whose softmax has this logarithm of its sum of exponentials.
float logit_of(int32_t scoring, double score, double log_sum) {
    if (score <= 0.0) return -INF;
    if (scoring == MOESAIC_SIGMOID) return score >= 1.0 ? INF : float(std::log(score) - std::log1p(-score));
    if (scoring == MOESAIC_SQRT_SOFTPLUS) return float(score * score + std::log(-std::expm1(-score * score)));
    return float(std::log(score) + log_sum);
}

void route_logits(const moesaic_route_logits_args& a) {
    parallel_for(*a.rows, WORK / a.num_experts + 1, [&](int64_t begin, int64_t end) {
        const Scratch s(a.num_experts);
        for (int64_t t = begin; t < end; ++t) {
            cap_row(a.logits + t * a.num_experts, a.num_experts, a.cap, s.logits);
            score_row(a.scoring, s.padded, s.logits, s.choice);
            const Softmax softmax(s.logits, s.padded);
            const double log_sum = double(softmax.top) + std::log(double(softmax.sum));
            const float* scores = a.scores + t * a.num_experts;
            float* out = a.out + t * a.num_experts;
            for (int64_t e = 0; e < a.num_experts; ++e)
                out[e] = scores[e] == s.choice[e] ? s.logits[e] : logit_of(a.scoring, scores[e], log_sum);
        }
    });
}

int64_t faults_of(const float* scores, int64_t num_experts) {
    int64_t faults = MOESAIC_SCORE_NONE;
    for (int64_t e = 0; e < num_experts; ++e) {
        if (!(std::abs(scores[e]) < INF)) faults |= MOESAIC_SCORE_NOT_FINITE;
        if (scores[e] < 0.0f) faults |= MOESAIC_SCORE_NEGATIVE;
        if (scores[e] == 0.0f) faults |= MOESAIC_SCORE_ZERO;
        if (scores[e] > 0.0f) faults &= ~MOESAIC_SCORE_NONE;
    }
    return faults;
}

void route_changes(const moesaic_route_changes_args& a) {
    for (int64_t t = 0; t < *a.rows; ++t) {
        const float* before = a.before + t * a.num_experts;
        const float* after = a.after + t * a.num_experts;
        bool finite = true, changed = false;
        for (int64_t e = 0; e < a.num_experts; ++e) {
            finite &= std::abs(before[e]) < INF;
            changed |= after[e] != before[e];
        }
        a.changed[t] = finite && changed;
        a.found[0] += a.changed[t];
        if (a.changed[t]) a.found[1] |= faults_of(after, a.num_experts);
    }
}

void route_replace(const moesaic_route_replace_args& a) {
    for (int64_t t = 0; t < *a.rows; ++t) {
        if (!a.changed[t]) continue;
        const float* scores = a.scores + t * a.num_experts;
        for (int64_t i = 0; i < a.width; ++i) {
            int32_t& id = a.ids[t * a.width + i];
            if (a.counts != nullptr && id >= 0) --a.counts[id];
            id = i < a.new_width ? a.new_ids[t * a.new_width + i] : -1;
            if (id >= 0 && scores[id] == 0.0f) id = -1;
            a.weights[t * a.width + i] = id >= 0 ? a.new_weights[t * a.new_width + i] : 0.0f;
            if (a.counts != nullptr && id >= 0) ++a.counts[id];
        }
    }
}

thread_local int64_t spent = 0;  // nanoseconds

// Adds the time that it lives.
struct Watch {
    std::chrono::steady_clock::time_point begin = std::chrono::steady_clock::now();
    ~Watch() { spent += std::chrono::nanoseconds(std::chrono::steady_clock::now() - begin).count(); }
};

}  // namespace
}  // namespace moesaic

MOESAIC_API void moesaic_route(const moesaic_route_args* args) {
    if (args->choice != nullptr) return moesaic::route(*args);  // who brings a choice measures all that he does
    const moesaic::Watch watch;
    moesaic::route(*args);
}
MOESAIC_API void moesaic_route_scores(const moesaic_route_scores_args* args) { moesaic::route_scores(*args); }
MOESAIC_API void moesaic_route_logits(const moesaic_route_logits_args* args) { moesaic::route_logits(*args); }
MOESAIC_API void moesaic_route_changes(const moesaic_route_changes_args* args) { moesaic::route_changes(*args); }
MOESAIC_API void moesaic_route_replace(const moesaic_route_replace_args* args) { moesaic::route_replace(*args); }
MOESAIC_API void moesaic_route_time(const moesaic_route_time_args* args) { *args->nanoseconds = moesaic::spent; }
