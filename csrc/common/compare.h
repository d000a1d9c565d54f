// Comparing lanes: masks with bit i for lane i, beside the words of simd.h, and choosing by a comparison. A comparison
// with NaN is false.
#pragma once

#include "simd.h"

namespace moesaic {

#if defined(__AVX512F__)
MOESAIC_INLINE uint32_t equal(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
MOESAIC_INLINE uint32_t greater(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
MOESAIC_INLINE uint32_t at_least(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
MOESAIC_INLINE Vec where_less(Vec a, Vec b, Vec yes, Vec no) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
}
#elif defined(__AVX2__)
MOESAIC_INLINE uint32_t equal(Vec a, Vec b) { return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ))); }
MOESAIC_INLINE uint32_t greater(Vec a, Vec b) { return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ))); }
MOESAIC_INLINE uint32_t at_least(Vec a, Vec b) { return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ))); }
MOESAIC_INLINE Vec where_less(Vec a, Vec b, Vec yes, Vec no) {
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
#else
#define MOESAIC_MASK(relation)                                                   \
    uint32_t mask = 0;                                                           \
    for (int i = 0; i < W; ++i) mask |= uint32_t(a.lane[i] relation b.lane[i]) << i; \
    return mask
MOESAIC_INLINE uint32_t equal(Vec a, Vec b) { MOESAIC_MASK(==); }
MOESAIC_INLINE uint32_t greater(Vec a, Vec b) { MOESAIC_MASK(>); }
MOESAIC_INLINE uint32_t at_least(Vec a, Vec b) { MOESAIC_MASK(>=); }
#undef MOESAIC_MASK
MOESAIC_INLINE Vec where_less(Vec a, Vec b, Vec yes, Vec no) {
    for (int i = 0; i < W; ++i) yes.lane[i] = a.lane[i] < b.lane[i] ? yes.lane[i] : no.lane[i];
    return yes;
}
#endif

}  // namespace moesaic
