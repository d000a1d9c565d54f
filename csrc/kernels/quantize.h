// Choosing the codes of a group of weights, its scale and its offset.
#pragma once

#include "../common/formats.h"

namespace moesaic {

// What a group becomes: weight i is about scale * codes[i] + offset, for w4 scale * (codes[i] - 8) + offset.
// Codes are -127..127, for w4 0..15; scale and offset are bf16 (offset 0 where the format has none).
struct Group {
    int8_t* codes;
    uint16_t scale;
    uint16_t offset;
};

// `x` holds `n` weights; room for round_up(n, 16) codes.
void quantise(const float* x, int64_t n, const moesaic_format& format, Group& group);

}  // namespace moesaic
