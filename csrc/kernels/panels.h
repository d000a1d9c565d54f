// Rows become columns of a panel: W rows of 32-bit units are transposed at a time. A unit is one fp32 or two halves.
#pragma once

#include "../common/formats.h"
#include "../common/simd.h"

namespace moesaic {

// Columns [first, first + count) of a panel; count is W, or less at the ends of a range of rows.
struct Strip {
    int64_t first;
    int count;
};

#if defined(__AVX2__)

// Row r's unit i, for eight rows `stride` units apart and eight units, becomes out[i * out_stride + r].
MOESAIC_INLINE void transpose_8x8(const uint32_t* rows, int64_t stride, uint32_t* out, int64_t out_stride) {
    __m256 r[8], t[8];
    for (int i = 0; i < 8; ++i) r[i] = _mm256_loadu_ps(reinterpret_cast<const float*>(rows + i * stride));
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    for (int i = 0; i < 4; ++i) {
        auto* low = reinterpret_cast<float*>(out + i * out_stride);
        auto* high = reinterpret_cast<float*>(out + (i + 4) * out_stride);
        _mm256_storeu_ps(low, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
        _mm256_storeu_ps(high, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
    }
}

#endif

// Units [count, n] of rows `stride` units apart go to [n, out_stride]: out[i * out_stride + r] is row r's unit i.
inline void transpose(const uint32_t* rows, int64_t stride, int count, int64_t n, uint32_t* out, int64_t out_stride) {
    int64_t i = 0;
#if defined(__AVX2__)
    for (; count == W && i + 8 <= n; i += 8) {
        for (int r = 0; r < W; r += 8) transpose_8x8(rows + r * stride + i, stride, out + i * out_stride + r, out_stride);
    }
#endif
    for (; i < n; ++i) {
        for (int r = 0; r < count; ++r) out[i * out_stride + r] = rows[r * stride + i];
    }
}

}  // namespace moesaic
