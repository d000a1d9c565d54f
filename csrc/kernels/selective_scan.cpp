// Mamba's selective scan: each channel has a state of a few numbers, and its own rates of decay.
//
// A unit of work is a sequence's tokens of some tiles of channels, whose states and rates stay in the first cache. (They
// lie tile after tile: as rows of all channels, those of one channel would fall on few sets of a cache.)
#include "../abi/recurrent.h"

#include "../common/rows.h"
#include "sequences.h"

namespace moesaic {
namespace {

constexpr int64_t TILE = MOESAIC_STATE_COLUMNS;  // channels
constexpr int64_t TILES = 4;                     // of a unit

// Some channels: as many lanes of a tile, at `channel`, whose states are `h`, a row of the tile apart.
struct Lanes {
    const moesaic_selective_scan_args& a;
    int64_t channel;
    const float* rate;
    float* h;
};

MOESAIC_INLINE void scan_lanes(const Lanes& l, int64_t token, int m) {
    const moesaic_selective_scan_args& a = l.a;
    const float *b = a.b + token * a.state_size, *c = a.c + token * a.state_size;
    const Vec x = get(a.x + token * a.x_stride + l.channel, m);
    const Vec raw = add(get(a.step + token * a.channels + l.channel, m), get(a.bias + l.channel, m));
    const Vec dt = softplus(raw), taken = mul(dt, x), negative = sub(zero(), dt);
    Vec sum = mul(get(a.skip + l.channel, m), x);
    for (int n = 0; n < a.state_size; ++n) {
        const Vec kept = exp(mul(load(l.rate + n * TILE), negative));
        const Vec h = fma(set1(b[n]), taken, mul(kept, load(l.h + n * TILE)));
        store(l.h + n * TILE, h);
        sum = fma(set1(c[n]), h, sum);
    }
    const Vec z = get(a.gate + token * a.gate_stride + l.channel, m);
    put(a.out + token * a.channels + l.channel, mul(sum, mul(z, sigmoid(z))), m);
}

void scan_tile(const moesaic_selective_scan_args& a, int64_t tile, int64_t token, float* state) {
    const float* rate = a.rate + tile * a.state_size * TILE;
    const int64_t first = tile * TILE;
    each_vector(std::min(TILE, a.channels - first), [&](int64_t i, int m) {
        scan_lanes({a, first + i, rate + i, state + i}, token, m);
    });
}

}  // namespace
}  // namespace moesaic

using namespace moesaic;

void moesaic_selective_scan(const moesaic_selective_scan_args* args) {
    const moesaic_selective_scan_args& a = *args;
    const int64_t tiles = (a.channels + TILE - 1) / TILE, size = a.state_size * TILE;
    each_part(*a.rows, *a.sequences, a.batch, (tiles + TILES - 1) / TILES, 16 * TILES * size,
              [&](const Sequence& sequence, int64_t unit) {
                  const int64_t begin = unit * TILES, end = std::min(begin + TILES, tiles);
                  float* state = a.state + (sequence.slot * tiles) * size;
                  if (sequence.fresh) std::fill(state + begin * size, state + end * size, 0.0f);
                  for (int64_t t = 0; t < sequence.count; ++t)
                      for (int64_t tile = begin; tile < end; ++tile)
                          scan_tile(a, tile, sequence.first + t, state + tile * size);
              });
}
