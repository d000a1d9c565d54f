// The words that products need beside those of common/simd.h: W lanes of 32-bit integers, each of which may hold a pair
// of 16-bit or a quad of 8-bit numbers, and W columns of weights out of a packed panel.
#pragma once

#include "../common/simd.h"

namespace moesaic {

#if defined(__AVX512F__)

using Int = __m512i;

MOESAIC_INLINE Int int_zero() { return _mm512_setzero_si512(); }
MOESAIC_INLINE Int int_set1(int32_t x) { return _mm512_set1_epi32(x); }
MOESAIC_INLINE Int int_load(const void* p) { return _mm512_loadu_si512(p); }
MOESAIC_INLINE void int_store(void* p, Int v) { _mm512_storeu_si512(p, v); }
MOESAIC_INLINE Int int_add(Int a, Int b) { return _mm512_add_epi32(a, b); }
MOESAIC_INLINE Int int_and(Int a, Int b) { return _mm512_and_si512(a, b); }
template <int BITS>
MOESAIC_INLINE Int shift_left(Int a) {
    return _mm512_slli_epi32(a, BITS);
}
template <int BITS>
MOESAIC_INLINE Int shift_right(Int a) {
    return _mm512_srli_epi32(a, BITS);
}
template <int BITS>
MOESAIC_INLINE Int shift_right_signed(Int a) {
    return _mm512_srai_epi32(a, BITS);
}
template <int BITS>
MOESAIC_INLINE Int shift_right_halves(Int a) {
    return _mm512_srli_epi16(a, BITS);
}
MOESAIC_INLINE Int to_int(Vec v) { return _mm512_cvtps_epi32(v); }  // to nearest even
MOESAIC_INLINE Vec to_float(Int v) { return _mm512_cvtepi32_ps(v); }
MOESAIC_INLINE Vec as_float(Int v) { return _mm512_castsi512_ps(v); }
MOESAIC_INLINE Int as_int(Vec v) { return _mm512_castps_si512(v); }

// W pairs of signed bytes, widened to pairs of 16-bit numbers.
MOESAIC_INLINE Int load_byte_pairs(const void* p) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
}

// table[byte] for every byte, which is 0..15.
MOESAIC_INLINE Int look_up(const uint8_t (&table)[16], Int bytes) {
    const __m128i entries = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(entries), bytes);
}

// sum += a.low * w.low + a.high * w.high in every lane. As assembly: gcc 12 moves sums to and fro around its own intrinsics
// of these instructions, more than half of the time of a large tile.
MOESAIC_INLINE void add_dot_pairs(Int& sum, Int a, Int w) {
#if defined(MOESAIC_EMULATE_AVX512) && defined(__AVX512VNNI__)
    sum = _mm512_dpwssd_epi32(sum, a, w);
#elif defined(MOESAIC_EMULATE_AVX512)
    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(a, w));
#elif defined(__AVX512VNNI__)
    asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(w));
#else
    asm("vpaddd %1, %0, %0" : "+v"(sum) : "v"(_mm512_madd_epi16(a, w)));
#endif
}

#if defined(__AVX512VNNI__)
// sum += the four products of a's unsigned and w's signed bytes in every lane.
MOESAIC_INLINE void add_dot_quads(Int& sum, Int a, Int w) {
#if defined(MOESAIC_EMULATE_AVX512)
    sum = _mm512_dpbusd_epi32(sum, a, w);
#else
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(w));
#endif
}
#endif

// sum += a * w.
MOESAIC_INLINE void add_product(Vec& sum, Vec a, Vec w) { sum = fma(a, w, sum); }

template <class Vector>
MOESAIC_INLINE void hold(Vector&) {}

MOESAIC_INLINE void store_int16(int16_t* p, Int v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(v));
}

#elif defined(__AVX2__)

using Int = __m256i;

MOESAIC_INLINE Int int_zero() { return _mm256_setzero_si256(); }
MOESAIC_INLINE Int int_set1(int32_t x) { return _mm256_set1_epi32(x); }
MOESAIC_INLINE Int int_load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
MOESAIC_INLINE void int_store(void* p, Int v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
MOESAIC_INLINE Int int_add(Int a, Int b) { return _mm256_add_epi32(a, b); }
MOESAIC_INLINE Int int_and(Int a, Int b) { return _mm256_and_si256(a, b); }
template <int BITS>
MOESAIC_INLINE Int shift_left(Int a) {
    return _mm256_slli_epi32(a, BITS);
}
template <int BITS>
MOESAIC_INLINE Int shift_right(Int a) {
    return _mm256_srli_epi32(a, BITS);
}
template <int BITS>
MOESAIC_INLINE Int shift_right_signed(Int a) {
    return _mm256_srai_epi32(a, BITS);
}
template <int BITS>
MOESAIC_INLINE Int shift_right_halves(Int a) {
    return _mm256_srli_epi16(a, BITS);
}
MOESAIC_INLINE Int to_int(Vec v) { return _mm256_cvtps_epi32(v); }  // to nearest even
MOESAIC_INLINE Vec to_float(Int v) { return _mm256_cvtepi32_ps(v); }
MOESAIC_INLINE Vec as_float(Int v) { return _mm256_castsi256_ps(v); }
MOESAIC_INLINE Int as_int(Vec v) { return _mm256_castps_si256(v); }

// W pairs of signed bytes, widened to pairs of 16-bit numbers.
MOESAIC_INLINE Int load_byte_pairs(const void* p) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(static_cast<const __m128i*>(p)));
}

// table[byte] for every byte, which is 0..15.
MOESAIC_INLINE Int look_up(const uint8_t (&table)[16], Int bytes) {
    const __m128i entries = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(entries), bytes);
}

// AVX2 has just the registers that a tile's sums, weights and one activation fill. Left to itself, gcc begins many
// products at once or lets a product take the activation's place, and drives sums out to the stack. So sums are added to
// where they are, and what is held is made in the order that it is written in.
template <class Vector>
MOESAIC_INLINE void hold(Vector& v) {
    asm volatile("" : "+x"(v));
}

// sum += a.low * w.low + a.high * w.high in every lane.
MOESAIC_INLINE void add_dot_pairs(Int& sum, Int a, Int w) {
    asm volatile("vpaddd %1, %0, %0" : "+x"(sum) : "x"(_mm256_madd_epi16(a, w)));
}

// sum += a * w.
MOESAIC_INLINE void add_product(Vec& sum, Vec a, Vec w) {
    asm volatile("vfmadd231ps %1, %2, %0" : "+x"(sum) : "x"(a), "x"(w));
}

MOESAIC_INLINE void store_int16(int16_t* p, Int v) {
    const __m128i packed = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
}

#else

struct Int {
    int32_t lane[W];
};

template <class Lane>
MOESAIC_INLINE Int int_lanes(const Lane& lane) {
    Int r;
    for (int i = 0; i < W; ++i) r.lane[i] = lane(i);
    return r;
}

MOESAIC_INLINE int32_t low_half(int32_t pair) { return int16_t(uint32_t(pair) & 0xffff); }
MOESAIC_INLINE int32_t high_half(int32_t pair) { return int16_t(uint32_t(pair) >> 16); }

MOESAIC_INLINE Int int_set1(int32_t x) {
    return int_lanes([&](int) { return x; });
}
MOESAIC_INLINE Int int_zero() { return int_set1(0); }
MOESAIC_INLINE Int int_load(const void* p) {
    Int r;
    std::memcpy(&r, p, sizeof r);
    return r;
}
MOESAIC_INLINE void int_store(void* p, Int v) { std::memcpy(p, &v, sizeof v); }
MOESAIC_INLINE Int int_add(Int a, Int b) {
    return int_lanes([&](int i) { return int32_t(uint32_t(a.lane[i]) + uint32_t(b.lane[i])); });
}
MOESAIC_INLINE Int int_and(Int a, Int b) {
    return int_lanes([&](int i) { return a.lane[i] & b.lane[i]; });
}
template <int BITS>
MOESAIC_INLINE Int shift_left(Int a) {
    return int_lanes([&](int i) { return int32_t(uint32_t(a.lane[i]) << BITS); });
}
template <int BITS>
MOESAIC_INLINE Int shift_right(Int a) {
    return int_lanes([&](int i) { return int32_t(uint32_t(a.lane[i]) >> BITS); });
}
template <int BITS>
MOESAIC_INLINE Int shift_right_signed(Int a) {
    return int_lanes([&](int i) { return a.lane[i] >> BITS; });
}
template <int BITS>
MOESAIC_INLINE Int shift_right_halves(Int a) {
    return int_lanes([&](int i) {
        const uint32_t x = uint32_t(a.lane[i]);
        return int32_t((x & 0xffff) >> BITS | x >> (16 + BITS) << 16);
    });
}
MOESAIC_INLINE Int to_int(Vec v) {  // to nearest even; beyond the range and NaN as the vector instructions do
    return int_lanes([&](int i) {
        return v.lane[i] > -2147483648.0f && v.lane[i] < 2147483648.0f ? int32_t(std::nearbyint(v.lane[i])) : INT32_MIN;
    });
}
MOESAIC_INLINE Vec to_float(Int v) {
    Vec r;
    for (int i = 0; i < W; ++i) r.lane[i] = float(v.lane[i]);
    return r;
}
MOESAIC_INLINE Vec as_float(Int v) {
    Vec r;
    std::memcpy(&r, &v, sizeof r);
    return r;
}
MOESAIC_INLINE Int as_int(Vec v) {
    Int r;
    std::memcpy(&r, &v, sizeof r);
    return r;
}

// W pairs of signed bytes, widened to pairs of 16-bit numbers.
MOESAIC_INLINE Int load_byte_pairs(const void* p) {
    const int8_t* byte = static_cast<const int8_t*>(p);
    return int_lanes([&](int i) { return int32_t(uint32_t(uint16_t(byte[2 * i])) | uint32_t(byte[2 * i + 1]) << 16); });
}

// table[byte] for every byte, which is 0..15.
MOESAIC_INLINE Int look_up(const uint8_t (&table)[16], Int bytes) {
    uint8_t byte[W * 4];
    std::memcpy(byte, &bytes, sizeof byte);
    for (uint8_t& b : byte) b = table[b & 15];
    return int_load(byte);
}

// sum += a.low * w.low + a.high * w.high in every lane.
MOESAIC_INLINE void add_dot_pairs(Int& sum, Int a, Int w) {
    for (int i = 0; i < W; ++i)
        sum.lane[i] += low_half(a.lane[i]) * low_half(w.lane[i]) + high_half(a.lane[i]) * high_half(w.lane[i]);
}

// sum += a * w.
MOESAIC_INLINE void add_product(Vec& sum, Vec a, Vec w) { sum = fma(a, w, sum); }

template <class Vector>
MOESAIC_INLINE void hold(Vector&) {}

MOESAIC_INLINE void store_int16(int16_t* p, Int v) {
    for (int i = 0; i < W; ++i) {
        const int32_t x = v.lane[i];
        p[i] = int16_t(x < -32768 ? -32768 : x > 32767 ? 32767 : x);
    }
}

#endif

// ---- built from the words above ------------------------------------------------------------------------------------

// Two neighbouring 16-bit numbers, or four bytes, of a row of activations in every lane.
MOESAIC_INLINE Int broadcast_word(const void* p) {
#if defined(__AVX2__)
    float word;  // as a float: Zen 3 takes `vpbroadcastd` for a little more work than `vbroadcastss`
    std::memcpy(&word, p, 4);
    return as_int(set1(word));
#else
    int32_t word;
    std::memcpy(&word, p, 4);
    return int_set1(word);
#endif
}

// The even (low) and odd (high) halves of W words, as fp32.
MOESAIC_INLINE Vec even_bf16(Int words) { return as_float(shift_left<16>(words)); }
MOESAIC_INLINE Vec odd_bf16(Int words) { return as_float(int_and(words, int_set1(int32_t(0xffff0000u)))); }

// fp16's exponent and fraction moved into place, then 2^112 makes up for the difference of the biases: exact for
// every finite number, subnormal ones included. Infinities become 65536 and more: weights have none.
MOESAIC_INLINE Vec odd_f16(Int words) {
    const Int moved = int_and(shift_right_signed<3>(words), int_set1(int32_t(0x8fffe000u)));
    return mul(as_float(moved), set1(5192296858534827628530496329220096.0f));
}
MOESAIC_INLINE Vec even_f16(Int words) { return odd_f16(shift_left<16>(words)); }

MOESAIC_INLINE int32_t int_reduce_add(Int v) {
    uint32_t lane[W], sum = 0;
    int_store(lane, v);
    for (int i = 0; i < W; ++i) sum += lane[i];
    return int32_t(sum);
}

MOESAIC_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }

}  // namespace moesaic
