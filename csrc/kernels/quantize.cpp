// The quantiser. For codes q of a group, the scale s and offset o that minimise sum (x - s q - o)^2 are a straight-line
// fit; for s and o, the best codes are x rounded. Alternating the two only ever lowers the error, to a minimum near
// its start; so it starts from several clipped ranges and keeps the best. No calibration data is looked at.
//
// One pass over the group rounds x and sums q, q^2 and xq: that gives the fit, and the error of the fit as bf16 holds
// it, without a second pass. Every lane is a row: nothing is summed across lanes, products are rounded before they are
// added, and so every instruction set finds the same bits.
#include "quantize.h"

#include <algorithm>
#include <cmath>

namespace moesaic {
namespace {

constexpr float LEAST_SCALE = 1e-36f;  // a group below it is all alike: the reciprocal would overflow
constexpr int TOGETHER = 3;            // starts that are tried in one pass

// One number for each row. Loops over lanes are the compiler's to vectorise.
struct Lanes {
    alignas(64) float at[W];
};

// To bf16 and back, to nearest even; not for NaN.
MOESAIC_INLINE float as_bf16(float x) {
    const uint32_t bits = float_to_bits(x);
    return bits_to_float((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u);
}

struct Line {
    Lanes scale, offset;
};

// Of the codes, counted from the one that stands for the offset.
struct Range {
    float low, high;
};

MOESAIC_INLINE Vec code_of(Vec x, Vec offset, Vec inverse, Range range) {
    return round(min(max(mul(sub(x, offset), inverse), set1(range.low)), set1(range.high)));
}

MOESAIC_INLINE Lanes inverse_of(const Lanes& scale) {
    Lanes r;
    for (int l = 0; l < W; ++l) {
        const float inverse = 1.0f / scale.at[l];  // outside the choice, or the loop is not vectorised
        r.at[l] = std::fabs(scale.at[l]) > LEAST_SCALE ? inverse : 0.0f;
    }
    return r;
}

// The search for the best line of each row; the weights are centred on `mean` where there are offsets.
class Search {
public:
    Search(const float* x, int64_t n, Range range, bool offsets, const Lanes& mean, const Lanes& squares)
        : x_(x), n_(n), range_(range), offsets_(offsets), mean_(mean), squares_(squares) {
        for (int l = 0; l < W; ++l) {
            best_error_.at[l] = INFINITY;
            best.scale.at[l] = 0;  // kept where no fit is found: all weights alike
            best.offset.at[l] = offsets ? as_bf16(mean.at[l]) - mean.at[l] : 0.0f;
        }
    }

    // Round with each line, fit a new one to the codes in its place, and keep it where it is the best.
    template <int N>
    void step(Line* lines) {
        Vec inverse[N], offset[N], q[N], qq[N], xq[N];
        for (int j = 0; j < N; ++j) {
            inverse[j] = load(inverse_of(lines[j].scale).at), offset[j] = load(lines[j].offset.at);
            q[j] = qq[j] = xq[j] = zero();
        }
        for (int64_t i = 0; i < n_; ++i) {
            const Vec x = load(x_ + i * W);
            for (int j = 0; j < N; ++j) {
                const Vec code = code_of(x, offset[j], inverse[j], range_);
                q[j] = add(q[j], code);
                qq[j] = add(qq[j], mul(code, code));
                xq[j] = add(xq[j], mul(code, x));
            }
        }
        for (int j = 0; j < N; ++j) fit(lines[j], q[j], qq[j], xq[j]);
    }

    Line best;

private:
    void fit(Line& line, Vec q_sums, Vec qq_sums, Vec xq_sums) {
        Lanes q, qq, xq;
        store(q.at, q_sums), store(qq.at, qq_sums), store(xq.at, xq_sums);
        const float count = float(n_), with_offset = offsets_ ? 1.0f : 0.0f;
        for (int l = 0; l < W; ++l) {
            const float mean_code = with_offset * q.at[l] / count, spread = qq.at[l] - mean_code * q.at[l];
            const float ratio = xq.at[l] / spread, scale = spread > 0 ? ratio : 0.0f, offset = -scale * mean_code;
            line.scale.at[l] = scale, line.offset.at[l] = offset;
            const float s = as_bf16(scale), o = with_offset * (as_bf16(offset + mean_.at[l]) - mean_.at[l]);
            const float error = squares_.at[l] - 2 * s * xq.at[l] + s * s * qq.at[l] + 2 * s * o * q.at[l] + count * o * o;
            const bool better = (scale != 0) & (error < best_error_.at[l]);
            best_error_.at[l] = better ? error : best_error_.at[l];
            best.scale.at[l] = better ? s : best.scale.at[l];
            best.offset.at[l] = better ? o : best.offset.at[l];
        }
    }

    const float* x_;
    int64_t n_;
    Range range_;
    bool offsets_;
    Lanes mean_, squares_, best_error_;
};

struct Extent {
    Lanes low, high, mean;
};

Extent extent_of(const float* x, int64_t n) {
    Vec low = set1(INFINITY), high = set1(-INFINITY), sum = zero();
    for (int64_t i = 0; i < n; ++i) {
        const Vec value = load(x + i * W);
        low = min(low, value), high = max(high, value), sum = add(sum, value);
    }
    Extent e;
    store(e.low.at, low), store(e.high.at, high), store(e.mean.at, div(sum, set1(float(n))));
    return e;
}

// Takes the mean away; the sum of squares of what is left.
Lanes centre(float* x, int64_t n, const Lanes& mean) {
    Vec squares = zero();
    for (int64_t i = 0; i < n; ++i) {
        const Vec value = sub(load(x + i * W), load(mean.at));
        store(x + i * W, value);
        squares = add(squares, mul(value, value));
    }
    Lanes r;
    store(r.at, squares);
    return r;
}

// The line whose codes span the extent, clipped on either side by a share of its half.
Line spanning(const Extent& e, Range range, float clip_low, float clip_high) {
    Line line;
    for (int l = 0; l < W; ++l) {
        const float middle = 0.5f * (e.low.at[l] + e.high.at[l]) - e.mean.at[l], half = 0.5f * (e.high.at[l] - e.low.at[l]);
        const float low = middle - half * (1 - clip_low), high = middle + half * (1 - clip_high);
        line.scale.at[l] = (high - low) / (range.high - range.low);
        line.offset.at[l] = low - line.scale.at[l] * range.low;
    }
    return line;
}

// Without an offset: the weight of largest magnitude gets the code of largest magnitude, whatever its sign, or is
// clipped a little. (Of 4 bits that is -8: a scale may be negative.)
Line reaching(const Extent& e, Range range, float clip) {
    Line line;
    for (int l = 0; l < W; ++l) {
        const float largest = e.high.at[l] > -e.low.at[l] ? e.high.at[l] : e.low.at[l];
        const float code = range.low + range.high != 0 ? range.low : std::copysign(range.high, largest);
        line.scale.at[l] = largest * (1 - clip) / code, line.offset.at[l] = 0;
    }
    return line;
}

// Eight bits gain nothing from clipping. Four do, more so in a long group, whose range is wider.
void search(Search& s, const Extent& e, Range range, bool few_bits, bool offsets, int64_t n) {
    if (!few_bits) {
        Line line = offsets ? spanning(e, range, 0, 0) : reaching(e, range, 0);
        s.step<1>(&line);
        return;
    }
    const float unit = n > 128 ? 0.15f : 0.1f;
    for (int i = 0; i < (offsets ? TOGETHER : 2); ++i) {
        Line starts[TOGETHER];
        for (int j = 0; j < TOGETHER; ++j) {
            starts[j] = offsets ? spanning(e, range, unit * float(i), unit * float(j))
                                : reaching(e, range, 0.5f * unit * float(i * TOGETHER + j));
        }
        s.step<TOGETHER>(starts);
    }
    Line line = s.best;
    for (int i = 0; i < 3; ++i) s.step<1>(&line);
}

}  // namespace

void quantise(float* x, int64_t n, const moesaic_format& format, Groups& groups) {
    const bool few_bits = format.kind == MOESAIC_W4, offsets = format.offsets != 0;
    const Range range = few_bits ? Range{-8, 7} : Range{-127, 127};
    Extent extent = extent_of(x, n);
    if (!offsets) extent.mean = Lanes{};
    const Lanes squares = centre(x, n, extent.mean);
    Search found(x, n, range, offsets, extent.mean, squares);
    search(found, extent, range, few_bits, offsets, n);
    const Vec inverse = load(inverse_of(found.best.scale).at), offset = load(found.best.offset.at);
    const Vec bias = set1(few_bits ? 8.0f : 0.0f);
    for (int64_t i = 0; i < n; ++i) store(x + i * W, add(code_of(load(x + i * W), offset, inverse, range), bias));
    for (int l = 0; l < W; ++l) {
        groups.scale[l] = squares.at[l] < INFINITY ? found.best.scale.at[l] : NAN;
        groups.offset[l] = offsets ? as_bf16(found.best.offset.at[l] + extent.mean.at[l]) : 0.0f;
    }
}

}  // namespace moesaic
