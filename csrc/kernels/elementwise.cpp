// Element by element: sums, gates and caps between products. An element's result depends on nothing beside it.
#include "../abi/elementwise.h"

#include "../common/rows.h"
#include "../common/team.h"

namespace moesaic {
namespace {

constexpr int64_t WORK = 16384;  // elements that are worth a thread

// Calls row(r) for every row, on several threads where there is enough to do.
template <class Row>
void each_row(int64_t rows, int64_t size, const Row& row) {
    parallel_for(rows, WORK / (size + 1) + 1, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) row(r);
    });
}

float sigmoid_of(float x) {
    float lane[W];
    store(lane, sigmoid(set1(x)));
    return lane[0];
}

Vec gate_of(int32_t kind, Vec x) {
    if (kind == MOESAIC_GATE_IDENTITY) return x;
    return kind == MOESAIC_GATE_SOFTPLUS ? softplus(x) : sigmoid(x);
}

}  // namespace
}  // namespace moesaic

using namespace moesaic;

void moesaic_mix(const moesaic_mix_args* args) {
    const moesaic_mix_args& m = *args;
    each_row(*m.rows, m.size, [&](int64_t r) {
        const float *x = m.x + r * m.size, *y = m.y != nullptr ? m.y + r * m.size : nullptr;
        float* out = m.out + r * m.size;
        const Vec a = set1(m.a), b = set1(m.gate != nullptr ? m.b * sigmoid_of(m.gate[r]) : m.b);
        each_vector(m.size, [&](int64_t i, int n) {
            const Vec scaled = mul(a, get(x + i, n));
            put(out + i, y != nullptr ? fma(b, get(y + i, n), scaled) : scaled, n);
        });
    });
}

void moesaic_apply_gate(const moesaic_apply_gate_args* args) {
    const moesaic_apply_gate_args& g = *args;
    each_row(*g.rows, g.size, [&](int64_t r) {
        const float *x = g.x + r * g.size, *gate = g.gate + r * g.gate_stride;
        float* out = g.out + r * g.size;
        if (g.group == 1) {
            each_vector(g.size, [&](int64_t i, int n) {
                put(out + i, mul(get(x + i, n), gate_of(g.kind, get(gate + i, n))), n);
            });
            return;
        }
        for (int64_t i = 0; i < g.size; i += g.group) {
            const Vec factor = gate_of(g.kind, set1(gate[i / g.group]));
            each_vector(g.group, [&](int64_t j, int n) { put(out + i + j, mul(get(x + i + j, n), factor), n); });
        }
    });
}

void moesaic_softcap(const moesaic_softcap_args* args) {
    const moesaic_softcap_args& c = *args;
    each_row(*c.rows, c.size, [&](int64_t r) {
        const float* x = c.x + r * c.size;
        float* out = c.out + r * c.size;
        each_vector(c.size, [&](int64_t i, int n) {
            put(out + i, mul(set1(c.cap), tanh(div(get(x + i, n), set1(c.cap)))), n);
        });
    });
}

void moesaic_add_bias(const moesaic_add_bias_args* args) {
    const moesaic_add_bias_args& b = *args;
    each_row(*b.rows, b.size, [&](int64_t r) {
        const float* x = b.x + r * b.size;
        float* out = b.out + r * b.size;
        each_vector(b.size, [&](int64_t i, int n) { put(out + i, add(get(x + i, n), get(b.bias + i, n)), n); });
    });
}

void moesaic_add_identity(const moesaic_add_identity_args* args) {
    const moesaic_add_identity_args& a = *args;
    each_row(*a.rows, a.size, [&](int64_t r) {
        const int32_t* ids = a.ids + r * a.top_k;
        float weight = 0.0f;
        for (int32_t j = 0; j < a.top_k; ++j) weight += ids[j] >= a.first ? a.weights[r * a.top_k + j] : 0.0f;
        const float *x = a.x + r * a.size, *y = a.y + r * a.size;
        float* out = a.out + r * a.size;
        each_vector(a.size, [&](int64_t i, int n) {
            put(out + i, fma(set1(weight), get(y + i, n), get(x + i, n)), n);
        });
    });
}
