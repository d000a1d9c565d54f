// Attention of each query and head to the best of the keys that it sees. All scores are computed; then the top_k highest
// are found, among equal ones the earliest, and a softmax runs over these alone, in order of the tokens.
//
// A query token and KV head is a unit, and every sum in it runs in an order that depends on positions alone: a token's
// bits are the same alone, in a batch and in chunks.
#include <algorithm>
#include <cmath>

#include "attention_plan.h"

namespace moesaic {
namespace {

constexpr int SCRATCH = 9;  // workspace slot; prepare_qkv's, which never runs at the same time

template <class Tile>
float decode(const typename Tile::T* elements, int64_t i) {
    if constexpr (std::is_same_v<Tile, TileF32>) return elements[i];
    if constexpr (std::is_same_v<Tile, TileF16>) return f16_to_float(elements[i]);
    if constexpr (std::is_same_v<Tile, TileBf16Pairs>) return bf16_to_float(elements[i]);
    return float(elements[i]);
}

template <class Tile>
class Unit {
public:
    using T = typename Tile::T;
    static constexpr bool CODED = std::is_same_v<Tile, TileInt8>;

    Unit(const moesaic_sparse_attention_args& args, const KvLayout& layout)
        : a_(args.attention), top_k_(args.top_k), layout_(layout), group_(a_.heads / a_.cache.heads) {}

    // Query token `row`, of sequence s and at `position`, and the heads that share KV head `head`.
    void run(int64_t s, int64_t row, int64_t position, int64_t head) {
        const int64_t first = first_seen(a_, position), seen = position + 1 - first;
        const int64_t stride = round_up(seen + 2 * layout_.width, TILE), columns = round_up(a_.cache.value_dim, TILE);
        float* scores = static_cast<float*>(workspace(SCRATCH, size_t((group_ + 1) * stride + columns) * sizeof(float)));
        float *order = scores + group_ * stride, *sums = order + stride;
        table_ = a_.block_tables + (a_.table_rows != nullptr ? a_.table_rows[s] : s) * a_.table_stride;
        const int64_t row_head = row * a_.heads + head * group_;
        const float* queries = a_.query + row_head * a_.cache.key_dim;
        const int64_t skip = lane_of(first);  // lanes of the first tile that are not seen
        for (int64_t p = first - skip; p <= position;) {
            const char* tile = tile_of(p, head);
            const int64_t block_end = (p / a_.cache.block_size + 1) * a_.cache.block_size;
            const int64_t tokens = std::min(p + layout_.width, block_end) - p;
            score(queries, reinterpret_cast<const T*>(tile), scores + p - (first - skip), stride, tokens);
            if (CODED) scale_codes(scales_of(tile), scores + p - (first - skip), stride, tokens);
            p += tokens;
        }
        for (int64_t g = 0; g < group_; ++g) {
            float* own = scores + g * stride + skip;
            for (int64_t i = 0; i < seen; ++i) own[i] *= a_.scale;
            if (a_.softcap != 0) {
                for (int64_t i = 0; i < seen; ++i) own[i] = a_.softcap * std::tanh(own[i] / a_.softcap);
            }
            float* out = a_.out + (row_head + g) * a_.cache.value_dim;
            mix(own, order, sums, first, seen, head, head * group_ + g, out);
        }
    }

private:
    int64_t lane_of(int64_t position) const { return position % a_.cache.block_size % layout_.width; }

    // out[g][t] = query of head g . key of token t, one chain of sums for each.
    void score(const float* queries, const T* keys, float* out, int64_t stride, int64_t tokens) const {
        const int64_t dim = a_.cache.key_dim;
        if (layout_.width == TILE) {
            for (int64_t g = 0; g < group_; g += ROWS) {
                const Segment<Tile> segment{queries + g * dim, keys, dim};
                const int rows = int(std::min<int64_t>(ROWS, group_ - g));
                multiply<Tile, false>(rows, &segment, 1, dim, out + g * stride, stride, false);
            }
            return;
        }
        for (int64_t g = 0; g < group_; ++g)
            for (int64_t t = 0; t < tokens; ++t) {
                float sum = 0;
                for (int64_t d = 0; d < dim; ++d) {
                    sum += queries[g * dim + d] * decode<Tile>(keys, layout_.key_index(t, d));
                }
                out[g * stride + t] = sum;
            }
    }

    void scale_codes(const float* scales, float* scores, int64_t stride, int64_t tokens) const {
        for (int64_t g = 0; g < group_; ++g)
            for (int64_t t = 0; t < tokens; ++t) scores[g * stride + t] *= scales[t];
    }

    const char* tile_of(int64_t position, int64_t head) const {
        const int64_t offset = position % a_.cache.block_size;
        return static_cast<const char*>(a_.cache.data) +
               table_[position / a_.cache.block_size] * layout_.block_bytes + head * layout_.head_bytes +
               offset / layout_.width * layout_.tile_bytes;
    }

    const float* scales_of(const char* tile) const { return reinterpret_cast<const float*>(tile + layout_.scales_at); }

    // One head's output from its scores of tokens [first, first + seen). NaN where a score is.
    void mix(const float* scores, float* order, float* sums, int64_t first, int64_t seen, int64_t head,
             int64_t query_head, float* out) const {
        const int64_t value_dim = a_.cache.value_dim;
        float sum = 0, least = -INFINITY;
        for (int64_t i = 0; i < seen; ++i) sum += scores[i];
        if (sum != sum) {
            std::fill(out, out + value_dim, NAN);
            return;
        }
        int64_t level = seen;  // how many at the least score are taken
        if (top_k_ < seen) {
            std::copy(scores, scores + seen, order);
            std::nth_element(order, order + top_k_ - 1, order + seen, std::greater<float>());
            least = order[top_k_ - 1];
            level = top_k_ - std::count_if(scores, scores + seen, [&](float score) { return score > least; });
        }
        const float sink = a_.sinks != nullptr ? a_.sinks[query_head] : -INFINITY;
        const float top = std::max(sink, *std::max_element(scores, scores + seen));
        std::fill(sums, sums + round_up(value_dim, TILE), 0.0f);
        sum = a_.sinks != nullptr ? std::exp(sink - top) : 0;
        for (int64_t i = 0; i < seen; ++i) {
            if (scores[i] < least || (scores[i] == least && level-- <= 0)) continue;
            const float weight = std::exp(scores[i] - top);
            sum += weight;
            add_value(first + i, head, weight, sums);
        }
        for (int64_t d = 0; d < value_dim; ++d) out[d] = sums[d] / sum;
    }

    void add_value(int64_t position, int64_t head, float weight, float* sums) const {
        const char* tile = tile_of(position, head);
        const int64_t lane = lane_of(position);
        if (CODED) weight *= scales_of(tile)[layout_.width + lane];
        const T* stripe = reinterpret_cast<const T*>(tile + layout_.value_at);
        for (int64_t d = 0; d < a_.cache.value_dim; d += TILE, stripe += layout_.stripe_elements)
            for (int v = 0; v < NV; ++v) {
                const Vec values = Tile::load(stripe, lane / Tile::COUNT, int(lane % Tile::COUNT), v);
                store(sums + d + v * W, fma(set1(weight), values, load(sums + d + v * W)));
            }
    }

    const moesaic_paged_attention_args& a_;
    int64_t top_k_;
    const KvLayout& layout_;
    int64_t group_;
    const int64_t* table_ = nullptr;
};

template <class Tile>
void run(const moesaic_sparse_attention_args& args) {
    const moesaic_paged_attention_args& a = args.attention;
    const KvLayout layout(a.cache);
    const int64_t sequences = *a.sequences, kv_heads = a.cache.heads;
    parallel_for(*a.rows * kv_heads, 1, [&](int64_t begin, int64_t end) {
        Unit<Tile> unit(args, layout);
        for (int64_t i = begin; i < end; ++i) {
            const int64_t row = i / kv_heads;
            const int64_t* after = std::upper_bound(a.query_start, a.query_start + sequences + 1, row);
            const int64_t s = after - a.query_start - 1;
            unit.run(s, row, a.seq_lens[s] - (*after - row), i % kv_heads);
        }
    });
}

}  // namespace
}  // namespace moesaic

void moesaic_sparse_attention(const moesaic_sparse_attention_args* args) {
    using namespace moesaic;
    switch (args->attention.cache.kind) {
        case MOESAIC_KV_F32:
            return run<TileF32>(*args);
        case MOESAIC_KV_F16:
            return run<TileF16>(*args);
        case MOESAIC_KV_BF16:
            return run<TileBf16Pairs>(*args);
        default:
            return run<TileInt8>(*args);
    }
}
