// Sums of fp32 lanes in double.
#pragma once

#include "simd.h"

namespace moesaic {

#if defined(__AVX512F__)

class DoubleSum {
public:
    MOESAIC_INLINE void add(Vec v) {
        low_ = _mm512_add_pd(low_, _mm512_cvtps_pd(_mm512_castps512_ps256(v)));
        high_ = _mm512_add_pd(high_, _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1)));
    }
    MOESAIC_INLINE double total() const {
        double lane[8];
        _mm512_storeu_pd(lane, _mm512_add_pd(low_, high_));
        return ((lane[0] + lane[4]) + (lane[1] + lane[5])) + ((lane[2] + lane[6]) + (lane[3] + lane[7]));
    }

private:
    __m512d low_ = _mm512_setzero_pd(), high_ = _mm512_setzero_pd();
};

#elif defined(__AVX2__)

class DoubleSum {
public:
    MOESAIC_INLINE void add(Vec v) {
        low_ = _mm256_add_pd(low_, _mm256_cvtps_pd(_mm256_castps256_ps128(v)));
        high_ = _mm256_add_pd(high_, _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1)));
    }
    MOESAIC_INLINE double total() const {
        double lane[4];
        _mm256_storeu_pd(lane, _mm256_add_pd(low_, high_));
        return (lane[0] + lane[2]) + (lane[1] + lane[3]);
    }

private:
    __m256d low_ = _mm256_setzero_pd(), high_ = _mm256_setzero_pd();
};

#else

class DoubleSum {
public:
    MOESAIC_INLINE void add(Vec v) {
        for (int i = 0; i < W; ++i) lane_[i] += double(v.lane[i]);
    }
    MOESAIC_INLINE double total() const {
        double sum = 0.0;
        for (double lane : lane_) sum += lane;
        return sum;
    }

private:
    double lane_[W] = {};
};

#endif

// The last vector of n values that fill no whole one: the lanes beyond them read as `pad`.
MOESAIC_INLINE Vec load_padded(const float* p, int64_t n, float pad) {
    float lane[W];
    store(lane, set1(pad));
    std::memcpy(lane, p, size_t(n) * sizeof(float));
    return load(lane);
}

}  // namespace moesaic
