// The fp32 engine: f32, f16 and bf16 weights decoded to fp32, fused multiply-add.
//
// The chain: sum = fma(x[k], w[k], sum) for k = 0, 1, ... . Few rows decode weights in registers; many rows decode a
// chunk of K once into a tile that stays in the first-level cache, and carry their sums from chunk to chunk in `out`.
#pragma once

#include "matmul.h"
#include "matmul_tiles.h"

namespace moesaic {

// Weights where they lie: a step of K inputs of a whole panel takes BYTES; `get<U>` gives input U of W columns.
struct F32Weights {
    static constexpr int K = 1, BYTES = PANEL * 4, AHEAD = 4096;
    template <int U>
    static MOESAIC_INLINE Vec get(const char* p) {
        return load(reinterpret_cast<const float*>(p));
    }
};

struct Bf16Weights {
    static constexpr int K = 2, BYTES = PANEL * 4, AHEAD = 4096;
    template <int U>
    static MOESAIC_INLINE Vec get(const char* p) {
        return U == 0 ? even_bf16(int_load(p)) : odd_bf16(int_load(p));
    }
};

struct F16Weights {
    static constexpr int K = 2, BYTES = PANEL * 4, AHEAD = 4096;
    template <int U>
    static MOESAIC_INLINE Vec get(const char* p) {
        return U == 0 ? even_f16(int_load(p)) : odd_f16(int_load(p));
    }
};

// Weights decoded into a tile [k][TILE_COLUMNS].
struct DecodedWeights {
    static constexpr int K = 1, BYTES = TILE_COLUMNS * 4, AHEAD = 0;
    template <int U>
    static MOESAIC_INLINE Vec get(const char* p) {
        return load(reinterpret_cast<const float*>(p));
    }
};

constexpr int64_t FP32_TILE_K = 16384 / (TILE_COLUMNS * 4);

// M rows times V vectors of columns over inputs [begin, end); `w` is where input `begin` of the first column lies.
template <class Weights, int M, int V>
__attribute__((noinline)) void fp32_tile(const char* const* rows, const char* w, int64_t begin, int64_t end,
                                         float* out) {
    const float* x[M];
    Vec sum[M][V];
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
        x[m] = reinterpret_cast<const float*>(rows[m]);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sum[m][v] = begin == 0 ? zero() : load(out + m * PANEL + v * W);
    }
    for (int64_t k = begin; k < end; k += Weights::K, w += Weights::BYTES) {
        if constexpr (Weights::AHEAD > 0)
            for (int line = 0; line < V * W * 4; line += 64) prefetch(w + Weights::AHEAD + line);
        unroll<Weights::K>([&](auto u) __attribute__((always_inline)) {
            Vec weight[V];
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) weight[v] = Weights::template get<decltype(u)::value>(w + v * W * 4);
#pragma GCC unroll 16
            for (int m = 0; m < M; ++m) {
                const Vec xk = set1(x[m][k + u]);
#pragma GCC unroll 4
                for (int v = 0; v < V; ++v) sum[m][v] = fma(xk, weight[v], sum[m][v]);
            }
        });
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) store(out + m * PANEL + v * W, sum[m][v]);
}

template <class Weights>
void fp32_decode(const char* w, int64_t inputs, float* tile) {
    for (int64_t k = 0; k < inputs; k += Weights::K, w += Weights::BYTES)
        unroll<Weights::K>([&](auto u) __attribute__((always_inline)) {
            for (int v = 0; v < TILE_VECTORS; ++v, tile += W)
                store(tile, Weights::template get<decltype(u)::value>(w + v * W * 4));
        });
}

template <class Weights>
void fp32_multiply(int64_t inputs, const char* panel, const char* const* rows, int64_t count, float* out) {
    if (count <= WIDE_ROWS)
        return with_rows<WIDE_ROWS>(
            count, [&](auto m) { fp32_tile<Weights, m, PANEL_VECTORS>(rows, panel, 0, inputs, out); });
    alignas(64) float tile[FP32_TILE_K * TILE_COLUMNS];
    const bool decode = count > TILE_ROWS;
    for (int64_t begin = 0; begin < inputs; begin += FP32_TILE_K) {
        const int64_t end = begin + FP32_TILE_K < inputs ? begin + FP32_TILE_K : inputs;
        const char* w = panel + begin / Weights::K * Weights::BYTES;
        const int64_t bytes = (end - begin) / Weights::K * Weights::BYTES;
        SlowPrefetch next(w + bytes, bytes, PANEL / TILE_COLUMNS * ((count + TILE_ROWS - 1) / TILE_ROWS));
        for (int64_t column = 0; column < PANEL; column += TILE_COLUMNS) {
            const char* corner = w + column * 4;
            if (!decode) {
                with_rows<TILE_ROWS>(count, [&](auto m) {
                    fp32_tile<Weights, m, TILE_VECTORS>(rows, corner, begin, end, out + column);
                });
                continue;
            }
            fp32_decode<Weights>(corner, end - begin, tile);
            for_row_tiles(count, [&](int64_t first, auto m) {
                next.step();
                fp32_tile<DecodedWeights, m, TILE_VECTORS>(rows + first, reinterpret_cast<const char*>(tile), begin,
                                                           end, out + first * PANEL + column);
            });
        }
    }
}

}  // namespace moesaic
