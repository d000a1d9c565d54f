// Choosing the codes of a group of weights, its scale and its offset: least squares over the group, from several starts.
#pragma once

#include "../common/formats.h"
#include "../common/simd.h"

namespace moesaic {

// Raised when the same weights become other codes: packed files of an older version are then not used.
constexpr int QUANTISER_VERSION = 1;

// Scale and offset of the groups of W rows, as bf16 holds them. Weight i of a row is about scale * code + offset, for
// w4 scale * (code - 8) + offset; codes are -127..127, for w4 0..15. The offset is 0 where the format has none. A group
// that holds infinity or NaN gets a NaN for its scale, so that it shows. Of mxfp4: code and scale as they are kept.
struct Groups {
    float scale[W], offset[W];
};

// One group of `n` inputs of W rows, a row in each lane: `x` [n, W]; its weights become their codes. The result has the
// same bits on every instruction set.
void quantise(float* x, int64_t n, const moesaic_format& format, Groups& groups);

}  // namespace moesaic
