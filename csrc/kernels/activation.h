// Activations of experts and feed-forward layers, on vectors: ungated f(x), gated f(gate) * up.
#pragma once

#include "../abi/matmul.h"
#include "../common/simd.h"

namespace moesaic {

// erf x = 1 - (a1 t + ... + a5 t^5) e^(-x^2) with t = 1 / (1 + p x) for x >= 0: Abramowitz and Stegun 7.1.26, absolute
// error below 2e-7.
MOESAIC_INLINE Vec erf_of_magnitude(Vec x) {
    const Vec t = div(set1(1.0f), fma(set1(0.3275911f), x, set1(1.0f)));
    Vec p = set1(1.061405429f);
    p = fma(p, t, set1(-1.453152027f));
    p = fma(p, t, set1(1.421413741f));
    p = fma(p, t, set1(-0.284496736f));
    p = fma(p, t, set1(0.254829592f));
    return fnma(mul(p, t), exp(sub(zero(), mul(x, x))), set1(1.0f));
}

MOESAIC_INLINE Vec silu(Vec x) { return mul(x, sigmoid(x)); }

// x Phi(x) = (x + |x| erf(|x| / sqrt 2)) / 2
MOESAIC_INLINE Vec gelu(Vec x) {
    const Vec magnitude = abs(x);
    return mul(set1(0.5f), fma(magnitude, erf_of_magnitude(mul(magnitude, set1(0.70710678118654752f))), x));
}

MOESAIC_INLINE Vec gelu_tanh(Vec x) {
    const Vec inner = mul(set1(0.7978845608028654f), fma(mul(set1(0.044715f), mul(x, x)), x, x));
    const Vec half = mul(set1(0.5f), x);
    return fma(half, tanh(inner), half);
}

MOESAIC_INLINE Vec activate(const moesaic_activate& activation, Vec x) {
    switch (activation.kind) {
        case MOESAIC_SILU: return silu(x);
        case MOESAIC_GELU: return gelu(x);
        case MOESAIC_GELU_TANH: return gelu_tanh(x);
        case MOESAIC_RELU: return max(zero(), x);
        case MOESAIC_RELU2: {
            const Vec positive = max(zero(), x);
            return mul(positive, positive);
        }
        default: return x;
    }
}

MOESAIC_INLINE Vec activate_gated(const moesaic_activate& activation, Vec gate, Vec up) {
    if (activation.kind < MOESAIC_SWIGLUOAI) return mul(activate(activation, gate), up);
    const Vec limit = set1(activation.limit);
    up = max(sub(zero(), limit), min(limit, up));
    if (activation.kind == MOESAIC_SILU_CLAMPED) return mul(min(limit, silu(gate)), up);
    gate = min(limit, gate);
    return mul(mul(gate, sigmoid(mul(set1(activation.alpha), gate))), add(up, set1(1.0f)));
}

}  // namespace moesaic
