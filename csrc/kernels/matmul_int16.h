// The int16-dot engine: 8- and 4-bit codes widened to 16 bits, times activations of 16 bits (or 8, of w8a8).
//
// The chain: for each chunk of inputs in order, out = fma(int32 sum of the chunk, x's scale * weights' scale, out), then
// out = fma(x's sum, weights' offset, out) if there are offsets. Integer sums are exact and have no order: a chunk has at
// most 128 inputs, and 128 * 32767 * 128 fits in 32 bits.
#pragma once

#include "matmul.h"
#include "matmul_tiles.h"

namespace moesaic {

// Codes where they lie: a step of K inputs of a whole panel takes BYTES, W columns of it COLUMN * W; `get<U>` gives pair U
// of the step's inputs. START times the sum of a chunk's activations is what its sums begin with.
struct ByteCodes {
    static constexpr int K = 2, COLUMN = 2, BYTES = PANEL * COLUMN, START = 0, AHEAD = 2048;
    template <int U>
    static MOESAIC_INLINE Int get(const char* p) {
        return load_byte_pairs(p);
    }
};

struct NibbleCodes {  // 0..15 stand for -8..7
    static constexpr int K = 8, COLUMN = 4, BYTES = PANEL * COLUMN, START = -8, AHEAD = 2048;
    template <int U>
    static MOESAIC_INLINE Int get(const char* p) {
        return int_and(shift_right<4 * U>(int_load(p)), int_set1(0x000f000f));
    }
};

// Codes widened into a tile [pair][TILE_COLUMNS][2].
template <class Codes>
struct WidenedCodes {
    static constexpr int K = 2, COLUMN = 4, BYTES = TILE_COLUMNS * COLUMN, START = Codes::START, AHEAD = 0;
    template <int U>
    static MOESAIC_INLINE Int get(const char* p) {
        return int_load(p);
    }
};

constexpr int64_t INT16_CHUNK = 128;

// A chunk of a panel: its inputs, codes, and the scales and offsets (or null) of the group in which it lies.
struct Chunk {
    int64_t index, begin, end;
    const char* codes;
    const uint16_t* scales;
    const uint16_t* offsets;
};

// M rows times V vectors of columns over one chunk; `w`: the codes, where they lie or widened; `column`: the first one.
template <class Codes, int M, int V>
__attribute__((noinline)) void int16_tile(const Form& form, const Chunk& chunk, int64_t column, const char* w,
                                          const char* const* rows, float* out) {
    const char* x[M];
    const ChunkScale* scale[M];
    Int sum[M][V];
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
        x[m] = rows[m] + chunk.begin * 2;
        scale[m] = reinterpret_cast<const ChunkScale*>(rows[m] + form.scales_at) + chunk.index;
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sum[m][v] = Codes::START ? int_set1(Codes::START * scale[m]->code_sum) : int_zero();
    }
    const int64_t bytes = (chunk.end - chunk.begin) * 2;
    for (int64_t k = 0; k < bytes; k += Codes::K * 2, w += Codes::BYTES) {
        if constexpr (Codes::AHEAD > 0)
            for (int line = 0; line < V * W * Codes::COLUMN; line += 64) prefetch(w + Codes::AHEAD + line);
        unroll<Codes::K / 2>([&](auto u) __attribute__((always_inline)) {
            Int code[V];
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v)
                code[v] = Codes::template get<decltype(u)::value>(w + v * W * Codes::COLUMN);
#pragma GCC unroll 16
            for (int m = 0; m < M; ++m) {
                const Int pair = broadcast_word(x[m] + k + 4 * u);
#pragma GCC unroll 4
                for (int v = 0; v < V; ++v) sum[m][v] = dot_pairs(sum[m][v], pair, code[v]);
            }
        });
    }
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
        const Vec weight_scale = load_bf16(chunk.scales + column + v * W);
        const Vec offset = chunk.offsets ? load_bf16(chunk.offsets + column + v * W) : zero();
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) {
            float* place = out + m * PANEL + v * W;
            const Vec before = chunk.index == 0 ? zero() : load(place);
            Vec total = fma(to_float(sum[m][v]), mul(set1(scale[m]->scale), weight_scale), before);
            if (chunk.offsets) total = fma(set1(scale[m]->sum), offset, total);
            store(place, total);
        }
    }
}

template <class Codes>
void int16_widen(const char* w, int64_t inputs, char* tile) {
    for (int64_t k = 0; k < inputs; k += Codes::K, w += Codes::BYTES)
        unroll<Codes::K / 2>([&](auto u) __attribute__((always_inline)) {
            for (int v = 0; v < TILE_VECTORS; ++v, tile += W * 4)
                int_store(tile, Codes::template get<decltype(u)::value>(w + v * W * Codes::COLUMN));
        });
}

// Calls f(chunk) for the chunks of a panel in order.
template <class Codes, class F>
MOESAIC_INLINE void for_chunks(const Form& form, const moesaic_matrix& matrix, const char* panel, const F& f) {
    const int64_t group = group_size(matrix.format, matrix.cols), stride = group_bytes(matrix.format, matrix.cols);
    const int64_t codes_bytes = group / Codes::K * Codes::BYTES;
    int64_t index = 0;
    for (int64_t base = 0; base < form.padded; base += group, panel += stride) {
        const uint16_t* scales = reinterpret_cast<const uint16_t*>(panel + codes_bytes);
        const uint16_t* offsets = matrix.format.offsets ? scales + PANEL : nullptr;
        for (int64_t begin = 0; begin < group; begin += form.chunk, ++index) {
            const int64_t end = begin + form.chunk < group ? begin + form.chunk : group;
            f(Chunk{index, base + begin, base + end, panel + begin / Codes::K * Codes::BYTES, scales, offsets});
        }
    }
}

template <class Codes>
void int16_multiply(const Form& form, const moesaic_matrix& matrix, const char* panel, const char* const* rows,
                    int64_t count, float* out) {
    if (count <= WIDE_ROWS)
        return with_rows<WIDE_ROWS>(count, [&](auto m) {
            for_chunks<Codes>(form, matrix, panel, [&](const Chunk& chunk) {
                int16_tile<Codes, m, PANEL_VECTORS>(form, chunk, 0, chunk.codes, rows, out);
            });
        });
    alignas(64) char tile[INT16_CHUNK * TILE_COLUMNS * 2];
    const bool widen = count > TILE_ROWS;
    for_chunks<Codes>(form, matrix, panel, [&](const Chunk& chunk) {
        const int64_t bytes = (chunk.end - chunk.begin) / Codes::K * Codes::BYTES;
        SlowPrefetch next(chunk.codes + bytes, bytes + 128, PANEL / TILE_COLUMNS * ((count + TILE_ROWS - 1) / TILE_ROWS));
        for (int64_t column = 0; column < PANEL; column += TILE_COLUMNS) {
            const char* corner = chunk.codes + column * Codes::COLUMN;
            if (!widen) {
                with_rows<TILE_ROWS>(count, [&](auto m) {
                    int16_tile<Codes, m, TILE_VECTORS>(form, chunk, column, corner, rows, out + column);
                });
                continue;
            }
            int16_widen<Codes>(corner, chunk.end - chunk.begin, tile);
            for_row_tiles(count, [&](int64_t first, auto m) {
                next.step();
                int16_tile<WidenedCodes<Codes>, m, TILE_VECTORS>(form, chunk, column, tile, rows + first,
                                                                 out + first * PANEL + column);
            });
        }
    });
}

}  // namespace moesaic
