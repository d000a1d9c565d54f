// Mamba's selective scan: each channel has a state of a few numbers, and its own rates of decay.
//
// A unit of work is a sequence's tokens of a block of channels, whose state stays in the first cache.
#include "../abi/recurrent.h"

#include "../common/rows.h"
#include "sequences.h"

namespace moesaic {
namespace {

constexpr int64_t BLOCK = 128;  // channels

struct Channels {
    const moesaic_selective_scan_args& a;
    int64_t first, size;
    float* state;  // [state_size] rows of the slot, at the first channel
};

void scan_token(const Channels& c, int64_t token) {
    const moesaic_selective_scan_args& a = c.a;
    const float *b = a.b + token * a.state_size, *read = a.c + token * a.state_size;
    const float *x = a.x + token * a.x_stride + c.first, *step = a.step + token * a.channels + c.first;
    const float* gate = a.gate + token * a.gate_stride + c.first;
    float* out = a.out + token * a.channels + c.first;
    each_vector(c.size, [&](int64_t i, int m) {
        const Vec input = get(x + i, m), dt = softplus(add(get(step + i, m), get(a.bias + c.first + i, m)));
        const Vec taken = mul(dt, input), negative = sub(zero(), dt);
        Vec sum = mul(get(a.skip + c.first + i, m), input);
        for (int n = 0; n < a.state_size; ++n) {
            float* h = c.state + n * a.channels + i;
            const Vec kept = exp(mul(get(a.rate + n * a.channels + c.first + i, m), negative));
            const Vec updated = fma(set1(b[n]), taken, mul(kept, get(h, m)));
            put(h, updated, m);
            sum = fma(set1(read[n]), updated, sum);
        }
        const Vec z = get(gate + i, m);
        put(out + i, mul(sum, mul(z, sigmoid(z))), m);
    });
}

void scan_channels(const Channels& c, const Sequence& sequence) {
    if (sequence.fresh)
        for (int n = 0; n < c.a.state_size; ++n)
            std::fill(c.state + n * c.a.channels, c.state + n * c.a.channels + c.size, 0.0f);
    for (int64_t t = 0; t < sequence.count; ++t) scan_token(c, sequence.first + t);
}

}  // namespace
}  // namespace moesaic

using namespace moesaic;

void moesaic_selective_scan(const moesaic_selective_scan_args* args) {
    const moesaic_selective_scan_args& a = *args;
    const int64_t blocks = (a.channels + BLOCK - 1) / BLOCK, work = 16 * BLOCK * a.state_size;
    each_part(*a.rows, *a.sequences, a.batch, blocks, work, [&](const Sequence& sequence, int64_t block) {
        const int64_t first = block * BLOCK;
        float* state = a.state + sequence.slot * a.state_size * a.channels + first;
        scan_channels({a, first, std::min(BLOCK, a.channels - first), state}, sequence);
    });
}
