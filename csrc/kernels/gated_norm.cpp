// RMS norms of groups with a gate, before or after. A group's sum depends on its length alone.
#include "../abi/recurrent.h"

#include "../common/rows.h"
#include "../common/team.h"

namespace moesaic {
namespace {

constexpr int64_t WORK = 16384;  // elements that are worth a thread

MOESAIC_INLINE Vec act(bool silu, Vec x) { return silu ? mul(x, sigmoid(x)) : sigmoid(x); }

void norm_group(const moesaic_gated_norm_args& a, const float* x, const float* gate, const float* weight, float* out) {
    Vec squares = zero();
    each_vector(a.group, [&](int64_t i, int m) {
        Vec value = get(x + i, m);
        if (a.gate_first) {
            value = mul(value, act(a.silu, get(gate + i, m)));
            put(out + i, value, m);
        }
        squares = fma(value, value, squares);
    });
    const Vec factor = set1(1.0f / std::sqrt(reduce_add(squares) / float(a.group) + a.eps));
    each_vector(a.group, [&](int64_t i, int m) {
        const Vec scaled = mul(mul(get((a.gate_first ? out : x) + i, m), factor), get(weight + i, m));
        put(out + i, a.gate_first ? scaled : mul(scaled, act(a.silu, get(gate + i, m))), m);
    });
}

}  // namespace
}  // namespace moesaic

using namespace moesaic;

void moesaic_gated_norm(const moesaic_gated_norm_args* args) {
    const moesaic_gated_norm_args& a = *args;
    const int64_t groups = a.size / a.group;
    parallel_for(*a.rows * groups, WORK / (a.group + 1) + 1, [&](int64_t begin, int64_t end) {
        for (int64_t unit = begin; unit < end; ++unit) {
            const int64_t row = unit / groups, first = unit % groups * a.group;
            const float* weight = a.weight + (a.weight_size == a.group ? 0 : first);
            norm_group(a, a.x + row * a.size + first, a.gate + row * a.gate_stride + first, weight,
                       a.out + row * a.size + first);
        }
    });
}
