// What becomes of the fp32 [count][32] that a panel gives: scale, bias, activation, and to its place in the output.
#pragma once

#include "activation.h"
#include "matmul.h"

namespace moesaic {

constexpr int HALF = PANEL / 2;

// Columns of the output: all of them, and those that one panel gives.
inline int64_t output_size(const moesaic_matrix& matrix) { return matrix.format.gated ? matrix.rows / 2 : matrix.rows; }
inline int64_t panel_columns(const moesaic_matrix& matrix) { return matrix.format.gated ? HALF : PANEL; }

// activation(scale * sums + bias) for one panel of a matrix.
class PanelOutput {
public:
    // bias: [matrix.rows] or null.
    PanelOutput(const moesaic_matrix& matrix, int64_t panel, const float* bias, const moesaic_activate& activation)
        : activation_(activation), gated_(matrix.format.gated), first_(panel * panel_columns(matrix)) {
        const int64_t left = output_size(matrix) - first_;
        columns_ = int(left < panel_columns(matrix) ? left : panel_columns(matrix));
        bias_ = bias ? bias + first_ : nullptr;
        up_bias_ = bias && gated_ ? bias_ + matrix.rows / 2 : nullptr;
    }

    // out: a row of the output, of which this panel's columns are written.
    MOESAIC_INLINE void write(const float* sums, float scale, float* out) const {
        for (int i = 0; i < columns_; i += W) {
            const int n = columns_ - i < W ? columns_ - i : W;
            Vec value = affine(load(sums + i), scale, bias_, i, n);
            if (gated_)
                value = activate_gated(activation_, value, affine(load(sums + HALF + i), scale, up_bias_, i, n));
            else
                value = activate(activation_, value);
            store_n(out + first_ + i, value, n);
        }
    }

private:
    static MOESAIC_INLINE Vec affine(Vec value, float scale, const float* bias, int i, int n) {
        return bias ? fma(value, set1(scale), load_n(bias + i, n)) : mul(value, set1(scale));
    }

    moesaic_activate activation_;
    bool gated_;
    int64_t first_;
    int columns_;
    const float* bias_;
    const float* up_bias_;
};

}  // namespace moesaic
