// The keys and values of one chunk as the products take them: tiles where they lie in the cache, or copies of them.
#pragma once

#include "attention_plan.h"
#include "panels.h"

namespace moesaic {

constexpr int TILES = int(CHUNK / TILE);  // of a chunk

// What all units of a call share.
struct Call {
    explicit Call(const moesaic_paged_attention_args& args)
        : a(args),
          layout(args.cache),
          tile(with_native_blocks(args.cache)),
          group(args.heads / args.cache.heads),
          dim(args.cache.key_dim),
          columns(round_up(args.cache.value_dim, TILE)),
          native(args.cache.block_size % TILE == 0 && !layout.by_token && args.selected == nullptr) {}

    const moesaic_paged_attention_args& a;
    KvLayout layout;
    KvLayout tile;  // of a tile of 16 by itself
    int64_t group, dim, columns;
    bool native;  // tiles are read where they lie

private:
    static moesaic_kv_cache with_native_blocks(moesaic_kv_cache cache) {
        cache.block_size = TILE;
        cache.latent = cache.latent == MOESAIC_NOT_LATENT ? MOESAIC_NOT_LATENT : MOESAIC_LATENT;
        return cache;
    }
};

template <class Tile>
class ChunkTiles {
public:
    using T = typename Tile::T;
    // What chunks are multiplied as when many rows share their decoding.
    using Wide = std::conditional_t<Tile::DOT, Tile, TileF32>;
    using U = typename Wide::T;

    explicit ChunkTiles(const Call& call) : c_(call) {}

    // `take(count, size)` gives memory.
    template <class Take>
    void reserve(const Take& take) {
        wide_keys_ = static_cast<U*>(take(CHUNK * c_.dim, sizeof(float)));
        wide_values_ = static_cast<U*>(take(CHUNK * c_.columns, sizeof(float)));
        gathered_ = static_cast<char*>(take(TILES * c_.tile.tile_bytes, 1));
        rows_ = static_cast<uint32_t*>(take(by_rows() ? CHUNK * c_.dim : 0, sizeof(float)));
        scales_ = static_cast<float*>(take(2 * CHUNK, sizeof(float)));
    }

    // `selected`: the positions of its tokens, where these are not all from 0 on; else NULL.
    void of(const int64_t* table, int64_t head, const int32_t* selected) {
        table_ = table, head_ = head, selected_ = selected;
    }

    // The tiles of the chunk at `base` with tokens [begin, end).
    void fetch(int64_t base, int64_t begin, int64_t end) {
        base_ = base, end_ = end;
        for (int64_t t = (begin - base) / TILE; base + t * TILE < end; ++t) {
            char* own = gathered_ + t * c_.tile.tile_bytes;
            tiles_[t] = c_.native ? where(base + t * TILE) : gather(base + t * TILE, own);
            if (!coded()) continue;
            const float* scales = reinterpret_cast<const float*>(tiles_[t] + c_.tile.scales_at);
            std::memcpy(scales_ + t * TILE, scales, TILE * sizeof(float));
            std::memcpy(scales_ + CHUNK + t * TILE, scales + TILE, TILE * sizeof(float));
        }
    }

    // Where the tile that begins with `token` lies in a cache of native blocks.
    const char* where(int64_t token) const {
        const int64_t size = c_.a.cache.block_size, block = uint32_t(token) / uint32_t(size);
        return block_of(block) + (token - block * size) / TILE * c_.layout.tile_bytes;
    }

    // Fetches one of so many parts of the chunk at `base`, whose tokens end at `end`, into the cache.
    void fetch_ahead(int64_t base, int64_t end, int64_t part, int64_t parts) const {
        if (c_.layout.by_token) {
            int64_t lane;
            const int64_t stop = std::min(end, base + (part + 1) * CHUNK / parts);
            for (int64_t token = base + part * CHUNK / parts; token < stop; ++token) {
                prefetch_lines(tile_of(token, lane), c_.layout.tile_bytes);
            }
        } else if (c_.native) {
            const int64_t bytes = round_up(c_.tile.tile_bytes / parts, 64), begin = part * bytes;
            for (int64_t t = 0; base + t * TILE < end && t < TILES && begin < c_.tile.tile_bytes; ++t) {
                prefetch_lines(where(base + t * TILE) + begin, std::min(bytes, c_.tile.tile_bytes - begin));
            }
        }
    }

    bool coded() const { return c_.tile.kind == MOESAIC_KV_INT8; }
    const float* key_scales() const { return scales_; }
    const float* value_scales() const { return scales_ + CHUNK; }

    const T* keys(int64_t t) const { return reinterpret_cast<const T*>(tiles_[t]); }

    // Of these values, `tokens` are the sequence's. In pairs of an odd number, the last one's partner is 0 where both
    // are multiplied: weighted with 0 alone, what lies there might still be NaN.
    const T* values(int64_t t, int64_t tokens) {
        const T* tile = reinterpret_cast<const T*>(tiles_[t] + c_.tile.value_at);
        if (!Tile::DOT || tokens % 2 == 0) return tile;
        T* copy = reinterpret_cast<T*>(wide_values_);
        std::memcpy(copy, tile, size_t(c_.columns * TILE) * sizeof(T));
        for (int64_t column = 0; column < c_.columns; column += TILE) clear_partner(copy + column * TILE, tokens);
        return copy;
    }

    // Decode tile t for many rows. Returns its keys; its values go where `wide_stripe` finds them.
    const U* widen(int64_t t) {
        const U* wide = wide_keys_ + t * TILE * c_.dim;
        if constexpr (std::is_same_v<Tile, Wide>) {
            wide = keys(t);
        } else {
            moesaic::widen<Tile>(keys(t), c_.dim, wide_keys_ + t * TILE * c_.dim);
        }
        for (int64_t column = 0; column < c_.columns; column += TILE) {
            widen_values(t, column, wide, wide_values_ + (column * CHUNK + t * TILE * TILE));
        }
        return wide;
    }

    // The chunk's values in columns [column, column + 16): [CHUNK][16], in pairs of tokens where Wide has them.
    const U* wide_stripe(int64_t column) const { return wide_values_ + column * CHUNK; }

private:
    static void prefetch_lines(const char* p, int64_t bytes) {
        for (int64_t i = 0; i < bytes; i += 64) prefetch(p + i);
    }

    const char* block_of(int64_t index) const {
        return static_cast<const char*>(c_.a.cache.data) + table_[index] * c_.layout.block_bytes +
               head_ * c_.layout.head_bytes;
    }

    // The tile that a token lies in, and its lane there.
    const char* tile_of(int64_t token, int64_t& lane) const {
        const int64_t position = selected_ != nullptr ? selected_[token] : token, size = c_.a.cache.block_size;
        const int64_t offset = position % size;
        lane = offset % c_.layout.width;
        return block_of(position / size) + offset / c_.layout.width * c_.layout.tile_bytes;
    }

    // A tile of 16 put together from tokens that lie anywhere.
    const char* gather(int64_t token, char* to) const {
        const int64_t count = std::min<int64_t>(TILE, end_ - token);
        int64_t lane;
        if (by_rows()) {
            gather_rows(token, count, reinterpret_cast<uint32_t*>(to));
            return to;
        }
        for (int64_t t = 0; t < count; ++t) {
            const char* from = tile_of(token + t, lane);
            copy(from, lane, to, t);
        }
        return to;
    }

    // Whether a token is one row of 32-bit units, an fp32 or a pair each.
    bool by_rows() const {
        return c_.layout.by_token && (Tile::COUNT == 2 || Tile::DOT || sizeof(T) == 4) && c_.dim * sizeof(T) % 4 == 0;
    }

    int64_t units() const { return c_.dim * int64_t(sizeof(T)) / 4; }

    // The same from such rows. They are kept beside the tile: of a latent cache they are the values.
    void gather_rows(int64_t token, int64_t count, uint32_t* to) const {
        uint32_t* rows = rows_ + (token - base_) * units();
        int64_t lane;
        for (int64_t t = 0; t < count; ++t) {
            std::memcpy(rows + t * units(), tile_of(token + t, lane), size_t(units()) * 4);
        }
        for (int64_t t = 0; t < count; t += W) {
            transpose(rows + t * units(), units(), int(std::min<int64_t>(W, count - t)), units(), to + t, TILE);
        }
    }

    // One token from a tile of any width to one of 16.
    void copy(const char* from, int64_t lane, char* to, int64_t t) const {
        const T* key = reinterpret_cast<const T*>(from);
        T* key_out = reinterpret_cast<T*>(to);
        const int64_t dim = c_.layout.paired() ? round_up(c_.dim, 2) : c_.dim;
        for (int64_t d = 0; d < dim; ++d) key_out[c_.tile.key_index(t, d)] = key[c_.layout.key_index(lane, d)];
        if (coded()) {
            const float* scales = reinterpret_cast<const float*>(from + c_.layout.scales_at);
            float* out = reinterpret_cast<float*>(to + c_.tile.scales_at);
            out[t] = scales[lane];
            out[TILE + t] = scales[c_.layout.width + lane];
        }
        if (c_.a.cache.latent) return;
        const T* value = reinterpret_cast<const T*>(from + c_.layout.value_at);
        T* value_out = reinterpret_cast<T*>(to + c_.tile.value_at);
        for (int64_t d = 0; d < c_.a.cache.value_dim; ++d) {
            value_out[c_.tile.value_index(t, d)] = value[c_.layout.value_index(lane, d)];
        }
    }

    void widen_values(int64_t t, int64_t column, const U* wide_keys, U* out) const {
        const T* stripe = reinterpret_cast<const T*>(tiles_[t] + c_.tile.value_at) + column * TILE;
        if constexpr (Tile::DOT) {
            if (c_.a.cache.latent) {
                transpose_pairs(wide_keys + column * TILE, out);
            } else {
                std::memcpy(out, stripe, TILE * TILE * sizeof(T));
            }
            clear_partner(out, std::min<int64_t>(TILE, end_ - base_ - t * TILE));
        } else if (c_.a.cache.latent && by_rows()) {
            const T* rows = reinterpret_cast<const T*>(rows_ + t * TILE * units()) + column;
            for (int64_t i = 0; i < TILE; ++i) decode(rows + i * c_.dim, out + i * TILE);
        } else if (c_.a.cache.latent && Tile::COUNT == 2) {
            // Pairs of numbers of a token are transposed whole, which is half of the work.
            alignas(64) uint32_t pairs[TILE * TILE / 2];
            transpose_units(reinterpret_cast<const uint32_t*>(tiles_[t]) + column / 2 * TILE, pairs);
            for (int64_t i = 0; i < TILE; ++i) decode(reinterpret_cast<const T*>(pairs + i * TILE / 2), out + i * TILE);
        } else if (c_.a.cache.latent) {
            transpose(wide_keys + column * TILE, out);
        } else {
            moesaic::widen<Tile>(stripe, TILE, out);
        }
    }

    // 16 numbers of one token.
    static void decode(const T* in, float* out) {
        for (int64_t i = 0; i < TILE; i += W) {
            if constexpr (Tile::COUNT == 2) {
                store(out + i, load_bf16(in + i));
            } else if constexpr (std::is_same_v<T, float>) {
                store(out + i, load(in + i));
            }
        }
    }

    // out[16][8] = in[8][16] transposed.
    static void transpose_units(const uint32_t* in, uint32_t* out) {
#if defined(__AVX2__)
        transpose_8x8(in, TILE, out, TILE / 2);
        transpose_8x8(in + 8, TILE, out + 8 * TILE / 2, TILE / 2);
#else
        transpose(in, TILE, TILE / 2, TILE, out, TILE / 2);
#endif
    }

    // Of a stripe in pairs with so many tokens.
    template <class Element>
    static void clear_partner(Element* stripe, int64_t tokens) {
        if (tokens % 2 == 0) return;
        for (int i = 0; i < TILE; ++i) stripe[(tokens / 2 * TILE + i) * 2 + 1] = Element(0);
    }

    const Call& c_;
    U *wide_keys_, *wide_values_;
    char* gathered_;
    uint32_t* rows_;
    float* scales_;  // of keys, then of values

    const int64_t* table_ = nullptr;
    const int32_t* selected_ = nullptr;
    int64_t head_ = 0, base_ = 0, end_ = 0;
    const char* tiles_[TILES] = {};
};

}  // namespace moesaic
