// A vector of fp32 lanes, one vocabulary for every instruction set: 16 lanes with AVX-512, 8 with AVX2, 8 in portable
// C++ (the compiler's own vectors). Kernels are written once on these words and compiled once for each target.
//
// Loads and stores are unaligned. `load_n`/`store_n` touch exactly n lanes of memory (0 <= n <= W); the others read as
// zero. Conversions to 16 bits round to nearest even; NaN stays NaN.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#define MOESAIC_INLINE inline __attribute__((always_inline))

namespace moesaic {

// ---- scalars -------------------------------------------------------------------------------------------------------

MOESAIC_INLINE float bits_to_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

MOESAIC_INLINE uint32_t float_to_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

MOESAIC_INLINE float bf16_to_float(uint16_t half) { return bits_to_float(uint32_t(half) << 16); }

MOESAIC_INLINE uint16_t float_to_bf16(float value) {
    const uint32_t bits = float_to_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t((bits >> 16) | 0x40);  // NaN: rounding could make it inf
    return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

MOESAIC_INLINE float f16_to_float(uint16_t half) {
#if defined(__F16C__)
    return _cvtsh_ss(half);
#else
    const uint32_t sign = uint32_t(half & 0x8000) << 16, exponent = (half >> 10) & 31, mantissa = half & 0x3ff;
    if (exponent == 31) return bits_to_float(sign | 0x7f800000u | (mantissa << 13));
    if (exponent != 0) return bits_to_float(sign | ((exponent + 112) << 23) | (mantissa << 13));
    const float magnitude = float(mantissa) * 5.9604644775390625e-8f;  // 2^-24: subnormal or zero
    return bits_to_float(sign | float_to_bits(magnitude));
#endif
}

MOESAIC_INLINE uint16_t float_to_f16(float value) {
#if defined(__F16C__)
    return uint16_t(_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT));
#else
    const uint32_t bits = float_to_bits(value), sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return uint16_t(sign | 0x7e00);
    if (magnitude >= 0x477ff000u) return uint16_t(sign | 0x7c00);  // rounds beyond the largest: infinity
    if (magnitude < 0x38800000u) {                                 // subnormal: let the adder round at 2^-24
        const uint32_t rounded = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000u;
        return uint16_t(sign | rounded);
    }
    return uint16_t(sign | ((magnitude - 0x38000000u + 0xfff + ((magnitude >> 13) & 1)) >> 13));
#endif
}

// ---- vectors -------------------------------------------------------------------------------------------------------

#if defined(__AVX512F__)

constexpr int W = 16;
using Vec = __m512;

MOESAIC_INLINE __mmask16 lanes(int n) { return __mmask16((1u << n) - 1); }

MOESAIC_INLINE Vec zero() { return _mm512_setzero_ps(); }
MOESAIC_INLINE Vec set1(float x) { return _mm512_set1_ps(x); }
MOESAIC_INLINE Vec load(const float* p) { return _mm512_loadu_ps(p); }
MOESAIC_INLINE Vec load_n(const float* p, int n) { return _mm512_maskz_loadu_ps(lanes(n), p); }
MOESAIC_INLINE void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
MOESAIC_INLINE void store_n(float* p, Vec v, int n) { _mm512_mask_storeu_ps(p, lanes(n), v); }
MOESAIC_INLINE Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
MOESAIC_INLINE Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
MOESAIC_INLINE Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
MOESAIC_INLINE Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
MOESAIC_INLINE Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }  // b where either is NaN
MOESAIC_INLINE Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
MOESAIC_INLINE Vec sqrt(Vec a) { return _mm512_sqrt_ps(a); }
MOESAIC_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }   // a * b + c
MOESAIC_INLINE Vec fnma(Vec a, Vec b, Vec c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a * b
MOESAIC_INLINE Vec abs(Vec a) { return _mm512_abs_ps(a); }
MOESAIC_INLINE Vec round(Vec a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
MOESAIC_INLINE Vec scale_by_power(Vec a, Vec n) { return _mm512_scalef_ps(a, n); }  // a * 2^n, n whole, |n| <= 127

MOESAIC_INLINE Vec load_bf16(const uint16_t* p) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
}
MOESAIC_INLINE Vec load_f16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
MOESAIC_INLINE void store_bf16(uint16_t* p, Vec v) {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i r = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    r = _mm512_mask_or_epi32(r, nan, _mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x40));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(r));
}
MOESAIC_INLINE void store_f16(uint16_t* p, Vec v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}

#elif defined(__AVX2__)

constexpr int W = 8;
using Vec = __m256;

MOESAIC_INLINE __m256i lanes(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

MOESAIC_INLINE Vec zero() { return _mm256_setzero_ps(); }
MOESAIC_INLINE Vec set1(float x) { return _mm256_set1_ps(x); }
MOESAIC_INLINE Vec load(const float* p) { return _mm256_loadu_ps(p); }
MOESAIC_INLINE Vec load_n(const float* p, int n) { return _mm256_maskload_ps(p, lanes(n)); }
MOESAIC_INLINE void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
MOESAIC_INLINE void store_n(float* p, Vec v, int n) { _mm256_maskstore_ps(p, lanes(n), v); }
MOESAIC_INLINE Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
MOESAIC_INLINE Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
MOESAIC_INLINE Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
MOESAIC_INLINE Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
MOESAIC_INLINE Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }  // b where either is NaN
MOESAIC_INLINE Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
MOESAIC_INLINE Vec sqrt(Vec a) { return _mm256_sqrt_ps(a); }
MOESAIC_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }   // a * b + c
MOESAIC_INLINE Vec fnma(Vec a, Vec b, Vec c) { return _mm256_fnmadd_ps(a, b, c); }  // c - a * b
MOESAIC_INLINE Vec abs(Vec a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
MOESAIC_INLINE Vec round(Vec a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
MOESAIC_INLINE Vec scale_by_power(Vec a, Vec n) {  // a * 2^n, n whole, |n| <= 127
    const __m256i bits = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(a, _mm256_castsi256_ps(bits));
}

MOESAIC_INLINE Vec load_bf16(const uint16_t* p) {
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
}
MOESAIC_INLINE Vec load_f16(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
MOESAIC_INLINE void store_bf16(uint16_t* p, Vec v) {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i r = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    r = _mm256_blendv_epi8(r, _mm256_or_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x40)), nan);
    const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
}
MOESAIC_INLINE void store_f16(uint16_t* p, Vec v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}

#else

constexpr int W = 8;
struct Vec {
    float lane __attribute__((vector_size(W * sizeof(float))));
};

// Where the compiler's vectors have no operator, lane by lane.
#define MOESAIC_LANES(expression)                         \
    Vec r;                                                \
    for (int i = 0; i < W; ++i) r.lane[i] = (expression); \
    return r

MOESAIC_INLINE Vec set1(float x) { MOESAIC_LANES(x); }
MOESAIC_INLINE Vec zero() { return Vec{}; }
MOESAIC_INLINE Vec load(const float* p) {
    Vec r;
    std::memcpy(&r, p, sizeof r);
    return r;
}
MOESAIC_INLINE Vec load_n(const float* p, int n) { MOESAIC_LANES(i < n ? p[i] : 0.0f); }
MOESAIC_INLINE void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }
MOESAIC_INLINE void store_n(float* p, Vec v, int n) { std::memcpy(p, &v, size_t(n) * sizeof(float)); }
MOESAIC_INLINE Vec add(Vec a, Vec b) { return {a.lane + b.lane}; }
MOESAIC_INLINE Vec sub(Vec a, Vec b) { return {a.lane - b.lane}; }
MOESAIC_INLINE Vec mul(Vec a, Vec b) { return {a.lane * b.lane}; }
MOESAIC_INLINE Vec div(Vec a, Vec b) { return {a.lane / b.lane}; }
MOESAIC_INLINE Vec max(Vec a, Vec b) { return {a.lane > b.lane ? a.lane : b.lane}; }
MOESAIC_INLINE Vec min(Vec a, Vec b) { return {a.lane < b.lane ? a.lane : b.lane}; }
MOESAIC_INLINE Vec sqrt(Vec a) { MOESAIC_LANES(std::sqrt(a.lane[i])); }
MOESAIC_INLINE Vec fma(Vec a, Vec b, Vec c) { return {a.lane * b.lane + c.lane}; }
MOESAIC_INLINE Vec fnma(Vec a, Vec b, Vec c) { return {c.lane - a.lane * b.lane}; }
MOESAIC_INLINE Vec abs(Vec a) { MOESAIC_LANES(std::fabs(a.lane[i])); }
MOESAIC_INLINE Vec round(Vec a) { MOESAIC_LANES(std::nearbyint(a.lane[i])); }
MOESAIC_INLINE Vec scale_by_power(Vec a, Vec n) {  // a * 2^n, n whole, |n| <= 127
    MOESAIC_LANES(a.lane[i] * bits_to_float(uint32_t(int32_t(n.lane[i]) + 127) << 23));
}
MOESAIC_INLINE Vec load_bf16(const uint16_t* p) { MOESAIC_LANES(bf16_to_float(p[i])); }
MOESAIC_INLINE Vec load_f16(const uint16_t* p) { MOESAIC_LANES(f16_to_float(p[i])); }
MOESAIC_INLINE void store_bf16(uint16_t* p, Vec v) {
    for (int i = 0; i < W; ++i) p[i] = float_to_bf16(v.lane[i]);
}
MOESAIC_INLINE void store_f16(uint16_t* p, Vec v) {
    for (int i = 0; i < W; ++i) p[i] = float_to_f16(v.lane[i]);
}
#undef MOESAIC_LANES

#endif

// ---- built from the words above ------------------------------------------------------------------------------------

// Sum and maximum of the lanes, halves folded onto each other: the same order on every call.
MOESAIC_INLINE float reduce_add(Vec v) {
    float lane[W];
    store(lane, v);
    for (int half = W / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
    return lane[0];
}

MOESAIC_INLINE float reduce_max(Vec v) {
    float lane[W];
    store(lane, v);
    for (int half = W / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) lane[i] = lane[i] > lane[i + half] ? lane[i] : lane[i + half];
    return lane[0];
}

// e^x to about 1 ulp between -87 and 88, clamped outside (Cephes' expf: reduction by ln 2 in two parts, degree 5).
// NaN stays NaN: `max` and `min` give their second operand then.
MOESAIC_INLINE Vec exp(Vec x) {
    x = min(set1(88.0f), max(set1(-87.0f), x));
    const Vec n = round(mul(x, set1(1.44269504088896341f)));
    Vec r = fnma(n, set1(0.693359375f), x);
    r = fnma(n, set1(-2.12194440e-4f), r);
    Vec p = set1(1.9875691500e-4f);
    p = fma(p, r, set1(1.3981999507e-3f));
    p = fma(p, r, set1(8.3334519073e-3f));
    p = fma(p, r, set1(4.1665795894e-2f));
    p = fma(p, r, set1(1.6666665459e-1f));
    p = fma(p, r, set1(5.0000001201e-1f));
    p = fma(p, mul(r, r), add(r, set1(1.0f)));
    return scale_by_power(p, n);
}

// 1 / (1 + e^-x)
MOESAIC_INLINE Vec sigmoid(Vec x) { return div(set1(1.0f), add(set1(1.0f), exp(sub(zero(), x)))); }

// log(1 + e^x) = max(x, 0) + log(1 + t), log(1 + t) of t = e^-|x| as 2 artanh(t / (2 + t)), whose series ends early there.
MOESAIC_INLINE Vec softplus(Vec x) {
    const Vec t = exp(sub(zero(), abs(x)));
    const Vec s = div(t, add(t, set1(2.0f)));
    const Vec q = mul(s, s);
    Vec series = set1(2.0f / 17);
    for (int odd = 15; odd >= 1; odd -= 2) series = fma(series, q, set1(2.0f / float(odd)));
    return fma(s, series, max(x, zero()));
}

// tanh x = 1 - 2 / (e^2x + 1): absolute error about 1e-7.
MOESAIC_INLINE Vec tanh(Vec x) {
    return sub(set1(1.0f), div(set1(2.0f), add(exp(add(x, x)), set1(1.0f))));
}

}  // namespace moesaic
