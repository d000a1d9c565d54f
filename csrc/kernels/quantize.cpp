// The quantiser. For codes q of a group, the scale s and offset o that minimise sum (x - s q - o)^2 are a straight-line
// fit; for s and o, the best codes are x rounded. Alternating the two only ever lowers the error, to a minimum near
// its start; so it starts from several clipped ranges and keeps the best. No calibration data is looked at.
//
// One pass over the group rounds x and sums q, q^2 and xq: that gives the fit, and the error of the fit as bf16 holds
// it, without a second pass. Every lane is a row: nothing is summed across lanes, products are rounded before they are
// added, and so every instruction set finds the same bits.
#include "quantize.h"

#include <cmath>

#include "../common/compare.h"

namespace moesaic {
namespace {

constexpr float LEAST_SCALE = 1e-36f;  // with less a group counts as all alike: the reciprocal would overflow
constexpr int TOGETHER = 3;            // starts that are tried in one pass

MOESAIC_INLINE Vec negative(Vec a) { return sub(zero(), a); }

// To bf16 and back.
MOESAIC_INLINE Vec as_bf16(Vec x) {
    uint16_t halves[W];
    store_bf16(halves, x);
    return load_bf16(halves);
}

struct Line {
    Vec scale, offset;
};

// Of the codes, counted from the one that stands for the offset.
struct Range {
    float low, high;
};

MOESAIC_INLINE Vec code_of(Vec x, Vec offset, Vec inverse, Range range) {
    return round(min(max(mul(sub(x, offset), inverse), set1(range.low)), set1(range.high)));
}

MOESAIC_INLINE Vec inverse_of(Vec scale) {
    return where_less(set1(LEAST_SCALE), abs(scale), div(set1(1.0f), scale), zero());
}

// The search for the best line of each row; the weights are centred on `mean` where there are offsets.
class Search {
public:
    Search(const float* x, int64_t n, Range range, bool offsets, Vec mean, Vec squares)
        : x_(x), n_(n), range_(range), offsets_(offsets), mean_(mean), squares_(squares), best_error_(set1(INFINITY)) {
        best.scale = zero();  // kept where no fit is found: all weights alike
        best.offset = offsets ? sub(as_bf16(mean), mean) : zero();
    }

    // Round with each line, fit a new one to the codes in its place, and keep it where it is the best.
    template <int N>
    void step(Line* lines) {
        Vec inverse[N], offset[N], q[N], qq[N], xq[N];
        for (int j = 0; j < N; ++j) {
            inverse[j] = inverse_of(lines[j].scale), offset[j] = lines[j].offset;
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
    void fit(Line& line, Vec q, Vec qq, Vec xq) {
        const Vec count = set1(float(n_)), mean_code = offsets_ ? div(q, count) : zero();
        const Vec spread = sub(qq, mul(mean_code, q));
        line.scale = where_less(zero(), spread, div(xq, spread), zero());
        line.offset = negative(mul(line.scale, mean_code));
        const Vec s = as_bf16(line.scale), o = offsets_ ? sub(as_bf16(add(line.offset, mean_)), mean_) : zero();
        // sum (x - s q - o)^2, where sum x is 0 if there is an offset
        const Vec of_scale = mul(s, sub(mul(s, qq), add(xq, xq)));
        const Vec of_offset = mul(o, add(mul(add(s, s), q), mul(count, o)));
        Vec error = add(add(squares_, of_scale), of_offset);
        error = where_less(zero(), abs(s), error, set1(INFINITY));
        best.scale = where_less(error, best_error_, s, best.scale);
        best.offset = where_less(error, best_error_, o, best.offset);
        best_error_ = where_less(error, best_error_, error, best_error_);
    }

    const float* x_;
    int64_t n_;
    Range range_;
    bool offsets_;
    Vec mean_, squares_, best_error_;
};

struct Extent {
    Vec low, high, mean;
};

Extent extent_of(const float* x, int64_t n) {
    Vec low = set1(INFINITY), high = set1(-INFINITY), sum = zero();
    for (int64_t i = 0; i < n; ++i) {
        const Vec value = load(x + i * W);
        low = min(low, value), high = max(high, value), sum = add(sum, value);
    }
    return {low, high, div(sum, set1(float(n)))};
}

// Takes the mean away; the sum of squares of what is left.
Vec centre(float* x, int64_t n, Vec mean) {
    Vec squares = zero();
    for (int64_t i = 0; i < n; ++i) {
        const Vec value = sub(load(x + i * W), mean);
        store(x + i * W, value);
        squares = add(squares, mul(value, value));
    }
    return squares;
}

// The line whose codes span the extent, clipped on either side by a share of its half.
Line spanning(const Extent& e, Range range, float clip_low, float clip_high) {
    const Vec middle = sub(mul(set1(0.5f), add(e.low, e.high)), e.mean), half = mul(set1(0.5f), sub(e.high, e.low));
    const Vec low = sub(middle, mul(half, set1(1 - clip_low))), high = add(middle, mul(half, set1(1 - clip_high)));
    const Vec scale = mul(sub(high, low), set1(1.0f / (range.high - range.low)));
    return {scale, sub(low, mul(scale, set1(range.low)))};
}

// Without an offset: the weight of largest magnitude gets the code of largest magnitude, whatever its sign, or is
// clipped a little. (Of 4 bits that code is -8, and so a scale may be negative.)
Line reaching(const Extent& e, Range range, float clip) {
    const Vec largest = where_less(negative(e.low), e.high, e.high, e.low);
    const Vec signed_scale = mul(largest, set1((1 - clip) / range.low));
    return {range.low + range.high != 0 ? signed_scale : abs(signed_scale), zero()};
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

// The OCP Microscaling Formats' conversion: the shared scale is the largest power of two not above the largest magnitude,
// over that of E2M1's largest number (6: 4); numbers are rounded to nearest even, and clamped to 6.
void quantise_mxfp4(float* x, int64_t n, Groups& groups) {
    const Extent extent = extent_of(x, n);
    float power[W];
    store(power, max(abs(extent.low), abs(extent.high)));
    for (float& p : power) p = bits_to_float(float_to_bits(p) & 0x7f800000u);
    const Vec scale = mul(load(power), set1(0.25f)), inverse = inverse_of(scale);
    Vec squares = zero();
    for (int64_t i = 0; i < n; ++i) {
        const Vec value = load(x + i * W), twice = mul(abs(value), add(inverse, inverse));
        const Vec upper = min(add(round(mul(twice, set1(0.25f))), set1(4)), set1(7));  // 4 and 6
        const Vec middle = add(round(mul(twice, set1(0.5f))), set1(2));                // 2 and 3
        const Vec magnitude = where_less(twice, set1(4), round(twice), where_less(twice, set1(8), middle, upper));
        squares = add(squares, mul(value, value));
        store(x + i * W, where_less(value, zero(), sub(set1(7), magnitude), add(set1(8), magnitude)));
    }
    const Vec kept = where_less(set1(LEAST_SCALE), scale, mul(scale, set1(0.5f)), zero());
    store(groups.scale, where_less(squares, set1(INFINITY), kept, set1(NAN)));
    store(groups.offset, zero());
}

}  // namespace

void quantise(float* x, int64_t n, const moesaic_format& format, Groups& groups) {
    if (format.kind == MOESAIC_MXFP4) return quantise_mxfp4(x, n, groups);
    const bool few_bits = format.kind == MOESAIC_W4, offsets = format.offsets != 0;
    const Range range = few_bits ? Range{-8, 7} : Range{-127, 127};
    Extent extent = extent_of(x, n);
    if (!offsets) extent.mean = zero();
    const Vec squares = centre(x, n, extent.mean);
    Search found(x, n, range, offsets, extent.mean, squares);
    search(found, extent, range, few_bits, offsets, n);
    const Vec inverse = inverse_of(found.best.scale), bias = set1(few_bits ? 8.0f : 0.0f);
    for (int64_t i = 0; i < n; ++i) {
        store(x + i * W, add(code_of(load(x + i * W), found.best.offset, inverse, range), bias));
    }
    store(groups.scale, where_less(squares, set1(INFINITY), found.best.scale, set1(NAN)));
    store(groups.offset, offsets ? add(found.best.offset, extent.mean) : zero());
}

}  // namespace moesaic
