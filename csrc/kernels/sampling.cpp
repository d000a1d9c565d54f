// One token for each row of logits. Every step is defined so that no order of summation and no instruction set shows:
//
//   weight     e^((logit - highest) / temperature) in fp32 by products and sums that are rounded one by one, then
//              rounded to a multiple of 2^-31. Sums of up to 2^22 such weights are exact in double, in any order.
//   top-k      keeps what reaches the k-th largest logit.
//   top-p      keeps what reaches the largest weight w for which the weights >= w sum to top_p of all (Holtzman et al.
//              2020, with ties).
//   min-p      keeps weights of at least min_p: the largest weight is 1.
//   draw       the first in order of ids whose running sum exceeds u * total, u by SplitMix64 of seed and position.
//
// A row is cut into blocks (select.h): blocks whose every weight rounds to 0 are left out, and nothing is sorted.
#include "../abi/sampling.h"

#include "../common/sums.h"
#include "../common/team.h"
#include "select.h"

namespace moesaic {
namespace {

constexpr int SCRATCH = 11, IDS = 12, BUCKETS = 13;  // slots of the workspace
constexpr int64_t WORK = 65536;                       // logits that are worth a thread
constexpr int64_t WEIGHT_BLOCK = 128;                 // logits that are left out together
constexpr int64_t DRAW_BLOCK = 512;                   // weights whose sum is kept
constexpr int64_t SORTED = 256;                       // as many weights are sorted rather than counted in buckets
constexpr float LOWEST_EXPONENT = -40.0f;             // e^x below e^-23 rounds to weight 0
constexpr float NO_WEIGHT = -23.0f;

// ---- penalties and bias --------------------------------------------------------------------------------------------

template <class Body>
void each_token(const int64_t* tokens, int64_t begin, int64_t end, int64_t vocab, const Body& body) {
    for (int64_t i = begin; i < end; ++i)
        if (tokens[i] >= 0 && tokens[i] < vocab) body(tokens[i]);
}

// Calls body(token, how often) once for each different token.
template <class Body>
void each_different(const moesaic_sampling_params& p, int64_t begin, int64_t end, int64_t vocab, const Body& body) {
    int32_t* counts = static_cast<int32_t*>(workspace(IDS, size_t(vocab) * sizeof(int32_t)));
    each_token(p.tokens, begin, end, vocab, [&](int64_t token) { counts[token] = 0; });
    each_token(p.tokens, begin, end, vocab, [&](int64_t token) { ++counts[token]; });
    each_token(p.tokens, begin, end, vocab, [&](int64_t token) {
        if (counts[token] > 0) body(token, counts[token]);
        counts[token] = 0;
    });
}

void adjust(const moesaic_sampling_params& p, int64_t length, float* logits, int64_t vocab) {
    const float repetition = p.repetition_penalty;
    if (repetition != 1.0f)
        each_different(p, 0, length, vocab, [&](int64_t token, int32_t) {
            logits[token] = logits[token] > 0.0f ? logits[token] / repetition : logits[token] * repetition;
        });
    if (p.presence_penalty != 0.0 || p.frequency_penalty != 0.0)
        each_different(p, p.prompt_len, length, vocab, [&](int64_t token, int32_t count) {
            logits[token] = float(double(logits[token]) - (p.presence_penalty + p.frequency_penalty * double(count)));
        });
    for (int64_t i = 0; i < p.num_biases; ++i)
        if (p.bias_ids[i] >= 0 && p.bias_ids[i] < vocab) logits[p.bias_ids[i]] += p.bias_values[i];
    if (length - p.prompt_len < p.min_tokens)
        each_token(p.stop_ids, 0, p.num_stops, vocab, [&](int64_t token) { logits[token] = NEGATIVE_INFINITY; });
}

// ---- weights -------------------------------------------------------------------------------------------------------

// e^x for x <= 0, to about 2 ulp (Cephes' expf), rounded to a multiple of 2^-31.
MOESAIC_INLINE Vec weight(Vec x) {
    x = max(x, set1(LOWEST_EXPONENT));
    const Vec n = round(mul(x, set1(1.44269504088896341f)));
    Vec r = sub(x, mul(n, set1(0.693359375f)));
    r = sub(r, mul(n, set1(-2.12194440e-4f)));
    Vec p = set1(1.9875691500e-4f);
    for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        p = add(mul(p, r), set1(c));
    p = add(mul(p, mul(r, r)), add(r, set1(1.0f)));
    const Vec w = scale_by_power(p, n);
    // From 2^-8 on every float is a multiple of 2^-31; below, adding 2^-8 leaves the sum no finer bits.
    const Vec coarse = set1(0.00390625f), small = min(w, coarse);
    return add(sub(add(small, coarse), coarse), sub(w, small));
}

// Tokens that may be drawn, in order of ids: their weights, and where their ids are found.
struct Candidates {
    float* weights;
    int64_t n;
    const int32_t* ids;     // of each, or of each block's first where block > 1
    int64_t block;

    int64_t id(int64_t place) const { return int64_t(ids[place / block]) + place % block; }
};

struct Buffers {
    float* maxima;
    float* weights;
    float* scratch;
    int32_t* ids;

    explicit Buffers(int64_t vocab) {
        const int64_t padded = vocab + 2 * WEIGHT_BLOCK;
        weights = static_cast<float*>(workspace(SCRATCH, size_t(2 * padded + vocab / LEAST_BLOCK + 1) * sizeof(float)));
        scratch = weights + padded;
        maxima = scratch + padded;
        ids = static_cast<int32_t*>(workspace(IDS, size_t(vocab) * sizeof(int32_t)));
    }
};

Candidates best_candidates(const Blocks& blocks, int64_t k, float inverse, const Buffers& to) {
    const int64_t n = blocks.best(k, to.ids, to.weights, to.scratch);
    for (int64_t i = 0; i < n; i += W) {
        const int m = int(std::min<int64_t>(W, n - i));
        store_n(to.weights + i, weight(mul(sub(load_n(to.weights + i, m), set1(blocks.top)), set1(inverse))), m);
    }
    return {to.weights, n, to.ids, 1};
}

Candidates all_candidates(const Blocks& blocks, float inverse, const Buffers& to) {
    int64_t kept = 0;
    for (int64_t b = 0; b < blocks.count; ++b) {
        if ((blocks.maxima[b] - blocks.top) * inverse < NO_WEIGHT) continue;
        float* out = to.weights + kept * blocks.size;
        const int64_t first = b * blocks.size;
        blocks.each(b, [&](Vec v, int64_t i) {
            store(out + (i - first), weight(mul(sub(v, set1(blocks.top)), set1(inverse))));
        });
        to.ids[kept++] = int32_t(first);
    }
    const int64_t last = to.ids[kept - 1] + blocks.size;  // the row's end may leave the last block short
    return {to.weights, kept * blocks.size - std::max<int64_t>(0, last - blocks.n), to.ids, blocks.size};
}

// ---- top-p ---------------------------------------------------------------------------------------------------------

// The sum of weights[begin, end) that reach `least`.
double sum(const float* weights, int64_t begin, int64_t end, float least) {
    DoubleSum total;
    const auto count = [&](Vec w) { total.add(where_less(w, set1(least), zero(), w)); };
    int64_t i = begin;
    for (; i + W <= end; i += W) count(load(weights + i));
    if (i < end) count(load_padded(weights + i, end - i, 0.0f));
    return total.total();
}

float nucleus_by_sorting(const Candidates& c, double mass, float* scratch) {
    std::copy(c.weights, c.weights + c.n, scratch);
    std::sort(scratch, scratch + c.n, std::greater<float>());
    double above = 0.0;
    int64_t i = 0;
    while (i < c.n - 1 && (above += double(scratch[i])) < mass) ++i;
    return scratch[i];
}

// Weights in [low, high) are summed in buckets of their bits above `shift`; the bucket in which the sum from above
// reaches `mass` is cut again, until it holds one number.
float nucleus_by_buckets(const Candidates& c, double mass, double total) {
    constexpr int64_t NUM_BUCKETS = 2048;
    double* buckets = static_cast<double*>(workspace(BUCKETS, NUM_BUCKETS * sizeof(double)));
    uint32_t base = float_to_bits(4.656612873077393e-10f);  // 2^-31, the least weight
    // All weights below this together cannot be what is left out of `mass`: the threshold is not among them.
    float low = std::max(bits_to_float(base), float(0.99 * (total - mass) / double(c.n)));
    float high = 2.0f;
    double above = 0.0;
    for (int shift : {17, 6, 0}) {
        std::fill(buckets, buckets + NUM_BUCKETS, 0.0);
        const auto count = [&](Vec v, int64_t first) {
            uint32_t mask = at_least(v, set1(low)) & ~at_least(v, set1(high));
            for (; mask != 0; mask &= mask - 1) {
                const float w = c.weights[first + __builtin_ctz(mask)];
                buckets[(float_to_bits(w) - base) >> shift] += double(w);
            }
        };
        int64_t i = 0;
        for (; i + W <= c.n; i += W) count(load(c.weights + i), i);
        if (i < c.n) count(load_padded(c.weights + i, c.n - i, 0.0f), i);
        int64_t bucket = NUM_BUCKETS - 1;
        while (bucket > 0 && above + buckets[bucket] < mass) above += buckets[bucket--];
        base += uint32_t(bucket) << shift;
        low = bits_to_float(base);
        high = bits_to_float(base + (uint32_t(1) << shift));
    }
    return bits_to_float(base);
}

float nucleus(const Candidates& c, double top_p, float* scratch) {
    if (top_p >= 1.0) return 0.0f;
    const double total = sum(c.weights, 0, c.n, 0.0f), mass = top_p * total;
    return c.n <= SORTED ? nucleus_by_sorting(c, mass, scratch) : nucleus_by_buckets(c, mass, total);
}

// ---- draw ----------------------------------------------------------------------------------------------------------

// A number in [0, 1) that depends on these two alone: SplitMix64 (Steele et al. 2014) of their mix.
double uniform(uint64_t seed, uint64_t position) {
    uint64_t x = seed * 0x9E3779B97F4A7C15u + position * 0xD1B54A32D192ED03u + 0x8CB92BA72F3D8DD7u;
    for (int i = 0; i < 2; ++i) {
        x += 0x9E3779B97F4A7C15u;
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
        x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
        x ^= x >> 31;
    }
    return double(x >> 11) * 0x1p-53;
}

int64_t draw(const Candidates& c, float least, double u, double* sums) {
    const int64_t blocks = (c.n + DRAW_BLOCK - 1) / DRAW_BLOCK;
    double total = 0.0;
    for (int64_t b = 0; b < blocks; ++b)
        total += sums[b] = sum(c.weights, b * DRAW_BLOCK, std::min(c.n, (b + 1) * DRAW_BLOCK), least);
    const double target = std::min(u * total, std::nextafter(total, 0.0));
    double running = 0.0;
    int64_t b = 0;
    while (b < blocks - 1 && running + sums[b] <= target) running += sums[b++];
    for (int64_t i = b * DRAW_BLOCK; i < c.n; ++i) {
        if (c.weights[i] >= least) running += double(c.weights[i]);
        if (running > target) return c.id(i);
    }
    return c.id(0);  // not reached: the sums are exact
}

// The smallest float that is not below `x`: floats reach it where they reach x.
float not_below(double x) {
    const float nearest = float(x);
    return double(nearest) < x ? std::nextafter(nearest, std::numeric_limits<float>::infinity()) : nearest;
}

int64_t sample_row(const moesaic_sampling_params& p, int64_t length, float* logits, int64_t vocab) {
    adjust(p, length, logits, vocab);
    const Buffers buffers(vocab);
    const bool greedy = p.temperature == 0.0f, limited = p.top_k > 0 && p.top_k < vocab;
    const int64_t size = greedy ? MOST_BLOCK : limited ? block_size(vocab, p.top_k) : WEIGHT_BLOCK;
    const Blocks blocks(logits, vocab, size, buffers.maxima);
    if (blocks.has_nan || !std::isfinite(blocks.top)) return -1;
    if (greedy) return blocks.first_of_top();
    const float inverse = 1.0f / p.temperature;
    const Candidates candidates =
        limited ? best_candidates(blocks, p.top_k, inverse, buffers) : all_candidates(blocks, inverse, buffers);
    const float least = std::max(nucleus(candidates, p.top_p, buffers.scratch), not_below(p.min_p));
    double* sums = reinterpret_cast<double*>(workspace(BUCKETS, size_t(vocab / DRAW_BLOCK + 2) * sizeof(double)));
    return draw(candidates, least, uniform(p.seed, uint64_t(length - p.prompt_len)), sums);
}

void sample(const moesaic_sample_args& a) {
    parallel_for(*a.rows, WORK / a.vocab + 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
            a.tokens[i] = sample_row(a.params[a.slots[i]], a.lengths[i], a.logits + i * a.vocab, a.vocab);
    });
}

}  // namespace
}  // namespace moesaic

MOESAIC_API void moesaic_sample(const moesaic_sample_args* args) { moesaic::sample(*args); }
