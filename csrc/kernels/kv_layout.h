// Where a token lies in the cache: one place that knows it, for what writes and what reads.
//
// A block holds each KV head's tokens in tiles of 16, so that a tile is contiguous and read front to back:
//
//   keys    [D][16] numbers: a vector holds one number of 16 tokens, and no score needs a sum across lanes
//   values  [ceil(D / 16)][16 tokens][16] numbers: stripes of 16 columns
//   scales  int8 only: 16 fp32 of the keys, 16 of the values
//
// bf16 lies in pairs, as vdpbf16ps reads it and a shift or a mask decodes it: keys [ceil(D / 2)][16][2], stripes of
// values [8 token pairs][16][2]. So keys and a stripe of values are the same thing: steps of 16 lanes.
//
// A latent cache by token is read at chosen positions: there a tile is one token's numbers, one after the other.
//
// Tiles of a head follow each other, then heads, then blocks. Where the block size is no multiple of 16, one tile of
// that width (made even) holds the block, and readers copy its tokens into a tile of 16 first.
#pragma once

#include "../abi/attention.h"
#include "../common/formats.h"

namespace moesaic {

constexpr int TILE = 16;  // tokens of a tile, and columns of a stripe

struct KvLayout {
    explicit KvLayout(const moesaic_kv_cache& cache)
        : kind(cache.kind),
          by_token(cache.latent == MOESAIC_LATENT_BY_TOKEN),
          width(by_token ? 1 : cache.block_size % TILE == 0 ? TILE : round_up(cache.block_size, 2)),
          element(cache.kind == MOESAIC_KV_F32 ? 4 : cache.kind == MOESAIC_KV_INT8 ? 1 : 2),
          key_elements((paired() ? round_up(cache.key_dim, 2) : cache.key_dim) * width),
          stripe_elements(width * TILE),
          value_at(round_up(key_elements * element, 64)),
          scales_at(value_at + (cache.latent ? 0 : round_up(cache.value_dim, TILE) * width * element)),
          tile_bytes(round_up(scales_at + (kind == MOESAIC_KV_INT8 ? 2 * width * 4 : 0), 64)),
          head_bytes(tile_bytes * ((cache.block_size + width - 1) / width)),
          block_bytes(head_bytes * cache.heads) {}

    bool paired() const { return kind == MOESAIC_KV_BF16 && !by_token; }

    // Index of number d of the token in lane t, among the elements of a tile's keys, and of its values.
    int64_t key_index(int64_t t, int64_t d) const {
        return paired() ? ((d / 2) * width + t) * 2 + d % 2 : d * width + t;
    }
    int64_t value_index(int64_t t, int64_t d) const {
        const int64_t stripe = d / TILE * stripe_elements, column = d % TILE;
        return stripe + (paired() ? (t / 2 * TILE + column) * 2 + t % 2 : t * TILE + column);
    }

    int kind;
    bool by_token;
    int64_t width;    // tokens of a tile as stored
    int64_t element;  // bytes
    int64_t key_elements, stripe_elements;
    int64_t value_at, scales_at, tile_bytes;  // bytes from a tile's start; a tile's size
    int64_t head_bytes, block_bytes;
};

}  // namespace moesaic
