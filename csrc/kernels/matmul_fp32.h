// The fp32 engine: f32, f16 and bf16 weights decoded to fp32, fused multiply-add.
//
// The chain: sum = fma(x[k], w[k], sum) for k = 0, 1, ... . A few rows take a panel from end to end with their sums in
// registers; more take a chunk of K at a time, tile after tile, and carry their sums from chunk to chunk in `out`. Many
// rows have a chunk's weights decoded once, into memory that stays in the first-level cache.
#pragma once

#include "matmul.h"
#include "matmul_tiles.h"

namespace moesaic {

// Weights where they lie: a step of K inputs of a whole panel takes BYTES, W columns of it W * 4; `get<U>` gives input U
// of W columns. CHUNK inputs are 16 KiB, decoded or not.
struct F32Weights {
    static constexpr int K = 1, BYTES = PANEL * 4, CHUNK = 128;
    static constexpr bool PACKED = false;
    template <int U>
    static MOESAIC_INLINE Vec get(const char* p) {
        return load(reinterpret_cast<const float*>(p));
    }
};

struct Bf16Weights {
    static constexpr int K = 2, BYTES = PANEL * 4, CHUNK = 4096 / TILE_COLUMNS;
    static constexpr bool PACKED = true;
    template <int U>
    static MOESAIC_INLINE Vec get(const char* p) {
        return U == 0 ? even_bf16(int_load(p)) : odd_bf16(int_load(p));
    }
};

struct F16Weights {
    static constexpr int K = 2, BYTES = PANEL * 4, CHUNK = 4096 / TILE_COLUMNS;
    static constexpr bool PACKED = true;
    template <int U>
    static MOESAIC_INLINE Vec get(const char* p) {
        return U == 0 ? even_f16(int_load(p)) : odd_f16(int_load(p));
    }
};

// Weights decoded into a tile [k][TILE_COLUMNS].
struct DecodedWeights {
    static constexpr int K = 1, BYTES = TILE_COLUMNS * 4;
    template <int U>
    static MOESAIC_INLINE Vec get(const char* p) {
        return load(reinterpret_cast<const float*>(p));
    }
};

// One step of the chain of M rows times V vectors of columns. The fewer of activations and weights stay in registers.
template <class Weights, int M, int V>
MOESAIC_INLINE void fp32_step(const float* const* x, int64_t k, const char* w, Vec (&sum)[M][V]) {
    unroll<Weights::K>([&](auto u) MOESAIC_ALWAYS {
        const auto weight = [&](int v) MOESAIC_ALWAYS { return Weights::template get<decltype(u)::value>(w + v * W * 4); };
        Vec kept[M < V ? M : V];
        if constexpr (M < V) {
            unroll<M>([&](auto m) MOESAIC_ALWAYS { kept[m] = set1(x[m][k + u]); });
            unroll<V>([&](auto v) MOESAIC_ALWAYS {
                Vec wk = weight(v);
                hold(wk);
                unroll<M>([&](auto m) MOESAIC_ALWAYS { add_product(sum[m][v], kept[m], wk); });
            });
        } else {
            unroll<V>([&](auto v) MOESAIC_ALWAYS { kept[v] = weight(v); });
            unroll<M>([&](auto m) MOESAIC_ALWAYS {
                Vec xk = set1(x[m][k + u]);
                hold(xk);
                unroll<V>([&](auto v) MOESAIC_ALWAYS { add_product(sum[m][v], xk, kept[v]); });
            });
        }
    });
}

// M rows times V vectors of columns over inputs [begin, end); `w` is where input `begin` of the first column lies. With
// STREAM the weights come from memory in this order, and are prefetched; otherwise `shared` says what is.
template <class Weights, int M, int V, bool STREAM>
__attribute__((noinline)) void fp32_tile(const char* const* rows, const char* w, int64_t begin, int64_t end,
                                         Ahead& shared, float* out) {
    Ahead ahead = shared;
    const float* x[M];
    Vec sum[M][V];
    unroll<M>([&](auto m) MOESAIC_ALWAYS {
        x[m] = reinterpret_cast<const float*>(rows[m]);
        unroll<V>([&](auto v) MOESAIC_ALWAYS { sum[m][v] = begin == 0 ? zero() : load(out + m * PANEL + v * W); });
    });
    for (int64_t k = begin; k < end; k += Weights::K, w += Weights::BYTES) {
        if constexpr (STREAM)
            for (int line = 0; line < Weights::BYTES; line += 64) prefetch(w + STREAM_AHEAD + line);
        else
            ahead.step();
        fp32_step<Weights>(x, k, w, sum);
    }
    shared = ahead;
    unroll<M>([&](auto m) MOESAIC_ALWAYS {
        unroll<V>([&](auto v) MOESAIC_ALWAYS { store(out + m * PANEL + v * W, sum[m][v]); });
    });
}

template <class Weights>
void fp32_decode(const char* w, int64_t inputs, float* tile) {
    for (int64_t k = 0; k < inputs; k += Weights::K, w += Weights::BYTES)
        unroll<Weights::K>([&](auto u) MOESAIC_ALWAYS {
            for (int v = 0; v < TILE_VECTORS; ++v, tile += W)
                store(tile, Weights::template get<decltype(u)::value>(w + v * W * 4));
        });
}

// A chunk of inputs [begin, end) of a panel, of which all rows take TILE_COLUMNS at a time.
template <class Weights>
void fp32_chunk(const char* panel, int64_t begin, int64_t end, const char* const* rows, int64_t count, float* out) {
    const int64_t steps = (end - begin) / Weights::K, bytes = steps * Weights::BYTES;
    const char* w = panel + begin / Weights::K * Weights::BYTES;
    const bool decode = Weights::PACKED && count > TILE_ROWS;
    Ahead ahead(w + bytes, bytes, (decode ? end - begin : steps) * num_row_tiles(count) * (PANEL / TILE_COLUMNS));
    alignas(64) float decoded[Weights::PACKED ? Weights::CHUNK * TILE_COLUMNS : 1];
    for (int64_t column = 0; column < PANEL; column += TILE_COLUMNS, w += TILE_COLUMNS * 4, out += TILE_COLUMNS) {
        if (count <= TILE_ROWS) {
            if constexpr (WIDE_ROWS < TILE_ROWS)
                with_rows<WIDE_ROWS + 1, TILE_ROWS>(
                    count, [&](auto m) { fp32_tile<Weights, m, TILE_VECTORS, false>(rows, w, begin, end, ahead, out); });
        } else if constexpr (Weights::PACKED) {
            fp32_decode<Weights>(w, end - begin, decoded);
            for_row_tiles(count, [&](int64_t first, auto m) {
                fp32_tile<DecodedWeights, m, TILE_VECTORS, false>(rows + first, reinterpret_cast<const char*>(decoded),
                                                                  begin, end, ahead, out + first * PANEL);
            });
        } else {
            for_row_tiles(count, [&](int64_t first, auto m) {
                fp32_tile<Weights, m, TILE_VECTORS, false>(rows + first, w, begin, end, ahead, out + first * PANEL);
            });
        }
    }
}

template <class Weights>
void fp32_multiply(int64_t inputs, const char* panel, const char* const* rows, int64_t count, float* out) {
    if (count <= WIDE_ROWS) {
        Ahead none(panel, 0, 0);
        return with_rows<1, WIDE_ROWS>(count, [&](auto m) {
            fp32_tile<Weights, m, PANEL_VECTORS, true>(rows, panel, 0, inputs, none, out);
        });
    }
    for (int64_t begin = 0; begin < inputs; begin += Weights::CHUNK) {
        const int64_t end = begin + Weights::CHUNK < inputs ? begin + Weights::CHUNK : inputs;
        fp32_chunk<Weights>(panel, begin, end, rows, count, out);
    }
}

}  // namespace moesaic
