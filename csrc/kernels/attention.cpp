// Attention over a paged cache, for any mix of query lengths in one call. See attention_plan.h for the units of work,
// kv_layout.h for the cache, attention_state.h for the softmax.
//
// A row's bits depend on its query and its keys alone: keys are taken in chunks and splits at absolute positions, and
// what a row does not see is weighted with an exact 0 or skipped, which is the same.
#include <atomic>
#include <new>

#include "attention_plan.h"
#include "attention_state.h"

namespace moesaic {
namespace {

enum Slots { SHARED = 6, OWN = 7 };  // of workspace
constexpr int TILES = int(CHUNK / TILE);
constexpr int64_t FEW_ROWS = 2 * ROWS;  // for more, a chunk's keys and values are decoded once, before their use

moesaic_kv_cache with_native_blocks(moesaic_kv_cache cache) {
    cache.block_size = TILE;
    return cache;
}

// What all units of a call share.
struct Call {
    explicit Call(const moesaic_paged_attention_args& args)
        : a(args),
          layout(args.cache),
          tile(with_native_blocks(args.cache)),
          group(args.heads / args.cache.heads),
          dim(args.cache.key_dim),
          columns(round_up(args.cache.value_dim, TILE)),
          native(args.cache.block_size % TILE == 0) {}

    const moesaic_paged_attention_args& a;
    KvLayout layout;
    KvLayout tile;  // of a tile of 16 by itself
    int64_t group, dim, columns;
    bool native;
    AttentionPlan* plan = nullptr;
    float* parts = nullptr;                     // states of cut units
    std::atomic<int32_t>* unfinished = nullptr;  // parts of each tile of a cut sequence that are still to come
};

// A thread's own memory, and the steps of a unit.
template <class Tile>
class Worker {
    using A = typename Tile::A;
    using T = typename Tile::T;
    // What chunks are multiplied as when many rows share their decoding.
    using Wide = std::conditional_t<Tile::DOT, Tile, TileF32>;
    using U = typename Wide::T;
    static constexpr int64_t PAIR = Tile::DOT ? 2 : 1;  // numbers in an A

public:
    explicit Worker(const Call& call) : c_(call), lda_((call.dim + PAIR - 1) / PAIR) {
        int64_t bytes = 0;
        const auto reserve = [&](int64_t count, size_t size) {
            const int64_t at = bytes;
            bytes += round_up(count * int64_t(size), 64);
            return at;
        };
        const int64_t state = State::floats(MAX_ROWS, c_.columns);
        const int64_t at[] = {reserve(MAX_ROWS * lda_, sizeof(A)),     reserve(MAX_ROWS * CHUNK, 4),
                              reserve(MAX_ROWS * CHUNK / 2, 4),        reserve(state, 4),
                              reserve(state, 4),                       reserve(CHUNK * c_.dim, 4),
                              reserve(CHUNK * c_.columns, 4),          reserve(TILES * c_.tile.tile_bytes, 1),
                              reserve(2 * CHUNK, 4)};
        char* memory = static_cast<char*>(workspace(OWN, size_t(bytes)));
        query_ = reinterpret_cast<A*>(memory + at[0]);
        scores_ = reinterpret_cast<float*>(memory + at[1]);
        pairs_ = reinterpret_cast<uint32_t*>(memory + at[2]);
        own_ = reinterpret_cast<float*>(memory + at[3]);
        total_ = reinterpret_cast<float*>(memory + at[4]);
        wide_keys_ = reinterpret_cast<U*>(memory + at[5]);
        wide_values_ = reinterpret_cast<U*>(memory + at[6]);
        gathered_ = memory + at[7];
        key_scales_ = reinterpret_cast<float*>(memory + at[8]);
        value_scales_ = key_scales_ + CHUNK;
    }

    void run(int64_t unit) {
        const SequenceWork& w = c_.plan->of_unit(unit);
        w_ = &w;
        const int64_t local = unit - w.first_unit, part = local % w.parts;
        const int64_t tile = w.tiles - 1 - local / w.parts / c_.a.cache.heads;  // the last rows see most keys
        head_ = local / w.parts % c_.a.cache.heads;
        first_row_ = tile * w.tile_rows;
        rows_ = std::min(w.tile_rows, w.rows - first_row_);
        table_ = c_.a.block_tables + (c_.a.table_rows ? c_.a.table_rows[w.index] : w.index) * c_.a.table_stride;
        load_queries();
        if (w.parts == 1) {
            whole();
        } else {
            cut(part, w.first_part + (tile * c_.a.cache.heads + head_) * w.parts,
                w.first_tile + tile * c_.a.cache.heads + head_);
        }
    }

private:
    // Keys that row r of the tile sees: [low, high).
    int64_t high(int64_t r) const { return high_[r]; }
    int64_t low(int64_t r) const { return c_.a.window > 0 ? std::max<int64_t>(0, high_[r] - c_.a.window) : 0; }

    // All splits, merged one after the other.
    void whole() {
        const State total = State::at(total_, rows_, c_.columns);
        total.clear(rows_, c_.columns);
        for (int64_t split = low(0) / SPLIT; split * SPLIT < high(rows_ - 1); ++split) {
            const State state = State::at(own_, rows_, c_.columns);
            attend(split, state);
            merge(total, state, rows_, c_.columns);
        }
        finish(total);
    }

    // One split; who ends the last one of the tile merges them all.
    void cut(int64_t part, int64_t first_part, int64_t tile) {
        const int64_t size = State::floats(MAX_ROWS, c_.columns);
        attend(w_->first_split + part, State::at(c_.parts + (first_part + part) * size, rows_, c_.columns));
        if (c_.unfinished[tile].fetch_sub(1, std::memory_order_acq_rel) != 1) return;
        const State total = State::at(total_, rows_, c_.columns);
        total.clear(rows_, c_.columns);
        for (int64_t p = 0; p < w_->parts; ++p) {
            merge(total, State::at(c_.parts + (first_part + p) * size, rows_, c_.columns), rows_, c_.columns);
        }
        finish(total);
    }

    void load_queries() {
        for (int64_t r = 0; r < rows_; ++r) {
            const int64_t row = first_row_ + r, token = w_->first_query + row / c_.group;
            const float* q = c_.a.query + (token * c_.a.heads + head_ * c_.group + row % c_.group) * c_.dim;
            A* out = query_ + r * lda_;
            high_[r] = w_->position(row, c_.group) + 1;
            if constexpr (Tile::DOT) {
                for (int64_t i = 0; i < lda_; ++i) {
                    const float odd = 2 * i + 1 < c_.dim ? q[2 * i + 1] * c_.a.scale : 0.0f;
                    out[i] = float_to_bf16(q[2 * i] * c_.a.scale) | uint32_t(float_to_bf16(odd)) << 16;
                }
            } else {
                for (int64_t i = 0; i < c_.dim; ++i) out[i] = q[i] * c_.a.scale;
            }
        }
    }

    void attend(int64_t split, const State& state) {
        state.clear(rows_, c_.columns);
        state_ = state;
        const int64_t begin = std::max(split * SPLIT, low(0)), end = std::min((split + 1) * SPLIT, high(rows_ - 1));
        for (int64_t base = begin / CHUNK * CHUNK; base < end; base += CHUNK) {
            chunk(base, std::max(begin, base), std::min(end, base + CHUNK), end);
        }
    }

    // Add keys [begin, end) of the chunk at `base`; the unit goes on to `last`.
    void chunk(int64_t base, int64_t begin, int64_t end, int64_t last) {
        base_ = base, begin_ = begin, end_ = end;
        num_groups_ = 0;
        for (int64_t r = 0; r < rows_; r += ROWS) {
            Group g{r, int(std::min<int64_t>(ROWS, rows_ - r)), 0, 0};
            seen(r, g.rows, g.from, g.to);
            if (g.from < g.to) groups_[num_groups_++] = g;
        }
        const bool wide = rows_ > FEW_ROWS || c_.a.cache.latent;
        for (int64_t t = (begin - base) / TILE; base + t * TILE < end; ++t) {
            tiles_[t] = tile_at(base + t * TILE, gathered_ + t * c_.tile.tile_bytes);
            if (c_.tile.kind == MOESAIC_KV_INT8) {
                const float* scales = reinterpret_cast<const float*>(tiles_[t] + c_.tile.scales_at);
                std::memcpy(key_scales_ + t * TILE, scales, TILE * sizeof(float));
                std::memcpy(value_scales_ + t * TILE, scales + TILE, TILE * sizeof(float));
            }
        }
        if (wide) {
            score_wide();
        } else {
            score();
        }
        weigh_rows();
        if (wide) {
            mix_wide();
        } else {
            mix(base + CHUNK < last);
        }
    }

    // ---- tiles ----

    const char* tile_at(int64_t token, char* gathered) const {
        const int64_t size = c_.a.cache.block_size;
        const char* data = static_cast<const char*>(c_.a.cache.data);
        if (c_.native) {
            const int64_t block = uint32_t(token) / uint32_t(size);
            return data + table_[block] * c_.layout.block_bytes + head_ * c_.layout.head_bytes +
                   (token - block * size) / TILE * c_.layout.tile_bytes;
        }
        for (int64_t t = 0; t < TILE && token + t < end_; ++t) {
            const char* from =
                data + table_[(token + t) / size] * c_.layout.block_bytes + head_ * c_.layout.head_bytes;
            gather(from, (token + t) % size, gathered, t);
        }
        return gathered;
    }

    // Copy one token from a tile of any width into one of 16.
    void gather(const char* from, int64_t lane, char* to, int64_t t) const {
        const T* keys = reinterpret_cast<const T*>(from);
        T* out = reinterpret_cast<T*>(to);
        const int64_t dim = c_.layout.paired() ? round_up(c_.dim, 2) : c_.dim;
        for (int64_t d = 0; d < dim; ++d) out[c_.tile.key_index(t, d)] = keys[c_.layout.key_index(lane, d)];
        if (c_.tile.kind == MOESAIC_KV_INT8) {
            const float* scales = reinterpret_cast<const float*>(from + c_.layout.scales_at);
            float* own = reinterpret_cast<float*>(to + c_.tile.scales_at);
            own[t] = scales[lane];
            own[TILE + t] = scales[c_.layout.width + lane];
        }
        if (c_.a.cache.latent) return;
        const T* values = reinterpret_cast<const T*>(from + c_.layout.value_at);
        T* value_out = reinterpret_cast<T*>(to + c_.tile.value_at);
        for (int64_t d = 0; d < c_.a.cache.value_dim; ++d) {
            value_out[c_.tile.value_index(t, d)] = values[c_.layout.value_index(lane, d)];
        }
    }

    const T* keys(int64_t t) const { return reinterpret_cast<const T*>(tiles_[t]); }
    const T* values(int64_t t) const { return reinterpret_cast<const T*>(tiles_[t] + c_.tile.value_at); }

    // The part of the chunk that some of rows [r, r + n) sees, from the chunk's beginning.
    void seen(int64_t r, int64_t n, int64_t& from, int64_t& to) const {
        from = std::max(begin_, low(r)) - base_;
        to = std::min(end_, high(r + n - 1)) - base_;
    }

    // ---- scores ----

    void score() {
        for (int64_t t = (begin_ - base_) / TILE; base_ + t * TILE < end_; ++t) {
            const char* ahead = c_.a.cache.latent ? tiles_[t] : reinterpret_cast<const char*>(values(t));
            for_groups([&](const Group& g) {
                const Segment<Tile> segment{query_ + g.row * lda_, keys(t), lda_, ahead};
                multiply<Tile, true>(g.rows, &segment, 1, lda_, scores_ + g.row * CHUNK + t * TILE, CHUNK, false);
            });
        }
    }

    void score_wide() {
        for (int64_t t = (begin_ - base_) / TILE; base_ + t * TILE < end_; ++t) {
            const U* tile;
            if constexpr (std::is_same_v<Tile, Wide>) {
                tile = keys(t);
            } else {
                widen<Tile>(keys(t), c_.dim, wide_keys_ + t * TILE * c_.dim);
                tile = wide_keys_ + t * TILE * c_.dim;
            }
            widen_values(t, tile);
            for_groups([&](const Group& g) {
                if (g.to <= t * TILE || g.from >= (t + 1) * TILE) return;
                const Segment<Wide> segment{query_ + g.row * lda_, tile, lda_};
                multiply<Wide, false>(g.rows, &segment, 1, lda_, scores_ + g.row * CHUNK + t * TILE, CHUNK, false);
            });
        }
    }

    void weigh_rows() {
        const bool codes = c_.tile.kind == MOESAIC_KV_INT8;
        const Scores how{codes ? key_scales_ : nullptr, codes ? value_scales_ : nullptr, c_.a.softcap};
        for_groups([&](const Group& g) {
            for (int64_t r = g.row; r < g.row + g.rows; ++r) {
                int64_t from, to;
                seen(r, 1, from, to);
                float* s = scores_ + r * CHUNK;
                if (from >= to) {
                    std::memset(s, 0, CHUNK * sizeof(float));
                } else {
                    const float factor = weigh(s, from, to, CHUNK, how, state_.max[r], state_.sum + r * W);
                    if (factor != 1.0f) scale_row(state_.acc + r * c_.columns, c_.columns, factor);
                }
                if constexpr (Tile::DOT) {
                    store_pairs(s, pairs_ + r * CHUNK / 2);
                }
            }
        });
    }

    static void store_pairs(const float* s, uint32_t* out) {
        for (int64_t i = 0; i < CHUNK; i += W) store_bf16(reinterpret_cast<uint16_t*>(out) + i, load(s + i));
    }

    const A* weights(int64_t r) const {
        if constexpr (Tile::DOT) {
            return pairs_ + r * CHUNK / 2;
        } else {
            return scores_ + r * CHUNK;
        }
    }

    // ---- values ----

    void mix(bool more) {
        const int64_t first = (begin_ - base_) / TILE;
        const T* tiles[TILES];
        const char* ahead[TILES];
        int64_t sizes[TILES];
        for (int64_t t = first; base_ + t * TILE < end_; ++t) {
            sizes[t] = std::min<int64_t>(TILE, end_ - base_ - t * TILE);
            tiles[t] = values(t);
            if (Tile::DOT && sizes[t] % 2) tiles[t] = reinterpret_cast<const T*>(without_partner(tiles[t], sizes[t]));
            const bool follows = more && c_.native && base_ + CHUNK + t * TILE < w_->tokens;
            ahead[t] = follows ? tile_at(base_ + CHUNK + t * TILE, nullptr) : reinterpret_cast<const char*>(tiles[t]);
        }
        for (int64_t column = 0; column < c_.columns; column += TILE) {
            for_groups([&](const Group& g) {
                Segment<Tile> segments[TILES];
                int count = 0;
                for (int64_t t = std::max(first, g.from / TILE); t * TILE < g.to; ++t) {
                    segments[count++] = {weights(g.row) + t * TILE / PAIR, tiles[t] + column * TILE,
                                         (sizes[t] + PAIR - 1) / PAIR, ahead[t] + column * TILE * int64_t(sizeof(T))};
                }
                multiply<Tile, true>(g.rows, segments, count, CHUNK / PAIR, state_.acc + g.row * c_.columns + column,
                                     c_.columns, true);
            });
        }
    }

    // A copy of a tile of values in pairs, an odd number of them: the last one's partner becomes 0.
    const void* without_partner(const T* tile, int64_t tokens) {
        std::memcpy(wide_values_, tile, size_t(c_.columns * TILE) * sizeof(T));
        for (int64_t column = 0; column < c_.columns; column += TILE) {
            T* pairs = reinterpret_cast<T*>(wide_values_) + column * TILE + tokens / 2 * TILE * 2;
            for (int i = 0; i < TILE; ++i) pairs[2 * i + 1] = T(0);
        }
        return wide_values_;
    }

    // The values of tile t where the chunk's stripes are put together: [columns / 16][CHUNK][16].
    void widen_values(int64_t t, const U* wide_keys) {
        for (int64_t column = 0; column < c_.columns; column += TILE) {
            U* out = wide_values_ + (column * CHUNK + t * TILE * TILE);
            if constexpr (Tile::DOT) {
                if (c_.a.cache.latent) {
                    transpose_pairs(wide_keys + column * TILE, out);
                } else {
                    std::memcpy(out, values(t) + column * TILE, TILE * TILE * sizeof(T));
                }
                const int64_t tokens = std::min<int64_t>(TILE, end_ - base_ - t * TILE);
                if (tokens % 2) {
                    for (int i = 0; i < TILE; ++i) out[(tokens / 2 * TILE + i) * 2 + 1] = 0;
                }
            } else if (c_.a.cache.latent) {
                transpose(wide_keys + column * TILE, out);
            } else {
                widen<Tile>(values(t) + column * TILE, TILE, out);
            }
        }
    }

    // Keys [8 pairs of numbers][16 tokens][2] as values [8 pairs of tokens][16 numbers][2].
    static void transpose_pairs(const uint16_t* in, uint16_t* out) {
        for (int d = 0; d < TILE; ++d)
            for (int t = 0; t < TILE; ++t) out[(t / 2 * TILE + d) * 2 + t % 2] = in[(d / 2 * TILE + t) * 2 + d % 2];
    }

    void mix_wide() {
        for (int64_t column = 0; column < c_.columns; column += TILE) {
            for_groups([&](const Group& g) {
                const int64_t start = g.from / TILE * TILE;
                const Segment<Wide> segment{weights(g.row) + start / PAIR, wide_values_ + (column * CHUNK + start * TILE),
                                            (g.to - start + PAIR - 1) / PAIR};
                multiply<Wide, false>(g.rows, &segment, 1, CHUNK / PAIR, state_.acc + g.row * c_.columns + column,
                                      c_.columns, true);
            });
        }
    }

    // ---- the end ----

    void finish(const State& total) {
        const int64_t value_dim = c_.a.cache.value_dim;
        for (int64_t r = 0; r < rows_; ++r) {
            const int64_t row = first_row_ + r, head = head_ * c_.group + row % c_.group;
            float sum = reduce_add(load(total.sum + r * W)), factor = 1.0f;
            if (c_.a.sinks != nullptr) {
                const float top = std::max(total.max[r], c_.a.sinks[head]);
                factor = exp_of(total.max[r] - top);
                sum = sum * factor + exp_of(c_.a.sinks[head] - top);
            }
            const Vec share = set1(factor / sum);
            float* out = c_.a.out + ((w_->first_query + row / c_.group) * c_.a.heads + head) * value_dim;
            const float* acc = total.acc + r * c_.columns;
            int64_t i = 0;
            for (; i + W <= value_dim; i += W) store(out + i, mul(load(acc + i), share));
            if (i < value_dim) store_n(out + i, mul(load(acc + i), share), int(value_dim - i));
        }
    }

    const Call& c_;
    int64_t lda_;  // A's from a query row to the next
    A* query_;
    float *scores_, *own_, *total_, *key_scales_, *value_scales_;
    uint32_t* pairs_;  // weights in bf16
    U *wide_keys_, *wide_values_;
    char* gathered_;

    // The unit.
    const SequenceWork* w_ = nullptr;
    const int64_t* table_ = nullptr;
    int64_t head_ = 0, first_row_ = 0, rows_ = 0;
    int64_t high_[MAX_ROWS];  // of each row, one beyond the last key that it sees
    State state_{};

    // The chunk, and the groups of rows that are computed together and see part of it.
    struct Group {
        int64_t row;
        int rows;
        int64_t from, to;  // what some of them sees, from the chunk's beginning
    };

    template <class Body>
    MOESAIC_INLINE void for_groups(const Body& body) const {
        for (int i = 0; i < num_groups_; ++i) body(groups_[i]);
    }

    Group groups_[MAX_ROWS / 6 + 1] = {};
    int num_groups_ = 0;
    int64_t base_ = 0, begin_ = 0, end_ = 0;
    const char* tiles_[TILES] = {};
};

template <class Tile>
void run(const moesaic_paged_attention_args& a) {
    static thread_local AttentionPlan plan;
    make_plan(a, plan);
    Call call(a);
    call.plan = &plan;
    if (plan.parts > 0) {
        const int64_t floats = plan.parts * State::floats(MAX_ROWS, call.columns);
        char* memory = static_cast<char*>(
            workspace(SHARED, size_t(floats) * sizeof(float) + size_t(plan.cut_tiles) * sizeof(std::atomic<int32_t>)));
        call.parts = reinterpret_cast<float*>(memory);
        call.unfinished = reinterpret_cast<std::atomic<int32_t>*>(memory + size_t(floats) * sizeof(float));
        for (const SequenceWork& w : plan.sequences) {
            if (w.parts == 1) continue;
            for (int64_t i = 0; i < w.tiles * a.cache.heads; ++i) {
                new (call.unfinished + w.first_tile + i) std::atomic<int32_t>(int32_t(w.parts));
            }
        }
    }
    const auto work = [&](int64_t begin, int64_t end) {
        Worker<Tile> worker(call);
        for (int64_t unit = begin; unit < end; ++unit) worker.run(unit);
    };
    if (plan.alone) {
        work(0, plan.units);
    } else {
        parallel_for(plan.units, 1, work);
    }
}

}  // namespace
}  // namespace moesaic

void moesaic_paged_attention(const moesaic_paged_attention_args* args) {
    using namespace moesaic;
    switch (args->cache.kind) {
        case MOESAIC_KV_F32:
            return run<TileF32>(*args);
        case MOESAIC_KV_F16:
            return run<TileF16>(*args);
        case MOESAIC_KV_BF16:
            return run<TileBf16>(*args);
        default:
            return run<TileInt8>(*args);
    }
}
