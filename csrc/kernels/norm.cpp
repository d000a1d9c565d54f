// RMS norm and layer norm of rows, with the residual's addition before them where there is one.
//
// A row's sums run over four vectors of lanes whose order depends on the row's length alone: the same bits in any batch.
#include "../abi/norm.h"

#include "../common/rows.h"
#include "../common/team.h"

namespace moesaic {
namespace {

constexpr int64_t WORK = 32768;  // elements that are worth a thread

// The sum of map(x) over a row. What a last vector lacks reads as `pad`, of which map must make 0.
template <class Map>
MOESAIC_INLINE float sum_row(const float* x, int64_t n, float pad, const Map& map) {
    Vec sums[4] = {zero(), zero(), zero(), zero()};
    int64_t i = 0;
    for (; i + 4 * W <= n; i += 4 * W)
        for (int j = 0; j < 4; ++j) sums[j] = add(sums[j], map(load(x + i + j * W)));
    for (; i + W <= n; i += W) sums[0] = add(sums[0], map(load(x + i)));
    if (i < n) {
        float last[W];
        store(last, set1(pad));
        std::memcpy(last, x + i, size_t(n - i) * sizeof(float));
        sums[1] = add(sums[1], map(load(last)));
    }
    return reduce_add(add(add(sums[0], sums[1]), add(sums[2], sums[3])));
}

void add_row(float* x, const float* delta, float alpha, int64_t n) {
    const Vec factor = set1(alpha);
    each_vector(n, [&](int64_t i, int m) { put(x + i, fma(get(delta + i, m), factor, get(x + i, m)), m); });
}

void rms_row(const moesaic_norm_args& a, const float* x, float* out) {
    const float squares = sum_row(x, a.size, 0.0f, [](Vec v) { return mul(v, v); });
    const Vec factor = set1(1.0f / std::sqrt(squares / float(a.size) + a.eps));
    each_vector(a.size, [&](int64_t i, int m) {
        put(out + i, mul(mul(get(x + i, m), factor), get(a.weight + i, m)), m);
    });
}

void layer_row(const moesaic_norm_args& a, const float* x, float* out) {
    const float mean = sum_row(x, a.size, 0.0f, [](Vec v) { return v; }) / float(a.size);
    const Vec centre = set1(mean);
    const float squares = sum_row(x, a.size, mean, [&](Vec v) { return mul(sub(v, centre), sub(v, centre)); });
    const Vec factor = set1(1.0f / std::sqrt(squares / float(a.size) + a.eps));
    each_vector(a.size, [&](int64_t i, int m) {
        const Vec unit = mul(sub(get(x + i, m), centre), factor);
        const Vec bias = a.bias != nullptr ? get(a.bias + i, m) : zero();
        put(out + i, fma(unit, get(a.weight + i, m), bias), m);
    });
}

template <class Row>
void norm(const moesaic_norm_args& a, const Row& row) {
    const int64_t grain = WORK / (a.size + 1) + 1;
    parallel_for(*a.rows, grain, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            float* x = a.x + r * a.size;
            if (a.delta != nullptr) add_row(x, a.delta + r * a.size, a.alpha, a.size);
            row(a, x, a.out + r * a.size);
        }
    });
}

}  // namespace
}  // namespace moesaic

MOESAIC_API void moesaic_rms_norm(const moesaic_norm_args* args) { moesaic::norm(*args, moesaic::rms_row); }

MOESAIC_API void moesaic_layer_norm(const moesaic_norm_args* args) { moesaic::norm(*args, moesaic::layer_row); }
