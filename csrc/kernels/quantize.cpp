#include "quantize.h"

#include <algorithm>
#include <cmath>

#include "../common/simd.h"

namespace moesaic {
namespace {

// The least bf16 that is not below `x` >= 0, so that no code leaves its range.
uint16_t bf16_above(float x) {
    const uint32_t bits = float_to_bits(x);
    return uint16_t((bits >> 16) + ((bits & 0xffff) != 0));
}

}  // namespace

void quantise(const float* x, int64_t n, const moesaic_format& format, Group& group) {
    const bool nibbles = format.kind == MOESAIC_W4;
    const float half = nibbles ? 7.0f : 127.0f;
    float low = INFINITY, high = -INFINITY;
    for (int64_t i = 0; i < n; ++i) low = std::min(low, x[i]), high = std::max(high, x[i]);
    group.offset = format.offsets ? float_to_bf16(0.5f * (low + high)) : uint16_t(0);
    const float offset = bf16_to_float(group.offset);
    group.scale = bf16_above(std::max(high - offset, offset - low) / half);
    const float scale = bf16_to_float(group.scale), inverse = scale > 0 ? 1.0f / scale : 0.0f;
    for (int64_t i = 0; i < n; ++i) {
        const float code = std::nearbyint((x[i] - offset) * inverse);
        group.codes[i] = int8_t(std::clamp(code, -half, half)) + (nibbles ? 8 : 0);
    }
}

}  // namespace moesaic
