// From row-major weights to the panels of formats.h, quantised on the way. Threads take panels; of a panel, W rows at
// a time are read in pieces that stay in the cache and transposed, so that a lane is a column of the panel.
#include "packing.h"

namespace moesaic {
namespace {

constexpr int WORKSPACE = 14;
constexpr int LAYOUT_VERSION = 1;  // raised with every change of formats.h
constexpr int64_t PIECE = 256;  // inputs of an unquantised row that are transposed at once

// A call, as the code below asks for it.
struct Packing : Part {
    const moesaic_pack_args& a;

    explicit Packing(const moesaic_pack_args& args) : Part(args.matrix, args.part), a(args) {}

    // The source's row r of the part from input k on, nullptr where the row is padding.
    const uint8_t* row(int64_t r, int64_t k) const {
        if (r >= rows) return nullptr;
        const int64_t element = (r - a.first_row) * a.stride + k;
        return static_cast<const uint8_t*>(a.source) + element * (a.dtype == MOESAIC_F32 ? 4 : 2);
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

// Rows [begin, end) of the part, all in one panel, as they are.
void pack_floats(const Packing& p, uint8_t* panel, int64_t begin, int64_t end) {
    const int per_unit = p.f.kind == MOESAIC_F32 ? 1 : 2;
    const bool as_is = p.a.dtype == p.f.kind && p.m.cols % per_unit == 0 && p.a.stride % per_unit == 0 &&
                       reinterpret_cast<uintptr_t>(p.a.source) % sizeof(uint32_t) == 0;  // rows consist of whole units
    uint32_t units[W * PIECE];
    for (int64_t k = 0; k < p.m.cols; k += PIECE) {
        const int64_t n = std::min(PIECE, p.m.cols - k);
        auto* out = reinterpret_cast<uint32_t*>(panel) + k / per_unit * PANEL;
        for_strips(p, begin, end, [&](Strip strip, int64_t row) {
            if (as_is && row + strip.count <= p.rows) {
                const auto* rows = reinterpret_cast<const uint32_t*>(p.row(row, k));
                transpose(rows, p.a.stride / per_unit, strip.count, n / per_unit, out + strip.first, PANEL);
                return;
            }
            for (int r = 0; r < strip.count; ++r) read_units(p, row + r, k, n, units + r * PIECE);
            transpose(units, PIECE, strip.count, (n + per_unit - 1) / per_unit, out + strip.first, PANEL);
        });
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

// Rows [begin, end) of the part, all in one panel, quantised.
void pack_codes(const Packing& p, uint8_t* panel, int64_t begin, int64_t end) {
    const int64_t size = group_size(p.f, p.m.cols), bytes = group_bytes(p.f, p.m.cols);
    auto* x = static_cast<float*>(workspace(WORKSPACE, size_t(size) * W * 4));
    for (int64_t k = 0; k < p.m.cols; k += size, panel += bytes) {
        const int64_t n = std::min(size, p.m.cols - k);
        for_strips(p, begin, end, [&](Strip strip, int64_t row) {
            read_columns(p, row, strip, k, n, x);
            Groups groups;
            quantise(x, n, p.f, groups);
            std::fill(x + n * W, x + size * W, 0.0f);
            store_codes(p.f, panel, x, size, strip);
            store_scales(p.f, panel + code_bytes(p.f, p.m.cols), groups, x, n, strip);
        });
    }
}

}  // namespace
}  // namespace moesaic

using namespace moesaic;

MOESAIC_API void moesaic_pack(const moesaic_pack_args* a) {
    const Packing p(*a);
    for_panels(p, a->first_row, a->num_rows, a->alone != 0, [&](uint8_t* panel, int64_t begin, int64_t end) {
        quantised(p.f) ? pack_codes(p, panel, begin, end) : pack_floats(p, panel, begin, end);
    });
}

MOESAIC_API void moesaic_matrix_bytes(moesaic_matrix_bytes_args* a) {
    a->bytes = matrix_bytes(a->matrix.format, a->matrix.rows, a->matrix.cols);
}

MOESAIC_API void moesaic_pack_version(moesaic_pack_version_args* a) {
    a->layout = LAYOUT_VERSION * 2 + (quad_bytes() ? 1 : 0);
    a->quantiser = QUANTISER_VERSION;
}
