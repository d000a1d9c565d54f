// Products with the tiles of a KV cache. Keys and a stripe of values are the same thing, steps of 16 lanes (see
// kv_layout.h), so one kernel makes scores from queries and outputs from weights:
//
//     c[row][0..15] += sum over i of a[row][i] * step i
//
// A row's sum runs over i in order, one chain a lane, whatever the number of rows computed beside it: its bits are the
// same alone and in a tile of many.
#pragma once

#include <type_traits>

#include "../common/simd.h"
#include "kv_layout.h"

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace moesaic {

constexpr int NV = TILE / W;                // vectors of a step
constexpr int ROWS = W == 16 ? 12 : 6;      // rows computed together: what the registers hold

MOESAIC_INLINE void prefetch(const char* p) { __builtin_prefetch(p, 0, 3); }

// How the elements of a tile are read. A: an element of the other operand. T: a stored element. A step holds COUNT
// numbers for each lane; `load` decodes number s of step i.
struct FloatOperand {
    using A = float;
    using Vector = Vec;
    static constexpr bool DOT = false;
    static MOESAIC_INLINE Vec broadcast(float a) { return set1(a); }
    static MOESAIC_INLINE Vec multiply_add(Vec a, Vec b, Vec c) { return fma(a, b, c); }
};

struct TileF32 : FloatOperand {
    using T = float;
    static constexpr int COUNT = 1;
    static MOESAIC_INLINE Vec load(const T* p, int64_t i, int, int v) { return moesaic::load(p + i * TILE + v * W); }
};

struct TileF16 : FloatOperand {
    using T = uint16_t;
    static constexpr int COUNT = 1;
    static MOESAIC_INLINE Vec load(const T* p, int64_t i, int, int v) { return load_f16(p + i * TILE + v * W); }
};

struct TileInt8 : FloatOperand {
    using T = int8_t;
    static constexpr int COUNT = 1;
    static MOESAIC_INLINE Vec load(const T* p, int64_t i, int, int v) {
        p += i * TILE + v * W;
#if defined(__AVX512F__)
        return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__AVX2__)
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
        Vec r;
        for (int lane = 0; lane < W; ++lane) r.lane[lane] = float(p[lane]);
        return r;
#endif
    }
};

struct TileBf16Pairs : FloatOperand {
    using T = uint16_t;
    static constexpr int COUNT = 2;
    static MOESAIC_INLINE Vec load(const T* p, int64_t i, int s, int v) {
        p += (i * TILE + v * W) * 2;
#if defined(__AVX512F__)
        const __m512i pairs = _mm512_loadu_si512(p);
        return _mm512_castsi512_ps(s ? _mm512_and_si512(pairs, _mm512_set1_epi32(int(0xffff0000u)))
                                     : _mm512_slli_epi32(pairs, 16));
#elif defined(__AVX2__)
        const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
        return _mm256_castsi256_ps(s ? _mm256_and_si256(pairs, _mm256_set1_epi32(int(0xffff0000u)))
                                     : _mm256_slli_epi32(pairs, 16));
#else
        Vec r;
        for (int lane = 0; lane < W; ++lane) r.lane[lane] = bf16_to_float(p[2 * lane + s]);
        return r;
#endif
    }
};

#if defined(__AVX512BF16__)
// The other operand is pairs of bf16 too, and a step multiplies both.
struct TileBf16Dot {
    using A = uint32_t;
    using T = uint16_t;
    using Vector = __m512bh;
    static constexpr int COUNT = 1;
    static constexpr bool DOT = true;
    static MOESAIC_INLINE Vector broadcast(uint32_t a) { return (__m512bh)_mm512_set1_epi32(int(a)); }
    static MOESAIC_INLINE Vector load(const T* p, int64_t i, int, int) {
        return (__m512bh)_mm512_loadu_si512(p + i * TILE * 2);
    }
    static MOESAIC_INLINE Vec multiply_add(Vector a, Vector b, Vec c) { return _mm512_dpbf16_ps(c, a, b); }
};
using TileBf16 = TileBf16Dot;
#else
using TileBf16 = TileBf16Pairs;
#endif

// n numbers of a row of a, n steps of b. Meanwhile as many bytes are fetched at `ahead` as are read of b.
template <class Tile>
struct Segment {
    const typename Tile::A* a;
    const typename Tile::T* b;
    int64_t n;
    const char* ahead = nullptr;
};

// c[N rows][16] = (accumulate ? c : 0) + the products of all segments, one after the other.
template <class Tile, int N, bool FETCH>
MOESAIC_INLINE void multiply_rows(const Segment<Tile>* segments, int count, int64_t lda, float* c, int64_t ldc,
                                  bool accumulate) {
    constexpr int64_t STEP_BYTES = TILE * sizeof(typename Tile::T) * (Tile::COUNT == 2 || Tile::DOT ? 2 : 1);
    Vec sum[N][NV];
#pragma GCC unroll 16
    for (int r = 0; r < N; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < NV; ++v) sum[r][v] = accumulate ? load(c + r * ldc + v * W) : zero();
    for (const Segment<Tile>* segment = segments; segment < segments + count; ++segment) {
        const typename Tile::A* a = segment->a;
        const typename Tile::T* b = segment->b;
        const int64_t n = segment->n;
        const char* ahead = segment->ahead;
        const auto number = [&](int64_t i, int s) __attribute__((always_inline)) {
            typename Tile::Vector x[NV];
#pragma GCC unroll 2
            for (int v = 0; v < NV; ++v) x[v] = Tile::load(b, i, s, v);
#pragma GCC unroll 16
            for (int r = 0; r < N; ++r) {
                const auto factor = Tile::broadcast(a[r * lda + i * Tile::COUNT + s]);
#pragma GCC unroll 2
                for (int v = 0; v < NV; ++v) sum[r][v] = Tile::multiply_add(factor, x[v], sum[r][v]);
            }
        };
#pragma GCC unroll 2
        for (int64_t i = 0; i < n / Tile::COUNT; ++i) {
            if constexpr (FETCH) prefetch(ahead + i * STEP_BYTES);
#pragma GCC unroll 2
            for (int s = 0; s < Tile::COUNT; ++s) number(i, s);
        }
        if (Tile::COUNT == 2 && n % 2) number(n / 2, 0);
    }
#pragma GCC unroll 16
    for (int r = 0; r < N; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < NV; ++v) store(c + r * ldc + v * W, sum[r][v]);
}

// The same for any number of rows up to ROWS.
template <class Tile, bool FETCH, int N = ROWS>
MOESAIC_INLINE void multiply(int rows, const Segment<Tile>* segments, int count, int64_t lda, float* c, int64_t ldc,
                             bool accumulate) {
    if constexpr (N > 0) {
        if (rows == N) return multiply_rows<Tile, N, FETCH>(segments, count, lda, c, ldc, accumulate);
        multiply<Tile, FETCH, N - 1>(rows, segments, count, lda, c, ldc, accumulate);
    }
}

// Decode `count` numbers for each of 16 lanes to fp32 steps.
template <class Tile>
void widen(const typename Tile::T* b, int64_t count, float* out) {
    for (int64_t i = 0; i < count; ++i)
        for (int v = 0; v < NV; ++v) {
            store(out + i * TILE + v * W, Tile::load(b, i / Tile::COUNT, int(i % Tile::COUNT), v));
        }
}

// out[16][16] = in[16][16] transposed, rows 16 floats apart in both.
inline void transpose(const float* in, float* out) {
#if defined(__SSE__)
    for (int i = 0; i < TILE; i += 4)
        for (int j = 0; j < TILE; j += 4) {
            __m128 r[4];
            for (int k = 0; k < 4; ++k) r[k] = _mm_loadu_ps(in + (i + k) * TILE + j);
            _MM_TRANSPOSE4_PS(r[0], r[1], r[2], r[3]);
            for (int k = 0; k < 4; ++k) _mm_storeu_ps(out + (j + k) * TILE + i, r[k]);
        }
#else
    for (int i = 0; i < TILE; ++i)
        for (int j = 0; j < TILE; ++j) out[j * TILE + i] = in[i * TILE + j];
#endif
}

// Keys [8 pairs of numbers][16 tokens][2] as values [8 pairs of tokens][16 numbers][2].
inline void transpose_pairs(const uint16_t* in, uint16_t* out) {
    for (int d = 0; d < TILE; ++d)
        for (int t = 0; t < TILE; ++t) out[(t / 2 * TILE + d) * 2 + t % 2] = in[(d / 2 * TILE + t) * 2 + d % 2];
}

}  // namespace moesaic
