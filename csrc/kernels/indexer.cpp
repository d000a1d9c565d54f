// The sparse indexer. Scores are made tile after tile of the paged index keys, a range of positions of one token being a
// unit of work; then each token's best are found without sorting. A score's bits depend on its token and its key alone.
#include "../abi/indexer.h"

#include "../common/sums.h"
#include "attention_tiles.h"
#include "region.h"
#include "select.h"

namespace moesaic {
namespace {

enum Slots { SCORES = 6, OWN = 7, BEST = 9 };  // of workspace
constexpr int64_t RANGE = 512;                 // positions of a unit
constexpr int64_t MOST_SCORES = int64_t(4) << 20;  // that are kept at once

// A token of the step.
struct Row {
    int64_t table;    // row of block_tables
    int64_t visible;  // positions that it sees
};

using Rows = std::vector<Row>;

void list_rows(const moesaic_select_positions_args& a, Rows& rows) {
    rows.clear();
    for (int64_t s = 0; s < *a.sequences; ++s) {
        const int64_t queries = a.query_start[s + 1] - a.query_start[s];
        const int64_t table = a.table_rows != nullptr ? a.table_rows[s] : s;
        for (int64_t i = 0; i < queries; ++i) rows.push_back({table, a.seq_lens[s] - queries + i + 1});
    }
}

// The cache as attention would be given it.
moesaic_paged_attention_args as_attention(const moesaic_select_positions_args& a) {
    moesaic_paged_attention_args args{};
    args.block_tables = a.block_tables;
    args.table_stride = a.table_stride;
    args.cache = a.cache;
    args.cache.latent = a.cache.latent == MOESAIC_NOT_LATENT ? MOESAIC_LATENT : a.cache.latent;
    args.cache.value_dim = 0;
    args.heads = a.heads;
    return args;
}

// A thread's own memory, and scores of a unit.
template <class Tile>
class Scorer {
    using Wide = typename ChunkTiles<Tile>::Wide;
    using A = typename Wide::A;
    static constexpr int64_t PAIR = Tile::DOT ? 2 : 1;  // numbers in an A

public:
    Scorer(const Call& call, const moesaic_select_positions_args& a)
        : a_(a), tiles_(call), lda_((call.dim + PAIR - 1) / PAIR), dim_(call.dim) {
        int64_t bytes = 0;
        uintptr_t memory = 0;
        const auto take = [&](int64_t count, size_t size) -> void* {
            const uintptr_t at = memory + uintptr_t(bytes);
            bytes += round_up(count * int64_t(size), 64);
            return reinterpret_cast<void*>(at);
        };
        for (int pass = 0; pass < 2; ++pass) {  // how much it is, then where
            query_ = static_cast<A*>(take(a.heads * lda_, sizeof(A)));
            products_ = static_cast<float*>(take(ROWS * TILE, sizeof(float)));
            tiles_.reserve(take);
            if (pass == 0) memory = reinterpret_cast<uintptr_t>(workspace(OWN, size_t(bytes)));
            bytes = 0;
        }
    }

    // Scores [begin, end) of token t; `begin` is a multiple of RANGE, and whole tiles are written.
    void run(int64_t t, const Row& row, int64_t begin, int64_t end, float* scores) {
        load_query(a_.query + t * a_.heads * dim_);
        tiles_.of(a_.block_tables + row.table * a_.table_stride, 0, nullptr);
        const float* weights = a_.weights + t * a_.heads;
        for (int64_t base = begin; base < end; base += CHUNK) {
            const int64_t stop = std::min(end, base + CHUNK);
            tiles_.fetch(base, base, stop);
            for (int64_t i = 0; base + i * TILE < stop; ++i) tile(i, weights, scores + base + i * TILE);
        }
    }

private:
    void load_query(const float* q) {
        for (int64_t h = 0; h < a_.heads; ++h) {
            A* out = query_ + h * lda_;
            if constexpr (Tile::DOT) {
                for (int64_t i = 0; i < lda_; ++i) {
                    const float odd = 2 * i + 1 < dim_ ? q[h * dim_ + 2 * i + 1] : 0.0f;
                    out[i] = float_to_bf16(q[h * dim_ + 2 * i]) | uint32_t(float_to_bf16(odd)) << 16;
                }
            } else {
                std::memcpy(out, q + h * dim_, size_t(dim_) * sizeof(float));
            }
        }
    }

    // The scores of tile i of the chunk.
    void tile(int64_t i, const float* weights, float* scores) {
        const typename Wide::T* keys = tiles_.widen(i);
        Vec sum[NV];
        for (int v = 0; v < NV; ++v) sum[v] = zero();
        const int64_t groups = (a_.heads + ROWS - 1) / ROWS, together = (a_.heads + groups - 1) / groups;
        for (int64_t h = 0; h < a_.heads; h += together) {
            const int count = int(std::min(together, a_.heads - h));
            const Segment<Wide> segment{query_ + h * lda_, keys, lda_};
            multiply<Wide, false>(count, &segment, 1, lda_, products_, TILE, false);
            for (int r = 0; r < count; ++r)
                for (int v = 0; v < NV; ++v) {
                    // In this order NaN stays.
                    const Vec positive = max(zero(), load(products_ + r * TILE + v * W));
                    sum[v] = fma(set1(weights[h + r]), positive, sum[v]);
                }
        }
        for (int v = 0; v < NV; ++v) {
            if (tiles_.coded()) sum[v] = mul(sum[v], load(tiles_.key_scales() + i * TILE + v * W));
            store(scores + v * W, sum[v]);
        }
    }

    const moesaic_select_positions_args& a_;
    ChunkTiles<Tile> tiles_;
    int64_t lda_, dim_;
    A* query_;
    float* products_;  // of some heads with a tile
};

// The k best of n scores, ties to the lower position, in rising order. Returns how many there are.
int64_t best(const float* scores, int64_t n, int64_t k, int32_t* out) {
    const int64_t size = block_size(n, k), blocks = n / size + 1;
    float* maxima = static_cast<float*>(workspace(BEST, size_t(2 * n + blocks) * sizeof(float) + size_t(n) * 4));
    float *values = maxima + blocks, *scratch = values + n;
    int32_t* ids = reinterpret_cast<int32_t*>(scratch + n);
    const int64_t found = Blocks(scores, n, size, maxima).best(k, ids, values, scratch);
    const float least = found > 0 ? *std::min_element(values, values + found) : 0.0f;
    int64_t ties = k - std::count_if(values, values + found, [&](float v) { return v > least; });
    int64_t kept = 0;
    for (int64_t i = 0; i < found; ++i) {
        if (values[i] == least && ties-- <= 0) continue;
        out[kept++] = ids[i];
    }
    return kept;
}

// Tokens [first, last), whose scores lie `stride` apart.
template <class Tile>
void select_span(const moesaic_select_positions_args& a, const Call& call, const Rows& rows, int64_t first, int64_t last,
                 int64_t stride) {
    float* scores = static_cast<float*>(workspace(SCORES, size_t((last - first) * stride) * sizeof(float)));
    const int64_t ranges = (stride + RANGE - 1) / RANGE, units = (last - first) * ranges;
    const Region region(team_size(units));
    Counter to_score, to_choose;
    region.run([&] {
        Scorer<Tile> scorer(call, a);
        Region::share(to_score, units, [&](int64_t unit) {
            const int64_t t = first + unit / ranges, begin = unit % ranges * RANGE;
            const Row& row = rows[size_t(t)];
            if (row.visible <= a.top_k || begin >= row.visible) return;
            scorer.run(t, row, begin, std::min(begin + RANGE, row.visible), scores + (t - first) * stride);
        });
        region.barrier();
        Region::share(to_choose, last - first, [&](int64_t i) {
            const int64_t t = first + i, visible = rows[size_t(t)].visible;
            int32_t* out = a.positions + t * a.top_k;
            a.tables[t] = rows[size_t(t)].table;
            if (visible <= a.top_k) {
                for (int64_t s = 0; s < visible; ++s) out[s] = int32_t(s);
                a.counts[t] = visible;
            } else {
                a.counts[t] = best(scores + i * stride, visible, a.top_k, out);
            }
        });
    });
}

template <class Tile>
void select(const moesaic_select_positions_args& a) {
    static thread_local Rows rows;
    list_rows(a, rows);
    const moesaic_paged_attention_args args = as_attention(a);
    const Call call(args);
    int64_t most = 1;
    for (const Row& row : rows) most = row.visible > a.top_k ? std::max(most, row.visible) : most;
    const int64_t stride = round_up(most, CHUNK), span = std::max<int64_t>(1, MOST_SCORES / stride);
    const int64_t total = int64_t(rows.size());
    for (int64_t first = 0; first < total; first += span) {
        select_span<Tile>(a, call, rows, first, std::min(total, first + span), stride);
    }
}

}  // namespace
}  // namespace moesaic

void moesaic_select_positions(const moesaic_select_positions_args* args) {
    using namespace moesaic;
    switch (args->cache.kind) {
        case MOESAIC_KV_F32:
            return select<TileF32>(*args);
        case MOESAIC_KV_F16:
            return select<TileF16>(*args);
        case MOESAIC_KV_BF16:
            return select<TileBf16>(*args);
        default:
            return select<TileInt8>(*args);
    }
}
