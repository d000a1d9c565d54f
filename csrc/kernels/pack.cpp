// From row-major weights to the panels of formats.h, quantised on the way. Threads take panels; of a panel, W rows at
// a time are read in pieces that stay in the cache and transposed, so that a lane is a column of the panel.
#include "../abi/pack.h"

#include <algorithm>
#include <cstring>

#include "../common/formats.h"
#include "../common/team.h"
#include "panels.h"
#include "quantize.h"

namespace moesaic {
namespace {

constexpr int WORKSPACE = 14;
constexpr int LAYOUT_VERSION = 1;  // raised with every change of formats.h
constexpr int64_t PIECE = 256;  // inputs of an unquantised row that are transposed at once

// Where the rows of a part lie: row r of it is column `first + r % width` of panel r / width.
struct Place {
    int64_t first, width;
};

Place place_of(int32_t part) {
    if (part == MOESAIC_WHOLE) return {0, PANEL};
    return {part == MOESAIC_UP ? PANEL / 2 : 0, PANEL / 2};
}

// A call, as the code below asks for it.
struct Packing {
    const moesaic_pack_args& a;
    const moesaic_matrix& m;
    const moesaic_format& f;
    Place place;
    int64_t part_rows;  // rows of the part that are not padding

    explicit Packing(const moesaic_pack_args& args)
        : a(args), m(args.matrix), f(args.matrix.format), place(place_of(args.part)),
          part_rows(args.part == MOESAIC_WHOLE ? args.matrix.rows : args.matrix.rows / 2) {}

    // The source's row r of the part from input k on, nullptr where the row is padding.
    const uint8_t* row(int64_t r, int64_t k) const {
        if (r >= part_rows) return nullptr;
        const int64_t element = (r - a.first_row) * a.stride + k;
        return static_cast<const uint8_t*>(a.source) + element * (a.dtype == MOESAIC_F32 ? 4 : 2);
    }

    uint8_t* panel(int64_t p) const {
        return static_cast<uint8_t*>(const_cast<void*>(m.data)) + p * panel_bytes(f, m.cols);
    }
};

// `n` elements as fp32.
void read_floats(const uint8_t* source, int32_t dtype, int64_t n, float* out) {
    const auto* halves = reinterpret_cast<const uint16_t*>(source);
    int64_t i = 0;
    if (dtype == MOESAIC_F32) {
        std::memcpy(out, source, size_t(n) * 4);
    } else if (dtype == MOESAIC_BF16) {
        for (; i + W <= n; i += W) store(out + i, load_bf16(halves + i));
        for (; i < n; ++i) out[i] = bf16_to_float(halves[i]);
    } else {
        for (; i + W <= n; i += W) store(out + i, load_f16(halves + i));
        for (; i < n; ++i) out[i] = f16_to_float(halves[i]);
    }
}

void write_halves(const float* x, int32_t kind, int64_t n, uint16_t* out) {
    int64_t i = 0;
    if (kind == MOESAIC_BF16) {
        for (; i + W <= n; i += W) store_bf16(out + i, load(x + i));
        for (; i < n; ++i) out[i] = float_to_bf16(x[i]);
    } else {
        for (; i + W <= n; i += W) store_f16(out + i, load(x + i));
        for (; i < n; ++i) out[i] = float_to_f16(x[i]);
    }
}

// Row r's inputs [k, k + n) in the matrix's kind; zeros where it is padding, and in an odd last half.
void read_units(const Packing& p, int64_t r, int64_t k, int64_t n, uint32_t* units) {
    const uint8_t* source = p.row(r, k);
    const bool halves = p.f.kind != MOESAIC_F32;
    if (source == nullptr) {
        std::memset(units, 0, size_t(halves ? (n + 1) / 2 : n) * 4);
        return;
    }
    if (halves && n % 2) units[n / 2] = 0;
    if (p.a.dtype == p.f.kind) {
        std::memcpy(units, source, size_t(n) * (halves ? 2 : 4));
    } else if (!halves) {
        read_floats(source, p.a.dtype, n, reinterpret_cast<float*>(units));
    } else {
        float values[PIECE];
        read_floats(source, p.a.dtype, n, values);
        write_halves(values, p.f.kind, n, reinterpret_cast<uint16_t*>(units));
    }
}

// Calls body(strip, row) for every strip of columns that rows [begin, end) of one panel cover.
template <class Body>
void for_strips(const Packing& p, int64_t begin, int64_t end, const Body& body) {
    while (begin < end) {
        const int64_t column = p.place.first + begin % p.place.width;
        const int count = int(std::min(end - begin, W - column % W));
        body(Strip{column, count}, begin);
        begin += count;
    }
}

// Rows [begin, end) of the part, all in one panel, as they are.
void pack_floats(const Packing& p, uint8_t* panel, int64_t begin, int64_t end) {
    const int per_unit = p.f.kind == MOESAIC_F32 ? 1 : 2;
    uint32_t units[W * PIECE];
    for (int64_t k = 0; k < p.m.cols; k += PIECE) {
        const int64_t n = std::min(PIECE, p.m.cols - k);
        auto* out = reinterpret_cast<uint32_t*>(panel) + k / per_unit * PANEL;
        for_strips(p, begin, end, [&](Strip strip, int64_t row) {
            for (int r = 0; r < strip.count; ++r) read_units(p, row + r, k, n, units + r * PIECE);
            transpose(units, PIECE, strip.count, (n + per_unit - 1) / per_unit, out + strip.first, PANEL);
        });
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

void store_codes(const moesaic_format& f, uint8_t* out, const float* codes, int64_t n, Strip strip) {
    if (f.kind == MOESAIC_W4) {
        store_units(reinterpret_cast<uint32_t*>(out), codes, n, strip, {0, 16, 4, 20, 8, 24, 12, 28}, 15);
    } else if (f.kind == MOESAIC_W8A8 && quad_bytes()) {
        store_units(reinterpret_cast<uint32_t*>(out), codes, n, strip, {0, 8, 16, 24}, 255);
    } else {
        store_units(reinterpret_cast<uint16_t*>(out), codes, n, strip, {0, 8}, 255);
    }
}

// Inputs [k, k + n) of a strip's rows, a row in each lane: x [n, W], zeros for rows that are padding or not in it.
void read_columns(const Packing& p, int64_t row, Strip strip, int64_t k, int64_t n, float* x) {
    float rows[W * PIECE];
    for (int64_t i = 0; i < n; i += PIECE) {
        const int64_t piece = std::min(PIECE, n - i);
        for (int r = 0; r < W; ++r) {
            const uint8_t* source = r < strip.count ? p.row(row + r, k + i) : nullptr;
            if (source != nullptr) {
                read_floats(source, p.a.dtype, piece, rows + r * PIECE);
            } else {
                std::memset(rows + r * PIECE, 0, size_t(piece) * 4);
            }
        }
        transpose(reinterpret_cast<uint32_t*>(rows), PIECE, W, piece, reinterpret_cast<uint32_t*>(x + i * W), W);
    }
}

// What stands behind the codes of a group for each column.
void store_scales(const moesaic_format& f, uint8_t* out, const Groups& groups, const float* codes, int64_t n, Strip strip) {
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

// Rows [begin, end) of the part, all in one panel, quantised.
void pack_codes(const Packing& p, uint8_t* panel, int64_t begin, int64_t end) {
    const int64_t size = group_size(p.f, p.m.cols), bytes = group_bytes(p.f, p.m.cols);
    const int64_t code_bytes = size * PANEL / (p.f.kind == MOESAIC_W4 ? 2 : 1);
    auto* x = static_cast<float*>(workspace(WORKSPACE, size_t(size) * W * 4));
    for (int64_t k = 0; k < p.m.cols; k += size, panel += bytes) {
        const int64_t n = std::min(size, p.m.cols - k);
        for_strips(p, begin, end, [&](Strip strip, int64_t row) {
            read_columns(p, row, strip, k, n, x);
            Groups groups;
            quantise(x, n, p.f, groups);
            std::fill(x + n * W, x + size * W, 0.0f);
            store_codes(p.f, panel, x, size, strip);
            store_scales(p.f, panel + code_bytes, groups, x, n, strip);
        });
    }
}

}  // namespace
}  // namespace moesaic

using namespace moesaic;

MOESAIC_API void moesaic_pack(const moesaic_pack_args* a) {
    const Packing p(*a);
    const int64_t width = p.place.width;
    int64_t last = a->first_row + a->num_rows;
    if (last == p.part_rows) last = round_up(last, width);  // what pads the part is written with its last row
    const int64_t first_panel = a->first_row / width, num_panels = (last + width - 1) / width - first_panel;
    const auto pack = [&](int64_t begin, int64_t end) {
        for (int64_t i = first_panel + begin; i < first_panel + end; ++i) {
            const int64_t from = std::max(a->first_row, i * width), to = std::min(last, (i + 1) * width);
            if (quantised(p.f)) {
                pack_codes(p, p.panel(i), from, to);
            } else {
                pack_floats(p, p.panel(i), from, to);
            }
        }
    };
    a->alone ? pack(0, num_panels) : parallel_for(num_panels, 1, pack);
}

MOESAIC_API void moesaic_matrix_bytes(moesaic_matrix_bytes_args* a) {
    a->bytes = matrix_bytes(a->matrix.format, a->matrix.rows, a->matrix.cols);
}

MOESAIC_API void moesaic_pack_version(moesaic_pack_version_args* a) {
    a->layout = LAYOUT_VERSION * 2 + (quad_bytes() ? 1 : 0);
    a->quantiser = QUANTISER_VERSION;
}
