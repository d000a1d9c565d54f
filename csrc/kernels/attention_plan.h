// How a call of attention is cut into units of work.
//
// The rows of a sequence that share a KV head (its query tokens times the heads of the group) are cut into tiles; a tile
// of rows of one KV head is a unit. Where one unit would be a large part of all the work, it is cut along the keys too,
// at multiples of SPLIT tokens counted from the sequence's beginning: its partial results are merged in order, which is
// just what the thread of an uncut unit does, so that cutting never shows in the bits.
#pragma once

#include <algorithm>
#include <vector>

#include "../abi/attention.h"
#include "../common/team.h"
#include "kv_tiles.h"

namespace moesaic {

constexpr int64_t CHUNK = 64;   // keys that are scored, then weighted, together
constexpr int64_t SPLIT = 512;  // keys between two merges
constexpr int64_t MAX_ROWS = 132;         // of a tile
constexpr int64_t ROWS_WITH_VALUES = 96;  // of a tile where keys and values lie ready; latents cost more to decode
constexpr double LEAST_WORK = 2e5;  // multiplications below which one thread is faster than waking others
constexpr int64_t UNITS_PER_THREAD = 8;  // what a unit must not exceed: a thread's even share of the work over this

struct SequenceWork {
    int64_t index, first_query, queries, tokens;
    int64_t rows, tiles, tile_rows;      // rows of a KV head
    int64_t first_split, splits, parts;  // of the keys that some row sees; parts is 1 or splits
    int64_t first_unit, units, first_part, first_tile;
    double cost;  // of its largest unit

    int64_t position(int64_t row, int64_t group) const { return tokens - queries + row / group; }
};

struct AttentionPlan {
    std::vector<SequenceWork> sequences;
    int64_t units = 0, parts = 0, cut_tiles = 0;
    bool alone = false;  // one thread computes it all

    const SequenceWork& of_unit(int64_t unit) const {
        const auto after = std::upper_bound(sequences.begin(), sequences.end(), unit,
                                            [](int64_t u, const SequenceWork& s) { return u < s.first_unit; });
        return *(after - 1);
    }
};

// The first position that the token at `position` sees.
inline int64_t first_seen(const moesaic_paged_attention_args& a, int64_t position) {
    if (a.window <= 0) return 0;
    return a.chunked ? position / a.window * a.window : std::max<int64_t>(0, position - a.window + 1);
}

// Fills `plan`; the largest units come first, so that threads end together.
inline void make_plan(const moesaic_paged_attention_args& a, AttentionPlan& plan) {
    const int64_t group = a.heads / a.cache.heads, most = a.cache.latent ? MAX_ROWS : ROWS_WITH_VALUES;
    plan.sequences.clear();
    double total = 0, products = 0;
    for (int64_t s = 0; s < *a.sequences; ++s) {
        SequenceWork w{};
        w.index = s;
        w.first_query = a.selected != nullptr ? s : a.query_start[s];
        w.queries = a.selected != nullptr ? 1 : a.query_start[s + 1] - w.first_query;
        w.tokens = a.seq_lens[s];
        if (w.queries <= 0) continue;
        w.rows = w.queries * group;
        w.tiles = (w.rows + most - 1) / most;
        w.tile_rows = std::min(most, round_up((w.rows + w.tiles - 1) / w.tiles, ROWS));
        w.tiles = (w.rows + w.tile_rows - 1) / w.tile_rows;
        const int64_t first = first_seen(a, w.position(0, group));
        w.first_split = first / SPLIT;
        w.splits = (w.tokens - 1) / SPLIT - w.first_split + 1;
        // Keys are read at the memory's speed for few rows, and multiplied at the processor's for many.
        const int64_t seen = a.window > 0 ? std::min(w.tokens - first, a.window + w.tile_rows / group) : w.tokens;
        w.cost = double(seen) * double(8 + std::min(w.rows, w.tile_rows));
        total += w.cost * double(w.tiles * a.cache.heads);
        products += double(seen) * double(w.rows * a.cache.heads * (a.cache.key_dim + a.cache.value_dim));
        plan.sequences.push_back(w);
    }
    std::sort(plan.sequences.begin(), plan.sequences.end(), [](const SequenceWork& x, const SequenceWork& y) {
        return x.cost != y.cost ? x.cost > y.cost : x.index < y.index;
    });
    plan.alone = products < LEAST_WORK || team_size(INT32_MAX) == 1;
    const double most_cost = plan.alone ? total : total / double(team_size(INT32_MAX) * UNITS_PER_THREAD);
    plan.units = plan.parts = plan.cut_tiles = 0;
    for (SequenceWork& w : plan.sequences) {
        w.parts = w.cost > most_cost ? w.splits : 1;
        w.first_unit = plan.units;
        w.units = w.tiles * a.cache.heads * w.parts;
        w.first_part = plan.parts;
        w.first_tile = plan.cut_tiles;
        plan.units += w.units;
        if (w.parts > 1) {
            plan.parts += w.units;
            plan.cut_tiles += w.tiles * a.cache.heads;
        }
    }
}

}  // namespace moesaic
