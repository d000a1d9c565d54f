// How a panel of 32 columns and any number of rows are cut into tiles whose sums fit the registers. Shared by engines.
//
// Up to WIDE_ROWS rows take a panel at its full width; more of them take it TILE_COLUMNS at a time, which is the same
// width where vectors have 16 lanes.
#pragma once

#include <type_traits>

#include "../common/formats.h"
#include "matmul_simd.h"

namespace moesaic {

constexpr int PANEL_VECTORS = PANEL / W;
constexpr int TILE_VECTORS = 2;
constexpr int TILE_COLUMNS = TILE_VECTORS * W;
#if defined(__AVX512F__)
constexpr int WIDE_ROWS = 12, TILE_ROWS = 12;  // 24 of 32 registers hold sums
#else
constexpr int WIDE_ROWS = 3, TILE_ROWS = 6;  // 12 of 16
#endif

// Calls f(integral_constant<int, i>) for i in [0, N).
template <int N, class F>
MOESAIC_INLINE void unroll(const F& f) {
    if constexpr (N > 0) {
        unroll<N - 1>(f);
        f(std::integral_constant<int, N - 1>());
    }
}

// Calls f(integral_constant<int, count>) for a count in [1, MOST].
template <int MOST, class F>
MOESAIC_INLINE void with_rows(int64_t count, const F& f) {
    if constexpr (MOST > 1) {
        if (count < MOST) return with_rows<MOST - 1>(count, f);
    }
    f(std::integral_constant<int, MOST>());
}

// Cuts rows [0, count) into as few tiles as can be, of nearly equal size: calls f(first, integral_constant of the size).
template <class F>
MOESAIC_INLINE void for_row_tiles(int64_t count, const F& f) {
    int64_t tiles = (count + TILE_ROWS - 1) / TILE_ROWS;
    for (int64_t first = 0; tiles > 0; --tiles) {
        const int64_t size = (count - first + tiles - 1) / tiles;
        with_rows<TILE_ROWS>(size, [&](auto m) { f(first, m); });
        first += size;
    }
}

// Brings a range of bytes into the second-level cache little by little, while a tile of what came before is computed.
class SlowPrefetch {
public:
    SlowPrefetch(const char* begin, int64_t bytes, int64_t steps)
        : next_(begin), end_(begin + bytes), step_(round_up(steps > 0 ? bytes / steps + 1 : bytes, 64)) {}

    MOESAIC_INLINE void step() {
        const char* stop = end_ - next_ < step_ ? end_ : next_ + step_;
        for (; next_ < stop; next_ += 64) __builtin_prefetch(next_, 0, 2);
    }

private:
    const char* next_;
    const char* end_;
    int64_t step_;
};

}  // namespace moesaic
