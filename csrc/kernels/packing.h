// What packing of floats and of codes share: where the rows of a part lie, and how a group's codes become its bytes.
#pragma once

#include <algorithm>
#include <cstring>

#include "../abi/pack.h"
#include "../common/formats.h"
#include "../common/team.h"
#include "panels.h"
#include "quantize.h"

namespace moesaic {

// Where the rows of a part lie: row r of it is column `first + r % width` of panel r / width.
struct Place {
    int64_t first, width;
};

inline Place place_of(int32_t part) {
    if (part == MOESAIC_WHOLE) return {0, PANEL};
    return {part == MOESAIC_UP ? PANEL / 2 : 0, PANEL / 2};
}

// A part of a matrix that is written.
struct Part {
    const moesaic_matrix& m;
    const moesaic_format& f;
    Place place;
    int64_t rows;  // that are not padding

    Part(const moesaic_matrix& matrix, int32_t part)
        : m(matrix), f(matrix.format), place(place_of(part)),
          rows(part == MOESAIC_WHOLE ? matrix.rows : matrix.rows / 2) {}

    uint8_t* panel(int64_t p) const {
        return static_cast<uint8_t*>(const_cast<void*>(m.data)) + p * panel_bytes(f, m.cols);
    }
};

// Calls body(panel, begin, end) for the rows of each panel that rows [first_row, first_row + num_rows) lie in, by all
// threads or `alone`. With the last row of the part comes what pads it.
template <class Body>
void for_panels(const Part& p, int64_t first_row, int64_t num_rows, bool alone, const Body& body) {
    const int64_t width = p.place.width;
    int64_t last = first_row + num_rows;
    if (last == p.rows) last = round_up(last, width);
    const int64_t first_panel = first_row / width, num_panels = (last + width - 1) / width - first_panel;
    const auto some = [&](int64_t begin, int64_t end) {
        for (int64_t i = first_panel + begin; i < first_panel + end; ++i)
            body(p.panel(i), std::max(first_row, i * width), std::min(last, (i + 1) * width));
    };
    alone ? some(0, num_panels) : parallel_for(num_panels, 1, some);
}

// Calls body(strip, row) for every strip of columns that rows [begin, end) of one panel cover.
template <class Body>
void for_strips(const Part& p, int64_t begin, int64_t end, const Body& body) {
    while (begin < end) {
        const int64_t column = p.place.first + begin % p.place.width;
        const int count = int(std::min(end - begin, W - column % W));
        body(Strip{column, count}, begin);
        begin += count;
    }
}

// Codes are put together in units, `shifts` (one an input) saying where in a unit each lies: codes [n, W] as floats to
// out [n / inputs, 32]. Whole vectors of lanes at every step.
template <class Unit, int INPUTS>
void store_units(Unit* out, const float* codes, int64_t n, Strip strip, const int (&shifts)[INPUTS], uint32_t mask) {
    for (int64_t i = 0; i < n / INPUTS; ++i, codes += INPUTS * W) {
        uint32_t wide[W] = {};
        for (int j = 0; j < INPUTS; ++j) {
            for (int l = 0; l < W; ++l) wide[l] |= (uint32_t(int32_t(codes[j * W + l])) & mask) << shifts[j];
        }
        Unit row[W];
        for (int l = 0; l < W; ++l) row[l] = Unit(wide[l]);
        Unit* to = out + i * PANEL + strip.first;
        if (strip.count == W) {
            std::memcpy(to, row, sizeof row);
        } else {
            std::copy(row, row + strip.count, to);
        }
    }
}

inline void store_codes(const moesaic_format& f, uint8_t* out, const float* codes, int64_t n, Strip strip) {
    if (nibbles(f)) {
        store_units(reinterpret_cast<uint32_t*>(out), codes, n, strip, {0, 16, 4, 20, 8, 24, 12, 28}, 15);
    } else if (f.kind == MOESAIC_W8A8 && quad_bytes()) {
        store_units(reinterpret_cast<uint32_t*>(out), codes, n, strip, {0, 8, 16, 24}, 255);
    } else {
        store_units(reinterpret_cast<uint16_t*>(out), codes, n, strip, {0, 8}, 255);
    }
}

// What stands behind the codes of a group for each column.
inline void store_scales(const moesaic_format& f, uint8_t* out, const Groups& groups, const float* codes, int64_t n,
                         Strip strip) {
    auto* scales = reinterpret_cast<uint16_t*>(out);
    for (int r = 0; r < strip.count; ++r) {
        scales[strip.first + r] = float_to_bf16(groups.scale[r]);
        if (f.offsets) scales[PANEL + strip.first + r] = float_to_bf16(groups.offset[r]);
    }
    if (f.kind != MOESAIC_W8A8 || !quad_bytes()) return;
    auto* sums = reinterpret_cast<int32_t*>(scales + PANEL);
    for (int r = 0; r < strip.count; ++r) {
        int32_t sum = 0;
        for (int64_t i = 0; i < n; ++i) sum += int32_t(codes[i * W + r]);
        sums[strip.first + r] = sum;
    }
}

}  // namespace moesaic
