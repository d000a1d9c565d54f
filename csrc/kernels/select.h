// The largest of many numbers without sorting them: the row is cut into blocks, each block's maximum is found in one
// pass, and at least k numbers reach the k-th largest of these maxima. What reaches it is little more than the k best.
//
// NaN is never one of the largest.
#pragma once

#include <algorithm>
#include <functional>
#include <limits>

#include "../common/compare.h"

namespace moesaic {

constexpr uint32_t ALL_LANES = (uint32_t(1) << W) - 1;
constexpr float NEGATIVE_INFINITY = -std::numeric_limits<float>::infinity();
constexpr int64_t LEAST_BLOCK = 16, MOST_BLOCK = 1024;

// Numbers in a block so that there are several blocks for each of the k wanted.
inline int64_t block_size(int64_t n, int64_t k) {
    int64_t size = LEAST_BLOCK;
    while (size < MOST_BLOCK && n / (2 * size) >= 4 * k) size *= 2;
    return size;
}

// A row and the maxima of its blocks.
struct Blocks {
    const float* x;
    int64_t n;
    int64_t size;   // of a block, a multiple of W
    int64_t count;  // of blocks
    float* maxima;
    float top;    // the largest of all
    bool has_nan;

    // `maxima` has place for n / size + 1.
    Blocks(const float* x, int64_t n, int64_t size, float* maxima)
        : x(x), n(n), size(size), count((n + size - 1) / size), maxima(maxima), top(NEGATIVE_INFINITY) {
        Vec flag = zero();  // NaN once a number was NaN or infinity
        const Vec lowest = set1(std::numeric_limits<float>::lowest());
        for (int64_t b = 0; b < count; ++b) {
            Vec best = set1(NEGATIVE_INFINITY);
            each(b, [&](Vec v, int64_t) {
                best = max(v, best);  // in this order NaN is passed over, and in that it stays
                flag = fma(max(lowest, v), zero(), flag);
            });
            maxima[b] = reduce_max(best);
            top = std::max(top, maxima[b]);
        }
        has_nan = equal(flag, flag) != ALL_LANES;
    }

    // Calls body(vector, index of its first number) over one block; beyond the row's end stands -inf.
    template <class Body>
    MOESAIC_INLINE void each(int64_t block, const Body& body) const {
        const int64_t end = std::min(n, (block + 1) * size);
        int64_t i = block * size;
        for (; i + W <= end; i += W) body(load(x + i), i);
        if (i < end) body(load_padded(x + i, end - i, NEGATIVE_INFINITY), i);
    }

    // The first index of `top`; 0 if there is none.
    int64_t first_of_top() const {
        for (int64_t b = 0; b < count; ++b)
            for (int64_t i = b * size; maxima[b] == top && i < std::min(n, (b + 1) * size); ++i)
                if (x[i] == top) return i;
        return 0;
    }

    // A number that at least k of the row reach, if it has so many. `scratch` has place for `count`.
    float bound(int64_t k, float* scratch) const {
        if (k > count) return NEGATIVE_INFINITY;
        std::copy(maxima, maxima + count, scratch);
        std::nth_element(scratch, scratch + k - 1, scratch + count, std::greater<float>());
        return scratch[k - 1];
    }

    // Numbers that reach `least`, in order, with their indices; both arrays have place for n. Returns how many.
    int64_t collect(float least, int32_t* ids, float* values) const {
        int64_t found = 0;
        for (int64_t b = 0; b < count; ++b) {
            if (!(maxima[b] >= least)) continue;
            each(b, [&](Vec v, int64_t first) {
                for (uint32_t mask = at_least(v, set1(least)); mask != 0; mask &= mask - 1) {
                    const int64_t i = first + __builtin_ctz(mask);
                    if (i >= n) break;
                    ids[found] = int32_t(i);
                    values[found++] = x[i];
                }
            });
        }
        return found;
    }

    // The k largest and whatever equals the last of them, in order. `scratch` has place for n. Returns how many.
    int64_t best(int64_t k, int32_t* ids, float* values, float* scratch) const {
        const int64_t candidates = collect(bound(k, scratch), ids, values);
        if (candidates <= k) return candidates;
        std::copy(values, values + candidates, scratch);
        std::nth_element(scratch, scratch + k - 1, scratch + candidates, std::greater<float>());
        const float least = scratch[k - 1];
        int64_t kept = 0;
        for (int64_t i = 0; i < candidates; ++i) {
            if (values[i] < least) continue;
            ids[kept] = ids[i];
            values[kept++] = values[i];
        }
        return kept;
    }
};

}  // namespace moesaic
