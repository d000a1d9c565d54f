// The softmax that goes along with the keys: a row's largest score so far, the sum of its weights, and the sum of
// weighted values, both relative to that score. One chunk of keys is added at a time, one split merged at a time.
#pragma once

#include "../common/simd.h"

namespace moesaic {

constexpr float LOWEST = -1e30f;  // below every score; finite, so that a difference of two is no NaN

struct State {
    float* max;  // [rows]
    float* sum;  // [rows][W]: each lane's own sum
    float* acc;  // [rows][columns]

    static int64_t floats(int64_t rows, int64_t columns) { return (rows * (1 + W + columns) + 15) / 16 * 16; }

    static State at(float* memory, int64_t rows, int64_t columns) {
        return {memory + rows * (W + columns), memory + rows * columns, memory};
    }

    void clear(int64_t rows, int64_t columns) const {
        for (int64_t r = 0; r < rows; ++r) max[r] = LOWEST;
        std::memset(sum, 0, size_t(rows * W) * sizeof(float));
        std::memset(acc, 0, size_t(rows * columns) * sizeof(float));
    }
};

inline float exp_of(float x) {
    float lane[W];
    store(lane, exp(set1(x)));
    return lane[0];
}

inline void scale_row(float* x, int64_t n, float factor) {
    for (int64_t i = 0; i < n; i += W) store(x + i, mul(load(x + i), set1(factor)));
}

// total += part, of keys that come later.
inline void merge(const State& total, const State& part, int64_t rows, int64_t columns) {
    for (int64_t r = 0; r < rows; ++r) {
        const float top = total.max[r] > part.max[r] ? total.max[r] : part.max[r];
        const Vec old = set1(exp_of(total.max[r] - top)), added = set1(exp_of(part.max[r] - top));
        total.max[r] = top;
        float *sum = total.sum + r * W, *acc = total.acc + r * columns;
        store(sum, fma(load(part.sum + r * W), added, mul(load(sum), old)));
        for (int64_t i = 0; i < columns; i += W) {
            store(acc + i, fma(load(part.acc + r * columns + i), added, mul(load(acc + i), old)));
        }
    }
}

// A vector whose lanes outside [from, to) are `fill`.
MOESAIC_INLINE Vec keep(Vec x, int64_t from, int64_t to, float fill) {
    float lane[W];
    store(lane, x);
    for (int i = 0; i < W; ++i) lane[i] = i >= from && i < to ? lane[i] : fill;
    return load(lane);
}

// What the scores of a chunk go through.
struct Scores {
    const float* key_scales;    // int8: of each key, and of each value; NULL otherwise
    const float* value_scales;
    float softcap;
};

// What a new largest score leaves of the old sum: e^(before - max).
MOESAIC_INLINE float shrink(float before, float max) { return before == max ? 1.0f : exp_of(before - max); }

// `weigh` of a whole chunk of WIDTH scores that need nothing else, the usual case: the same steps, unrolled.
template <int WIDTH>
MOESAIC_INLINE float weigh_all(float* s, float& max, float* sum) {
    constexpr int N = WIDTH / W;
    Vec x[N];
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) x[i] = load(s + i * W);
    Vec top = set1(max);
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) top = moesaic::max(top, x[i]);
    const float before = max;
    max = reduce_max(top);
    const float factor = shrink(before, max);
    Vec total = mul(load(sum), set1(factor));
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) {
        const Vec p = exp(sub(x[i], set1(max)));
        total = add(total, p);
        store(s + i * W, p);
    }
    store(sum, total);
    return factor;
}

// One row's scores s[begin, end) become weights, of all `width` columns; those outside count for nothing and become 0.
// Returns the factor on what was summed before.
inline float weigh(float* s, int64_t begin, int64_t end, int64_t width, const Scores& how, float& max, float* sum) {
    const int64_t first = begin / W * W;
    Vec top = set1(max);
    for (int64_t i = first; i < end; i += W) {
        Vec x = load(s + i);
        if (how.key_scales != nullptr) x = mul(x, load(how.key_scales + i));
        if (how.softcap > 0) x = mul(set1(how.softcap), tanh(div(x, set1(how.softcap))));
        if (i < begin || i + W > end) x = keep(x, begin - i, end - i, -INFINITY);
        store(s + i, x);
        top = moesaic::max(top, x);
    }
    const float before = max;
    max = reduce_max(top);
    const float factor = shrink(before, max);
    Vec total = mul(load(sum), set1(factor));
    int64_t i = 0;
    for (; i < first; i += W) store(s + i, zero());
    for (; i < end; i += W) {
        Vec p = exp(sub(load(s + i), set1(max)));
        const bool edge = i < begin || i + W > end;
        if (edge) p = keep(p, begin - i, end - i, 0.0f);
        total = add(total, p);
        if (how.value_scales != nullptr) {
            p = mul(p, load(how.value_scales + i));
            if (edge) p = keep(p, begin - i, end - i, 0.0f);
        }
        store(s + i, p);
    }
    for (; i < width; i += W) store(s + i, zero());
    store(sum, total);
    return factor;
}

}  // namespace moesaic
