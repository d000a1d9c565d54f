// Going over a row of any length, vector by vector.
#pragma once

#include "simd.h"

namespace moesaic {

// Some lanes of memory; all of them where n is W, which the loop below makes known (masked stores are slow).
MOESAIC_INLINE Vec get(const float* p, int n) { return n == W ? load(p) : load_n(p, n); }
MOESAIC_INLINE void put(float* p, Vec v, int n) { n == W ? store(p, v) : store_n(p, v, n); }

// Calls body(offset, lanes) over a row; lanes is W but for the last vector.
template <class Body>
MOESAIC_INLINE void each_vector(int64_t n, const Body& body) {
    int64_t i = 0;
    for (; i + W <= n; i += W) body(i, W);
    if (i < n) body(i, int(n - i));
}

}  // namespace moesaic
