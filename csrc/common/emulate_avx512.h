// Included before anything else where AVX-512 is emulated (MOESAIC_EMULATE_AVX512 in CMakeLists.txt): SIMDe's functions
// under Intel's names, compiled for AVX2, and the macros by which kernels ask for the instruction set. It tests what
// kernels for AVX-512 compute on machines without it; it says nothing of their speed.
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

// What SIMDe leaves out and kernels use, each in terms of AVX2 or lane by lane. Masked lanes touch no memory.
namespace emulated {

template <class To, class From>
inline To as(const From& from) {
    static_assert(sizeof(To) == sizeof(From), "reinterpreted bits");
    To to;
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}

template <class Half>
struct Halves {
    Half low, high;
};

inline __m512 loadu(__mmask16 mask, const void* p) {
    float lane[16];
    for (int i = 0; i < 16; ++i) lane[i] = mask >> i & 1 ? static_cast<const float*>(p)[i] : 0.0f;
    return as<__m512>(lane);
}

inline void storeu(void* p, __mmask16 mask, __m512 v) {
    const auto lanes = as<Halves<Halves<__m128>>>(v);
    for (int i = 0; i < 16; ++i)
        if (mask >> i & 1) __builtin_memcpy(static_cast<float*>(p) + i, reinterpret_cast<const float*>(&lanes) + i, 4);
}

inline __m512 to_float(__m512i v) {
    const auto half = as<Halves<__m256i>>(v);
    return as<__m512>(Halves<__m256>{_mm256_cvtepi32_ps(half.low), _mm256_cvtepi32_ps(half.high)});
}

inline __m512i to_int(__m512 v) {
    const auto half = as<Halves<__m256>>(v);
    return as<__m512i>(Halves<__m256i>{_mm256_cvtps_epi32(half.low), _mm256_cvtps_epi32(half.high)});
}

inline __m512i widen_words(__m256i v) {
    const auto half = as<Halves<__m128i>>(v);
    return as<__m512i>(Halves<__m256i>{_mm256_cvtepu16_epi32(half.low), _mm256_cvtepu16_epi32(half.high)});
}

inline __m512i widen_bytes(__m128i v) {
    return as<__m512i>(Halves<__m256i>{_mm256_cvtepi8_epi32(v), _mm256_cvtepi8_epi32(_mm_srli_si128(v, 8))});
}

inline __m512 half_to_float(__m256i v) {
    const auto half = as<Halves<__m128i>>(v);
    return as<__m512>(Halves<__m256>{_mm256_cvtph_ps(half.low), _mm256_cvtph_ps(half.high)});
}

inline __m256i float_to_half(__m512 v) {
    const auto half = as<Halves<__m256>>(v);
    return as<__m256i>(Halves<__m128i>{_mm256_cvtps_ph(half.low, 0), _mm256_cvtps_ph(half.high, 0)});
}

inline __m512d to_double(__m256 v) {
    const auto half = as<Halves<__m128>>(v);
    return as<__m512d>(Halves<__m256d>{_mm256_cvtps_pd(half.low), _mm256_cvtps_pd(half.high)});
}

inline __m512i shift_right_signed(__m512i v, int bits) {
    const auto half = as<Halves<__m256i>>(v);
    return as<__m512i>(Halves<__m256i>{_mm256_srai_epi32(half.low, bits), _mm256_srai_epi32(half.high, bits)});
}

// The low bits of every lane.
template <class To, class Narrow>
inline To truncate(__m512i v) {
    int32_t lane[16];
    Narrow narrow[16];
    __builtin_memcpy(lane, &v, sizeof v);
    for (int i = 0; i < 16; ++i) narrow[i] = static_cast<Narrow>(lane[i]);
    return as<To>(narrow);
}

}  // namespace emulated

#undef _mm512_madd_epi16  // SIMDe has its masked form under this name
#define _mm512_madd_epi16(a, b) simde_mm512_madd_epi16(a, b)
#define _mm512_maskz_loadu_ps(mask, p) emulated::loadu(mask, p)
#define _mm512_mask_storeu_ps(p, mask, v) emulated::storeu(p, mask, v)
#define _mm512_cvtepi32_ps(v) emulated::to_float(v)
#define _mm512_cvtps_epi32(v) emulated::to_int(v)
#define _mm512_cvtepu16_epi32(v) emulated::widen_words(v)
#define _mm512_cvtepi8_epi32(v) emulated::widen_bytes(v)
#define _mm512_cvtph_ps(v) emulated::half_to_float(v)
#define _mm512_cvtps_ph(v, rounding) emulated::float_to_half(v)
#define _mm512_cvtps_pd(v) emulated::to_double(v)
#define _mm512_extractf32x8_ps(v, i) \
    (i ? emulated::as<emulated::Halves<__m256>>(v).high : emulated::as<emulated::Halves<__m256>>(v).low)
#define _mm512_srai_epi32(v, bits) emulated::shift_right_signed(v, bits)
#define _mm512_cvtepi32_epi16(v) (emulated::truncate<__m256i, int16_t>(v))
#define _mm512_cvtepi32_epi8(v) (emulated::truncate<__m128i, int8_t>(v))

#define __AVX512F__ 1
#define __AVX512BW__ 1
#define __AVX512VL__ 1
#define __AVX512DQ__ 1
#if MOESAIC_EMULATE_AVX512 > 1
#define __AVX512VNNI__ 1
#define __AVX512VBMI__ 1
#define __AVX512BF16__ 1
#endif
