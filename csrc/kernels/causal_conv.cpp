// A causal convolution of each channel by itself, over each sequence's tokens and the few inputs kept from before.
//
// A unit of work is a sequence's tokens of a block of channels: it alone reads and writes that part of the slot.
#include "../abi/recurrent.h"

#include "../common/rows.h"
#include "sequences.h"

namespace moesaic {
namespace {

constexpr int64_t BLOCK = 256;   // channels of a unit: its inputs stay in the first cache from token to token
constexpr int MOST = 64;         // the widest

// Where the inputs of a token lie: `taps[k]` for weight k, at the block's first channel.
struct Unit {
    const moesaic_causal_conv_args& a;
    int64_t channel, size;  // the block
    int64_t first, count;   // the sequence's rows
    float* state;           // [width - 1] rows of the slot, at the block's first channel
    bool fresh;

    const float* input(int64_t token) const {  // of the sequence's step; negative: kept from before
        static const float zeros[BLOCK] = {};
        if (token >= 0) return a.x + (first + token) * a.x_stride + channel;
        return fresh ? zeros : state + (a.width - 1 + token) * a.channels;
    }
};

template <int WIDTH>  // 0: as the arguments say
void convolve(const Unit& u, int64_t token) {
    const int width = WIDTH != 0 ? WIDTH : u.a.width;
    const float* taps[WIDTH != 0 ? WIDTH : MOST];
    for (int k = 0; k < width; ++k) taps[k] = u.input(token - width + 1 + k);
    const float* weight = u.a.weight + u.channel;
    const float* bias = u.a.bias != nullptr ? u.a.bias + u.channel : nullptr;
    float* out = u.a.out + (u.first + token) * u.a.channels + u.channel;
    each_vector(u.size, [&](int64_t i, int n) {
        Vec sum = bias != nullptr ? get(bias + i, n) : zero();
        for (int k = 0; k < width; ++k) sum = fma(get(weight + k * u.a.channels + i, n), get(taps[k] + i, n), sum);
        put(out + i, u.a.silu ? mul(sum, sigmoid(sum)) : sum, n);
    });
}

// The last inputs become the state; an older one moves up, so that nothing is overwritten before it has moved.
void keep(const Unit& u) {
    const int64_t kept = u.a.width - 1;
    for (int64_t j = 0; j < kept; ++j) {
        const float* from = u.input(u.count - kept + j);
        std::memmove(u.state + j * u.a.channels, from, size_t(u.size) * sizeof(float));
    }
}

void compute(const Unit& u) {
    void (*const convolve_token)(const Unit&, int64_t) =
        u.a.width == 4 ? convolve<4> : u.a.width == 3 ? convolve<3> : convolve<0>;
    for (int64_t token = 0; token < u.count; ++token) convolve_token(u, token);
    keep(u);
}

}  // namespace
}  // namespace moesaic

using namespace moesaic;

void moesaic_causal_conv(const moesaic_causal_conv_args* args) {
    const moesaic_causal_conv_args& a = *args;
    const int64_t blocks = (a.channels + BLOCK - 1) / BLOCK;
    each_part(*a.rows, *a.sequences, a.batch, blocks, BLOCK, [&](const Sequence& sequence, int64_t block) {
        const int64_t channel = block * BLOCK;
        float* state = a.state + sequence.slot * (a.width - 1) * a.channels + channel;
        const int64_t size = std::min(BLOCK, a.channels - channel);
        compute({a, channel, size, sequence.first, sequence.count, state, sequence.fresh});
    });
}
