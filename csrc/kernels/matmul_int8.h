// The int8-dot engine: `vpdpbusd` on w8a8 codes in quads and activations of 8 bits, kept as unsigned q + 128.
//
// The chain: for each group of inputs in order, out = fma(int32 sum of the group, x's scale * weights' scale, out), where
// the sum begins with -128 times the sum of the weights' codes. 255 * 127 * 65536 inputs fit in 32 bits.
#pragma once

#if defined(__AVX512VNNI__)

#include "matmul.h"
#include "matmul_tiles.h"

namespace moesaic {

// M rows times a panel over group `index`, whose codes lie at `w`.
template <int M>
__attribute__((noinline)) void int8_tile(const Form& form, int64_t index, const char* w, const char* const* rows,
                                         float* out) {
    const char* after = w + int64_t(form.chunk) * PANEL;
    const uint16_t* scales = reinterpret_cast<const uint16_t*>(after);
    const char* sums = after + PANEL * 2;
    const char* x[M];
    Int sum[M][2];
    unroll<2>([&](auto v) MOESAIC_ALWAYS {
        const Int start = _mm512_mullo_epi32(int_load(sums + v * W * 4), int_set1(-128));
        unroll<M>([&](auto m) MOESAIC_ALWAYS { sum[m][v] = start; });
    });
    unroll<M>([&](auto m) MOESAIC_ALWAYS { x[m] = rows[m] + index * form.chunk; });
    for (int64_t k = 0; k < form.chunk; k += 4, w += PANEL * 4) {
        prefetch(w + STREAM_AHEAD);
        prefetch(w + STREAM_AHEAD + 64);
        const Int w0 = int_load(w), w1 = int_load(w + 64);
        unroll<M>([&](auto m) MOESAIC_ALWAYS {
            const Int quad = broadcast_word(x[m] + k);
            add_dot_quads(sum[m][0], quad, w0);
            add_dot_quads(sum[m][1], quad, w1);
        });
    }
    unroll<M>([&](auto m) MOESAIC_ALWAYS {
        const Vec scale = set1(reinterpret_cast<const ChunkScale*>(rows[m] + form.scales_at)[index].scale);
        unroll<2>([&](auto v) MOESAIC_ALWAYS {
            float* place = out + m * PANEL + v * W;
            const Vec before = index == 0 ? zero() : load(place);
            store(place, fma(to_float(sum[m][v]), mul(scale, load_bf16(scales + v * W)), before));
        });
    });
}

inline void int8_multiply(const Form& form, const moesaic_matrix& matrix, const char* panel, const char* const* rows,
                          int64_t count, float* out) {
    const int64_t groups = form.padded / form.chunk, stride = group_bytes(matrix.format, matrix.cols);
    for (int64_t group = 0; group < groups; ++group, panel += stride) {
        const auto tile = [&](int64_t first, auto m) {
            int8_tile<m>(form, group, panel, rows + first, out + first * PANEL);
        };
        if (count <= WIDE_ROWS)
            with_rows<1, WIDE_ROWS>(count, [&](auto m) { tile(0, m); });
        else
            for_row_tiles(count, tile);
    }
}

}  // namespace moesaic

#endif
