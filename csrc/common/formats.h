// The bytes of a packed matrix: one place that knows them, read by packing and by every kernel.
//
// A matrix of N outputs and K inputs is cut into panels of 32 outputs (N is padded to 32 with zeros; of a gated matrix
// panel p holds gate's rows 16p.. in columns 0..15 and up's in 16..31). A panel is contiguous and read front to back:
//
//   f32         [K][32] floats
//   f16, bf16   [K/2][32][2] halves: two consecutive inputs of a column side by side (K padded to even)
//   w8          for each group of G inputs: [G/2][32][2] signed bytes q, then 32 bf16 scales s, then 32 bf16 offsets o
//               if the format has them: w = s * q + o
//   w4          for each group: [G/8][32][2] 16-bit words, then scales and offsets as above; nibble j (bits 4j..4j+3)
//               of word b of column c is input 8i + 2j + b: w = s * (q - 8) + o, q in 0..15
//   w8a8        as w8, without offsets; with VNNI [G/4][32][4] signed bytes instead, and after the scales 32 int32
//               sums of the group's codes
//   mxfp4       as w4 in groups of 32, without offsets; q in 0..15 is the number's rank among the sixteen that E2M1 has
//               (-0 before 0), s is half of the group's scale: w = s * t, t = MXFP4_STEPS[q] - 12 twice the number
//
// K is padded to a whole number of groups with codes that stand for 0 (q = 0 in w8; in w4 the padding's activations
// are 0, whatever the code; in mxfp4 too). A group of 0 means one group of all K, padded to a multiple of 8.
#pragma once

#include "../abi/types.h"

namespace moesaic {

constexpr int64_t PANEL = 32;

inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

inline bool quantised(const moesaic_format& f) { return f.kind >= MOESAIC_W8; }

// Whether codes lie two in a byte.
inline bool nibbles(const moesaic_format& f) { return f.kind == MOESAIC_W4 || f.kind == MOESAIC_MXFP4; }

// Of mxfp4's ranks: twice the number that each stands for, above the least of them. Rank 0 has step 0.
constexpr uint8_t MXFP4_STEPS[16] = {0, 4, 6, 8, 9, 10, 11, 12, 12, 13, 14, 15, 16, 18, 20, 24};
constexpr int MXFP4_LEAST = -12;

// The rank of E2M1's bits: magnitudes rise with the low three, the fourth is the sign.
inline int mxfp4_rank(uint8_t bits) { return bits & 8 ? 7 - (bits & 7) : 8 + (bits & 7); }

// Whether w8a8 codes lie as VNNI instructions want them, in quads.
constexpr bool quad_bytes() {
#if defined(__AVX512VNNI__)
    return true;
#else
    return false;
#endif
}

// Inputs that share a scale.
inline int64_t group_size(const moesaic_format& f, int64_t cols) { return f.group > 0 ? f.group : round_up(cols, 8); }

// Inputs as stored, padding included.
inline int64_t padded_cols(const moesaic_format& f, int64_t cols) {
    if (quantised(f)) return round_up(cols, group_size(f, cols));
    return f.kind == MOESAIC_F32 ? cols : round_up(cols, 2);
}

inline int64_t num_panels(const moesaic_format& f, int64_t rows) {
    return f.gated ? (rows / 2 + 15) / 16 : (rows + PANEL - 1) / PANEL;
}

// Bytes of one group's codes in a panel.
inline int64_t code_bytes(const moesaic_format& f, int64_t cols) {
    return group_size(f, cols) * PANEL / (nibbles(f) ? 2 : 1);
}

// Bytes of one group of a panel: codes, scales, and what follows them.
inline int64_t group_bytes(const moesaic_format& f, int64_t cols) {
    const int64_t sums = f.kind == MOESAIC_W8A8 && quad_bytes() ? PANEL * 4 : 0;
    return code_bytes(f, cols) + PANEL * 2 + (f.offsets ? PANEL * 2 : 0) + sums;
}

inline int64_t panel_bytes(const moesaic_format& f, int64_t cols) {
    const int64_t k = padded_cols(f, cols);
    if (quantised(f)) return k / group_size(f, cols) * group_bytes(f, cols);
    return k * PANEL * (f.kind == MOESAIC_F32 ? 4 : 2);
}

inline int64_t matrix_bytes(const moesaic_format& f, int64_t rows, int64_t cols) {
    return num_panels(f, rows) * panel_bytes(f, cols);
}

}  // namespace moesaic
