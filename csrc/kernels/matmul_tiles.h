// How a panel of 32 columns and any number of rows are cut into tiles whose sums fit the registers. Shared by engines.
//
// Up to WIDE_ROWS rows take a panel at its full width; more of them take it TILE_COLUMNS at a time (which is the same
// width where vectors have 16 lanes), and more than TILE_ROWS in several tiles.
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

// Put before the body of a lambda that a tile is made of.
#define MOESAIC_ALWAYS __attribute__((always_inline))

// Calls f(integral_constant<int, i>) for i in [0, N). Sums that are only ever named by constants stay in registers; a loop
// that the compiler unrolls later may leave them in memory.
template <int N, class F>
MOESAIC_INLINE void unroll(const F& f) {
    if constexpr (N > 0) {
        unroll<N - 1>(f);
        f(std::integral_constant<int, N - 1>());
    }
}

// Calls f(integral_constant<int, count>) for a count in [LEAST, MOST].
template <int LEAST, int MOST, class F>
MOESAIC_INLINE void with_rows(int64_t count, const F& f) {
    if constexpr (MOST > LEAST) {
        if (count < MOST) return with_rows<LEAST, MOST - 1>(count, f);
    }
    f(std::integral_constant<int, MOST>());
}

inline int64_t num_row_tiles(int64_t count) { return (count + TILE_ROWS - 1) / TILE_ROWS; }

// Cuts more than TILE_ROWS rows into as few tiles as can be, of nearly equal size, so that none has less than half of
// TILE_ROWS: calls f(first, integral_constant of the size).
template <class F>
MOESAIC_INLINE void for_row_tiles(int64_t count, const F& f) {
    int64_t first = 0;
    for (int64_t tiles = num_row_tiles(count); tiles > 0; --tiles) {
        const int64_t size = (count - first + tiles - 1) / tiles;
        with_rows<TILE_ROWS / 2, TILE_ROWS>(size, [&](auto m) { f(first, m); });
        first += size;
    }
}

// Bytes that a stream of weights is prefetched ahead of its use: measured on Zen 3, where 4 KiB ahead is a tenth slower.
constexpr int64_t STREAM_AHEAD = 1024;

// Prefetches into the second-level cache, a little at every step of a tile, the weights that come after those it works on.
class Ahead {
public:
    // Bytes [begin, begin + bytes) evenly over `steps` steps.
    Ahead(const char* begin, int64_t bytes, int64_t steps) : at_(begin), advance_(steps > 0 ? bytes / steps + 1 : 0) {}

    MOESAIC_INLINE void step() {
        __builtin_prefetch(at_, 0, 2);
        at_ += advance_;
    }

private:
    const char* at_;
    int64_t advance_;
};

}  // namespace moesaic
