// The bf16-dot engine: `vdpbf16ps` on bf16 weights where they lie and activations rounded to bf16.
//
// The chain: sum = dot(x[k..k+1], w[k..k+1], sum) for k = 0, 2, ... . Many rows take a chunk of K at a time, so that
// its weights stay in the first-level cache, and carry their sums in `out`.
#pragma once

#if defined(__AVX512BF16__)

#include "matmul.h"
#include "matmul_tiles.h"

namespace moesaic {

constexpr int64_t BF16_CHUNK = 256;

MOESAIC_INLINE Vec dot_bf16(Vec sum, Int x, Int w) { return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)w); }

// M rows times a panel over inputs [begin, end); `w` is where input `begin` lies.
template <int M>
__attribute__((noinline)) void bf16_tile(const char* const* rows, const char* w, int64_t begin, int64_t end,
                                         float* out) {
    Vec sum[M][2];
    unroll<M>([&](auto m) MOESAIC_ALWAYS {
        unroll<2>([&](auto v) MOESAIC_ALWAYS { sum[m][v] = begin == 0 ? zero() : load(out + m * PANEL + v * W); });
    });
    for (int64_t k = begin; k < end; k += 2, w += PANEL * 4) {
        prefetch(w + STREAM_AHEAD);
        prefetch(w + STREAM_AHEAD + 64);
        const Int w0 = int_load(w), w1 = int_load(w + 64);
        unroll<M>([&](auto m) MOESAIC_ALWAYS {
            const Int x = broadcast_word(rows[m] + k * 2);
            sum[m][0] = dot_bf16(sum[m][0], x, w0);
            sum[m][1] = dot_bf16(sum[m][1], x, w1);
        });
    }
    unroll<M>([&](auto m) MOESAIC_ALWAYS {
        unroll<2>([&](auto v) MOESAIC_ALWAYS { store(out + m * PANEL + v * W, sum[m][v]); });
    });
}

inline void bf16_multiply(int64_t inputs, const char* panel, const char* const* rows, int64_t count, float* out) {
    if (count <= WIDE_ROWS)
        return with_rows<1, WIDE_ROWS>(count, [&](auto m) { bf16_tile<m>(rows, panel, 0, inputs, out); });
    for (int64_t begin = 0; begin < inputs; begin += BF16_CHUNK) {
        const int64_t end = begin + BF16_CHUNK < inputs ? begin + BF16_CHUNK : inputs;
        for_row_tiles(count, [&](int64_t first, auto m) {
            bf16_tile<m>(rows + first, panel + begin * PANEL * 2, begin, end, out + first * PANEL);
        });
    }
}

}  // namespace moesaic

#endif
