// Attention over a paged cache, for any mix of query lengths in one call. See attention_plan.h for the units of work,
// kv_layout.h for the cache, attention_state.h for the softmax.
//
// A row's bits depend on its query and its keys alone: keys are taken in chunks and splits at absolute positions, and
// what a row does not see is weighted with an exact 0 or skipped, which is the same.
#include <atomic>
#include <new>

#include "attention_state.h"
#include "attention_tiles.h"

namespace moesaic {
namespace {

enum Slots { SHARED = 6, OWN = 7 };     // of workspace
constexpr int64_t FEW_ROWS = 2 * ROWS;  // for more, a chunk's keys and values are decoded once, before their use

// What the units of a call leave to each other.
struct Shared {
    const AttentionPlan& plan;
    float* parts = nullptr;                      // states of cut units
    std::atomic<int32_t>* unfinished = nullptr;  // parts of each tile of a cut sequence that are still to come
};

// A thread's own memory, and the steps of a unit.
template <class Tile>
class Worker {
    using A = typename Tile::A;
    using Wide = typename ChunkTiles<Tile>::Wide;
    static constexpr int64_t PAIR = Tile::DOT ? 2 : 1;  // numbers in an A
    // Rows computed together where tiles are decoded on the way: decoding pairs takes registers.
    static constexpr int64_t FEW_TOGETHER = Tile::COUNT == 2 && W == 8 ? 4 : ROWS;

public:
    Worker(const Call& call, const Shared& shared)
        : c_(call), shared_(shared), tiles_(call), lda_((call.dim + PAIR - 1) / PAIR) {
        int64_t bytes = 0;
        uintptr_t memory = 0;
        const auto take = [&](int64_t count, size_t size) -> void* {
            const uintptr_t at = memory + uintptr_t(bytes);
            bytes += round_up(count * int64_t(size), 64);
            return reinterpret_cast<void*>(at);
        };
        for (int pass = 0; pass < 2; ++pass) {  // how much it is, then where
            query_ = static_cast<A*>(take(MAX_ROWS * lda_, sizeof(A)));
            scores_ = static_cast<float*>(take(MAX_ROWS * CHUNK, sizeof(float)));
            pairs_ = static_cast<uint32_t*>(take(MAX_ROWS * CHUNK / 2, sizeof(uint32_t)));
            own_ = static_cast<float*>(take(State::floats(MAX_ROWS, c_.columns), sizeof(float)));
            total_ = static_cast<float*>(take(State::floats(MAX_ROWS, c_.columns), sizeof(float)));
            tiles_.reserve(take);
            if (pass == 0) memory = reinterpret_cast<uintptr_t>(workspace(OWN, size_t(bytes)));
            bytes = 0;
        }
    }

    void run(int64_t unit) {
        const SequenceWork& w = shared_.plan.of_unit(unit);
        w_ = &w;
        const int64_t local = unit - w.first_unit, part = local % w.parts;
        const int64_t tile = w.tiles - 1 - local / w.parts / c_.a.cache.heads;  // the last rows see most keys
        head_ = local / w.parts % c_.a.cache.heads;
        first_row_ = tile * w.tile_rows;
        rows_ = std::min(w.tile_rows, w.rows - first_row_);
        const int64_t table_row = c_.a.table_rows != nullptr ? c_.a.table_rows[w.index] : w.index;
        const int32_t* selected = c_.a.selected != nullptr ? c_.a.selected + w.index * c_.a.selected_stride : nullptr;
        tiles_.of(c_.a.block_tables + table_row * c_.a.table_stride, head_, selected);
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
    int64_t low(int64_t r) const { return first_seen(c_.a, high_[r] - 1); }

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
        attend(w_->first_split + part, State::at(shared_.parts + (first_part + part) * size, rows_, c_.columns));
        if (shared_.unfinished[tile].fetch_sub(1, std::memory_order_acq_rel) != 1) return;
        const State total = State::at(total_, rows_, c_.columns);
        total.clear(rows_, c_.columns);
        for (int64_t p = 0; p < w_->parts; ++p) {
            merge(total, State::at(shared_.parts + (first_part + p) * size, rows_, c_.columns), rows_, c_.columns);
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
        const bool wide = rows_ > FEW_ROWS || c_.a.cache.latent;
        base_ = base, begin_ = begin, end_ = end;
        num_groups_ = 0;
        const int64_t most = wide ? ROWS : FEW_TOGETHER;
        const int64_t groups = (rows_ + most - 1) / most, together = (rows_ + groups - 1) / groups;
        for (int64_t r = 0; r < rows_; r += together) {
            Group g{r, int(std::min(together, rows_ - r)), 0, 0};
            seen(r, g.rows, g.from, g.to);
            if (g.from < g.to) groups_[num_groups_++] = g;
        }
        tiles_.fetch(base, begin, end);
        if (wide) {
            score_wide();
        } else {
            score();
        }
        weigh_rows();
        if (wide) {
            mix_wide(last);
        } else {
            mix(base + CHUNK < last);
        }
    }

    // The part of the chunk that some of rows [r, r + n) sees, from the chunk's beginning.
    void seen(int64_t r, int64_t n, int64_t& from, int64_t& to) const {
        from = std::max(begin_, low(r)) - base_;
        to = std::min(end_, high(r + n - 1)) - base_;
    }

    // ---- scores ----

    void score() {
        for (int64_t t = (begin_ - base_) / TILE; base_ + t * TILE < end_; ++t) {
            // Meanwhile the values come.
            const char* ahead = reinterpret_cast<const char*>(tiles_.keys(t)) + c_.tile.value_at;
            for_groups([&](const Group& g) {
                const Segment<Tile> segment{query_ + g.row * lda_, tiles_.keys(t), lda_, ahead};
                multiply<Tile, true>(g.rows, &segment, 1, lda_, scores_ + g.row * CHUNK + t * TILE, CHUNK, false);
            });
        }
    }

    void score_wide() {
        for (int64_t t = (begin_ - base_) / TILE; base_ + t * TILE < end_; ++t) {
            const typename Wide::T* keys = tiles_.widen(t);
            for_groups([&](const Group& g) {
                if (g.to <= t * TILE || g.from >= (t + 1) * TILE) return;
                const Segment<Wide> segment{query_ + g.row * lda_, keys, lda_};
                multiply<Wide, false>(g.rows, &segment, 1, lda_, scores_ + g.row * CHUNK + t * TILE, CHUNK, false);
            });
        }
    }

    void weigh_rows() {
        const bool coded = tiles_.coded(), plain = !coded && c_.a.softcap == 0;
        const Scores how{coded ? tiles_.key_scales() : nullptr, coded ? tiles_.value_scales() : nullptr, c_.a.softcap};
        for_groups([&](const Group& g) {
            for (int64_t r = g.row; r < g.row + g.rows; ++r) {
                int64_t from, to;
                seen(r, 1, from, to);
                float* s = scores_ + r * CHUNK;
                if (from >= to) {
                    std::memset(s, 0, CHUNK * sizeof(float));
                } else {
                    float &max = state_.max[r], *sum = state_.sum + r * W;
                    const float factor = plain && to - from == CHUNK ? weigh_all<CHUNK>(s, max, sum)
                                                                     : weigh(s, from, to, CHUNK, how, max, sum);
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

    // Meanwhile the next chunk's keys come, if there are `more`.
    void mix(bool more) {
        const int64_t first = (begin_ - base_) / TILE;
        Segment<Tile> whole[TILES];
        for (int64_t t = first; base_ + t * TILE < end_; ++t) {
            const int64_t tokens = std::min<int64_t>(TILE, end_ - base_ - t * TILE), next = base_ + CHUNK + t * TILE;
            const typename Tile::T* values = tiles_.values(t, tokens);
            const bool follows = more && c_.native && next < w_->tokens;
            whole[t] = {nullptr, values, (tokens + PAIR - 1) / PAIR,
                        follows ? tiles_.where(next) : reinterpret_cast<const char*>(values)};
        }
        for (int64_t column = 0; column < c_.columns; column += TILE) {
            for_groups([&](const Group& g) {
                Segment<Tile> segments[TILES];
                int count = 0;
                for (int64_t t = std::max(first, g.from / TILE); t * TILE < g.to; ++t) {
                    segments[count++] = {weights(g.row) + t * TILE / PAIR, whole[t].b + column * TILE, whole[t].n,
                                         whole[t].ahead + column * TILE * int64_t(sizeof(typename Tile::T))};
                }
                multiply<Tile, true>(g.rows, segments, count, CHUNK / PAIR, state_.acc + g.row * c_.columns + column,
                                     c_.columns, true);
            });
        }
    }

    // Meanwhile the next chunk comes, if the unit goes on beyond this one, to `last`.
    void mix_wide(int64_t last) {
        for (int64_t column = 0; column < c_.columns; column += TILE) {
            tiles_.fetch_ahead(base_ + CHUNK, last, column / TILE, c_.columns / TILE);
            for_groups([&](const Group& g) {
                const int64_t start = g.from / TILE * TILE;
                const Segment<Wide> segment{weights(g.row) + start / PAIR, tiles_.wide_stripe(column) + start * TILE,
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
    const Shared& shared_;
    ChunkTiles<Tile> tiles_;
    int64_t lda_;  // A's from a query row to the next
    A* query_;
    float *scores_, *own_, *total_;
    uint32_t* pairs_;  // weights in bf16

    // The unit.
    const SequenceWork* w_ = nullptr;
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

    Group groups_[MAX_ROWS / 4 + 1] = {};
    int num_groups_ = 0;
    int64_t base_ = 0, begin_ = 0, end_ = 0;
};

// Memory for the parts of cut sequences.
void share(Shared& shared, const Call& call) {
    const AttentionPlan& plan = shared.plan;
    if (plan.parts == 0) return;
    const size_t states = size_t(plan.parts * State::floats(MAX_ROWS, call.columns)) * sizeof(float);
    char* memory =
        static_cast<char*>(workspace(SHARED, states + size_t(plan.cut_tiles) * sizeof(std::atomic<int32_t>)));
    shared.parts = reinterpret_cast<float*>(memory);
    shared.unfinished = reinterpret_cast<std::atomic<int32_t>*>(memory + states);
    for (const SequenceWork& w : plan.sequences) {
        if (w.parts == 1) continue;
        for (int64_t i = 0; i < w.tiles * call.a.cache.heads; ++i) {
            new (shared.unfinished + w.first_tile + i) std::atomic<int32_t>(int32_t(w.parts));
        }
    }
}

template <class Tile>
void run(const moesaic_paged_attention_args& a) {
    static thread_local AttentionPlan plan;
    make_plan(a, plan);
    const Call call(a);
    Shared shared{plan};
    share(shared, call);
    const auto work = [&](int64_t begin, int64_t end) {
        Worker<Tile> worker(call, shared);
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
