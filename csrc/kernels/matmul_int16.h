// The int16-dot engine: 8- and 4-bit codes and 4-bit floats, widened to integers of 16 bits, times activations of 16 bits (or 8, of w8a8).
//
// The chain: for each chunk of inputs in order, out = fma(int32 sum of the chunk, x's scale * weights' scale, out), then
// out = fma(x's sum, weights' offset, out) if there are offsets; it begins with out = 0. Integer sums are exact and have
// no order: a chunk has at most 128 inputs, and 128 * 32767 * 128 fits in 32 bits.
//
// A few rows take a panel from end to end; more take a span of chunks at a time, tile after tile. Many rows have a
// span's codes widened once, into memory that stays in the first-level cache.
#pragma once

#include "matmul.h"
#include "matmul_tiles.h"

namespace moesaic {

// Codes where they lie: a step of K inputs of a whole panel takes BYTES, W columns of it COLUMN * W; `get<U>` gives pair U
// of the step's inputs. START times the sum of a chunk's activations is what its sums begin with.
// A stream of them is prefetched AHEAD bytes before its use (measured on Zen 3: bytes 2 to 4 % slower further ahead, nibbles
// as much faster, since a step of them is twice the work).
struct ByteCodes {
    static constexpr int K = 2, COLUMN = 2, BYTES = PANEL * COLUMN, START = 0, AHEAD = STREAM_AHEAD;
    template <int U>
    static MOESAIC_INLINE Int get(const char* p) {
        return load_byte_pairs(p);
    }
};

struct NibbleCodes {  // 0..15 stand for -8..7
    static constexpr int K = 8, COLUMN = 4, BYTES = PANEL * COLUMN, START = -8, AHEAD = STREAM_AHEAD * 3 / 2;
    template <int U>
    static MOESAIC_INLINE Int get(const char* p) {
        if constexpr (U == 3) return shift_right_halves<12>(int_load(p));  // nothing is left to mask
        else return int_and(shift_right<4 * U>(int_load(p)), int_set1(0x000f000f));
    }
};

struct Mxfp4Codes {  // ranks, looked up: 0..24 stand for -12..12
    static constexpr int K = 8, COLUMN = 4, BYTES = PANEL * COLUMN, START = MXFP4_LEAST, AHEAD = NibbleCodes::AHEAD;
    template <int U>
    static MOESAIC_INLINE Int get(const char* p) {
        return look_up(MXFP4_STEPS, NibbleCodes::get<U>(p));
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

constexpr int64_t INT16_CHUNK = 128;  // most inputs of a chunk
constexpr int64_t INT16_SPAN = 512;   // most inputs of a span: a tile of 16 KiB where it has 16 columns

// Chunks of a panel that follow each other. A chunk is a group, or, of a whole row's group, a piece of it.
struct Span {
    int64_t first, begin, end;  // index of the first chunk, its first input, and the end of the last one's
    const char* codes;          // of the first chunk, and from a chunk to the next
    int64_t codes_step;
    const uint16_t* scales;
    int64_t scales_step;
    bool offsets;  // after the scales
};

// One step of M rows times V vectors of columns. The fewer of activations and codes stay in registers.
template <class Codes, int M, int V>
MOESAIC_INLINE void int16_step(const char* const* x, int64_t byte, const char* w, Int (&sum)[M][V]) {
    unroll<Codes::K / 2>([&](auto u) MOESAIC_ALWAYS {
        const auto code = [&](int v) MOESAIC_ALWAYS {
            return Codes::template get<decltype(u)::value>(w + v * W * Codes::COLUMN);
        };
        const auto pair = [&](int m) MOESAIC_ALWAYS { return broadcast_word(x[m] + byte + 4 * u); };
        Int kept[M < V ? M : V];
        if constexpr (M < V) {
            unroll<M>([&](auto m) MOESAIC_ALWAYS { kept[m] = pair(m); });
            unroll<V>([&](auto v) MOESAIC_ALWAYS {
                Int wide = code(v);
                hold(wide);
                unroll<M>([&](auto m) MOESAIC_ALWAYS { add_dot_pairs(sum[m][v], kept[m], wide); });
            });
        } else {
            unroll<V>([&](auto v) MOESAIC_ALWAYS { kept[v] = code(v); });
            unroll<M>([&](auto m) MOESAIC_ALWAYS {
                Int x_pair = pair(m);
                hold(x_pair);
                unroll<V>([&](auto v) MOESAIC_ALWAYS { add_dot_pairs(sum[m][v], x_pair, kept[v]); });
            });
        }
    });
}

// out[m] += what a chunk's sums stand for.
template <int M, int V, bool OFFSETS>
MOESAIC_INLINE void int16_finish(const ChunkScale* const* scale, int64_t chunk, const uint16_t* scales,
                                 const Int (&sum)[M][V], float* out) {
    unroll<V>([&](auto v) MOESAIC_ALWAYS {
        const Vec weight_scale = load_bf16(scales + v * W);
        const Vec offset = OFFSETS ? load_bf16(scales + PANEL + v * W) : zero();
        unroll<M>([&](auto m) MOESAIC_ALWAYS {
            float* place = out + m * PANEL + v * W;
            const ChunkScale& x = scale[m][chunk];
            Vec total = fma(to_float(sum[m][v]), mul(set1(x.scale), weight_scale), load(place));
            if (OFFSETS) total = fma(set1(x.sum), offset, total);
            store(place, total);
        });
    });
}

// M rows times V vectors of columns from `column` on over a span; `w`: its codes, where they lie or widened, `w_step`
// from a chunk to the next. With STREAM they come from memory in this order, and are prefetched; otherwise `shared` says
// what is.
template <class Codes, int M, int V, bool STREAM>
__attribute__((noinline)) void int16_tile(const Form& form, const Span& span, int64_t column, const char* w,
                                          int64_t w_step, const char* const* rows, Ahead& shared, float* out) {
    Ahead ahead = shared;
    const ChunkScale* scale[M];
    for (int m = 0; m < M; ++m) scale[m] = reinterpret_cast<const ChunkScale*>(rows[m] + form.scales_at) + span.first;
    const uint16_t* scales = span.scales + column;
    int64_t chunk = 0;
    for (int64_t begin = span.begin; begin < span.end; begin += form.chunk, ++chunk, w += w_step) {
        Int sum[M][V];
        const char* x[M];
        unroll<M>([&](auto m) MOESAIC_ALWAYS {
            x[m] = rows[m] + begin * 2;
            const Int start = Codes::START ? int_set1(Codes::START * scale[m][chunk].code_sum) : int_zero();
            unroll<V>([&](auto v) MOESAIC_ALWAYS { sum[m][v] = start; });
        });
        const int64_t bytes = (span.end - begin < form.chunk ? span.end - begin : form.chunk) * 2;
        const char* code = w;
        for (int64_t byte = 0; byte < bytes; byte += Codes::K * 2, code += Codes::BYTES) {
            if constexpr (STREAM)
                for (int line = 0; line < Codes::BYTES; line += 64) prefetch(code + Codes::AHEAD + line);
            else
                ahead.step();
            int16_step<Codes>(x, byte, code, sum);
        }
        if constexpr (STREAM) prefetch(code + Codes::AHEAD);  // scales and perhaps offsets take one line or two
        if constexpr (STREAM) prefetch(code + Codes::AHEAD + 64);
        if (span.offsets)
            int16_finish<M, V, true>(scale, chunk, scales, sum, out);
        else
            int16_finish<M, V, false>(scale, chunk, scales, sum, out);
        scales += span.scales_step;
    }
    shared = ahead;
}

// Widens TILE_COLUMNS columns of a span; `w` is where its first one's codes lie.
template <class Codes>
void int16_widen(const Form& form, const Span& span, const char* w, char* tile) {
    for (int64_t begin = span.begin; begin < span.end; begin += form.chunk, w += span.codes_step) {
        const int64_t inputs = span.end - begin < form.chunk ? span.end - begin : form.chunk;
        const char* code = w;
        for (int64_t k = 0; k < inputs; k += Codes::K, code += Codes::BYTES)
            unroll<Codes::K / 2>([&](auto u) MOESAIC_ALWAYS {
                for (int v = 0; v < TILE_VECTORS; ++v, tile += W * 4)
                    int_store(tile, Codes::template get<decltype(u)::value>(code + v * W * Codes::COLUMN));
            });
    }
}

// Chunks [first, ...) of a panel that hold at most `most` inputs.
template <class Codes>
Span span_of(const Form& form, const moesaic_matrix& matrix, const char* panel, int64_t first, int64_t most) {
    const int64_t group = group_size(matrix.format, matrix.cols), bytes = group_bytes(matrix.format, matrix.cols);
    const int64_t begin = first * form.chunk, fitting = begin + most / form.chunk * form.chunk;
    const int64_t whole = group != form.chunk;  // chunks are pieces of one group
    const int64_t codes_step = whole ? form.chunk / Codes::K * Codes::BYTES : bytes;
    const char* scales = panel + group / Codes::K * Codes::BYTES + (whole ? 0 : first * bytes);
    return {first,
            begin,
            fitting < form.padded ? fitting : form.padded,
            panel + first * codes_step,
            codes_step,
            reinterpret_cast<const uint16_t*>(scales),
            whole ? 0 : bytes / 2,
            matrix.format.offsets != 0};
}

// A span of a panel, of which all rows take TILE_COLUMNS at a time.
template <class Codes>
void int16_span(const Form& form, const Span& span, const char* const* rows, int64_t count, float* out) {
    const int64_t inputs = span.end - span.begin, bytes = inputs / form.chunk * span.codes_step;
    const int64_t steps = inputs / (count > TILE_ROWS ? 2 : Codes::K);
    Ahead ahead(span.codes + bytes, bytes, steps * num_row_tiles(count) * (PANEL / TILE_COLUMNS));
    alignas(64) char widened[INT16_SPAN * TILE_COLUMNS * 2];
    const char* w = span.codes;
    for (int64_t column = 0; column < PANEL; column += TILE_COLUMNS, w += TILE_COLUMNS * Codes::COLUMN) {
        if (count <= TILE_ROWS) {
            if constexpr (WIDE_ROWS < TILE_ROWS)
                with_rows<WIDE_ROWS + 1, TILE_ROWS>(count, [&](auto m) {
                    int16_tile<Codes, m, TILE_VECTORS, false>(form, span, column, w, span.codes_step, rows, ahead,
                                                              out + column);
                });
            continue;
        }
        int16_widen<Codes>(form, span, w, widened);
        for_row_tiles(count, [&](int64_t first, auto m) {
            int16_tile<WidenedCodes<Codes>, m, TILE_VECTORS, false>(form, span, column, widened,
                                                                    form.chunk * TILE_COLUMNS * 2, rows + first, ahead,
                                                                    out + first * PANEL + column);
        });
    }
}

template <class Codes>
void int16_multiply(const Form& form, const moesaic_matrix& matrix, const char* panel, const char* const* rows,
                    int64_t count, float* out) {
    std::memset(out, 0, size_t(count) * PANEL * sizeof(float));
    if (count <= WIDE_ROWS) {
        const Span span = span_of<Codes>(form, matrix, panel, 0, form.padded + form.chunk);
        Ahead none(panel, 0, 0);
        return with_rows<1, WIDE_ROWS>(count, [&](auto m) {
            int16_tile<Codes, m, PANEL_VECTORS, true>(form, span, 0, span.codes, span.codes_step, rows, none, out);
        });
    }
    for (int64_t chunk = 0; chunk * form.chunk < form.padded; chunk += INT16_SPAN / form.chunk)
        int16_span<Codes>(form, span_of<Codes>(form, matrix, panel, chunk, INT16_SPAN), rows, count, out);
}

}  // namespace moesaic
