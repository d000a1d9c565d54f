// Mamba's selective scan: each channel has a state of a few numbers, and its own rates of decay.
//
// A unit of work is a sequence's tokens of some tiles of channels. A tile's states and rates stay in the first cache while
// tokens pass. (They lie tile after tile: as rows of all channels, those of one channel would share a few cache sets.)
#include "../abi/recurrent.h"

#include "../common/rows.h"
#include "sequences.h"

namespace moesaic {
namespace {

constexpr int64_t TILE = MOESAIC_STATE_COLUMNS;  // channels
constexpr int64_t TILES = 8;                     // of a unit
constexpr int64_t TOKENS = 16;                   // that pass over a tile before the next one's turn

// 2^x for x <= 0 to about 2 ulp (Cephes' exp2f); what is below 2^-126 becomes that.
MOESAIC_INLINE Vec exp2_below(Vec x) {
    x = max(set1(-126.0f), x);
    const Vec n = round(x), f = sub(x, n);
    Vec p = set1(1.535336188319500e-4f);
    p = fma(p, f, set1(1.339887440266574e-3f));
    p = fma(p, f, set1(9.618437357674640e-3f));
    p = fma(p, f, set1(5.550332471162809e-2f));
    p = fma(p, f, set1(2.402264791363012e-1f));
    p = fma(p, f, set1(6.931472028550421e-1f));
    return scale_by_power(fma(p, f, set1(1.0f)), n);
}

// Some channels: as many lanes of a tile from `channel` on, whose rates and states lie a row of the tile apart.
struct Lanes {
    const moesaic_selective_scan_args& a;
    int64_t channel;
    const float* rate;
    float* h;
};

// The tile behind this one is fetched meanwhile where `AHEAD`: where memory is what one waits for.
template <bool AHEAD>
MOESAIC_INLINE void scan_lanes(const Lanes& l, int64_t token, int m) {
    const moesaic_selective_scan_args& a = l.a;
    const int64_t size = a.state_size * TILE;
    const float *b = a.b + token * a.state_size, *c = a.c + token * a.state_size;
    const Vec x = get(a.x + token * a.x_stride + l.channel, m);
    const Vec raw = add(get(a.step + token * a.channels + l.channel, m), get(a.bias + l.channel, m));
    const Vec dt = softplus(raw), taken = mul(dt, x), fading = mul(dt, set1(-1.44269504088896341f));
    Vec sum = mul(get(a.skip + l.channel, m), x);
    for (int64_t at = 0, n = 0; at < size; at += TILE, ++n) {
        if (AHEAD) {
            __builtin_prefetch(l.rate + size + at);
            __builtin_prefetch(l.h + size + at);
        }
        const Vec kept = exp2_below(mul(load(l.rate + at), fading));
        const Vec h = fma(set1(b[n]), taken, mul(kept, load(l.h + at)));
        store(l.h + at, h);
        sum = fma(set1(c[n]), h, sum);
    }
    const Vec z = get(a.gate + token * a.gate_stride + l.channel, m);
    put(a.out + token * a.channels + l.channel, mul(sum, mul(z, sigmoid(z))), m);
}

template <bool AHEAD>
void scan_tile(const moesaic_selective_scan_args& a, int64_t tile, int64_t begin, int64_t end, float* state) {
    const float* rate = a.rate + tile * a.state_size * TILE;
    const int64_t first = tile * TILE;
    for (int64_t token = begin; token < end; ++token)
        each_vector(std::min(TILE, a.channels - first), [&](int64_t i, int m) {
            scan_lanes<AHEAD>({a, first + i, rate + i, state + i}, token, m);
        });
}

void scan_tiles(const moesaic_selective_scan_args& a, const Sequence& sequence, int64_t begin, int64_t end) {
    const int64_t size = a.state_size * TILE, tiles = (a.channels + TILE - 1) / TILE;
    float* state = a.state + sequence.slot * tiles * size;
    if (sequence.fresh) std::fill(state + begin * size, state + end * size, 0.0f);
    const int64_t last = sequence.first + sequence.count;
    for (int64_t token = sequence.first; token < last; token += TOKENS)
        for (int64_t tile = begin; tile < end; ++tile)
            (sequence.count == 1 ? scan_tile<true> : scan_tile<false>)(a, tile, token, std::min(token + TOKENS, last),
                                                                      state + tile * size);
}

}  // namespace
}  // namespace moesaic

using namespace moesaic;

void moesaic_selective_scan(const moesaic_selective_scan_args* args) {
    const moesaic_selective_scan_args& a = *args;
    const int64_t tiles = (a.channels + TILE - 1) / TILE, work = 16 * TILES * a.state_size * TILE;
    each_part(*a.rows, *a.sequences, a.batch, (tiles + TILES - 1) / TILES, work,
              [&](const Sequence& sequence, int64_t unit) {
                  scan_tiles(a, sequence, unit * TILES, std::min((unit + 1) * TILES, tiles));
              });
}
