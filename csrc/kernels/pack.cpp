// From row-major weights to the panels of formats.h, quantised on the way, and back.
#include "../abi/pack.h"

#include <algorithm>
#include <cstring>

#include "../common/formats.h"
#include "../common/team.h"
#include "quantize.h"

namespace moesaic {
namespace {

constexpr int WORKSPACE = 14;

float element(const void* source, int32_t dtype, int64_t i) {
    if (dtype == MOESAIC_F32) return static_cast<const float*>(source)[i];
    const uint16_t half = static_cast<const uint16_t*>(source)[i];
    return dtype == MOESAIC_F16 ? f16_to_float(half) : bf16_to_float(half);
}

// Where the rows of a part lie: row r of it is column `first + r % width` of panel r / width.
struct Place {
    int64_t first, width;
};

Place place_of(int32_t part) {
    if (part == MOESAIC_WHOLE) return {0, PANEL};
    return {part == MOESAIC_UP ? PANEL / 2 : 0, PANEL / 2};
}

// Where code k of a column lies in its group, in bytes.
int64_t byte_of(const moesaic_format& f, int64_t k, int64_t column) {
    if (f.kind == MOESAIC_W8A8 && quad_bytes()) return (k / 4 * PANEL + column) * 4 + k % 4;
    return (k / 2 * PANEL + column) * 2 + k % 2;
}

// The 16-bit word of code k of a column in a group of w4, and the code's place in it.
int64_t word_of(int64_t k, int64_t column) { return (k / 8 * PANEL + column) * 2 + k % 2; }
int shift_of(int64_t k) { return int(k % 8 / 2 * 4); }

// One column of a panel, unquantised. `row` is fp32, [cols].
void pack_halves(const moesaic_matrix& m, uint8_t* panel, int64_t column, const float* row) {
    const int64_t k_padded = padded_cols(m.format, m.cols);
    for (int64_t k = 0; k < k_padded; ++k) {
        const float x = k < m.cols ? row[k] : 0.0f;
        if (m.format.kind == MOESAIC_F32) {
            reinterpret_cast<float*>(panel)[k * PANEL + column] = x;
        } else {
            reinterpret_cast<uint16_t*>(panel)[(k / 2 * PANEL + column) * 2 + k % 2] =
                m.format.kind == MOESAIC_F16 ? float_to_f16(x) : float_to_bf16(x);
        }
    }
}

// One column of one group: codes, scale, and what else the format has.
void store_group(const moesaic_format& f, uint8_t* bytes, int64_t size, int64_t column, const Group& group) {
    int32_t sum = 0;
    if (f.kind == MOESAIC_W4) {
        auto* words = reinterpret_cast<uint16_t*>(bytes);
        for (int64_t k = 0; k < size; k += 8) words[word_of(k, column)] = words[word_of(k + 1, column)] = 0;
        for (int64_t k = 0; k < size; ++k) words[word_of(k, column)] |= uint16_t(group.codes[k] << shift_of(k));
        bytes += size * PANEL / 2;
    } else {
        for (int64_t k = 0; k < size; ++k) {
            bytes[byte_of(f, k, column)] = uint8_t(group.codes[k]);
            sum += group.codes[k];
        }
        bytes += size * PANEL;
    }
    auto* scales = reinterpret_cast<uint16_t*>(bytes);
    scales[column] = group.scale;
    if (f.offsets) scales[PANEL + column] = group.offset;
    if (f.kind == MOESAIC_W8A8 && quad_bytes()) std::memcpy(bytes + PANEL * 2 + column * 4, &sum, 4);
}

// One column of a panel, quantised group by group. `row` is fp32, [cols].
void pack_codes(const moesaic_matrix& m, uint8_t* panel, int64_t column, const float* row, int8_t* codes) {
    const int64_t size = group_size(m.format, m.cols);
    for (int64_t k = 0; k < m.cols; k += size) {
        const int64_t filled = std::min(size, m.cols - k);
        Group group{codes, 0, 0};
        quantise(row + k, filled, m.format, group);
        std::memset(codes + filled, 0, size_t(size - filled));
        store_group(m.format, panel + k / size * group_bytes(m.format, m.cols), size, column, group);
    }
}

}  // namespace
}  // namespace moesaic

using namespace moesaic;

MOESAIC_API void moesaic_pack(const moesaic_pack_args* a) {
    const moesaic_matrix& m = a->matrix;
    const Place place = place_of(a->part);
    const int64_t part_rows = a->part == MOESAIC_WHOLE ? m.rows : m.rows / 2;
    int64_t last = a->first_row + a->num_rows;
    if (last == part_rows) last = round_up(part_rows, place.width);  // what pads the part
    const int64_t first_panel = a->first_row / place.width, end_panel = (last + place.width - 1) / place.width;
    parallel_for(end_panel - first_panel, 1, [&](int64_t begin, int64_t end) {
        const int64_t room = round_up(group_size(m.format, m.cols), 64);
        auto* row = static_cast<float*>(workspace(WORKSPACE, size_t(m.cols) * 4 + size_t(room)));
        auto* codes = reinterpret_cast<int8_t*>(row + m.cols);
        for (int64_t p = first_panel + begin; p < first_panel + end; ++p) {
            auto* panel = static_cast<uint8_t*>(const_cast<void*>(m.data)) + p * panel_bytes(m.format, m.cols);
            const int64_t stop = std::min(last, (p + 1) * place.width);
            for (int64_t r = std::max(a->first_row, p * place.width); r < stop; ++r) {
                for (int64_t k = 0; k < m.cols; ++k) {
                    row[k] = r < part_rows ? element(a->source, a->dtype, (r - a->first_row) * a->stride + k) : 0.0f;
                }
                const int64_t column = place.first + r % place.width;
                quantised(m.format) ? pack_codes(m, panel, column, row, codes) : pack_halves(m, panel, column, row);
            }
        }
    });
}

namespace moesaic {
namespace {

float weight_at(const moesaic_matrix& m, const uint8_t* panel, int64_t column, int64_t k) {
    const moesaic_format& f = m.format;
    if (f.kind == MOESAIC_F32) return reinterpret_cast<const float*>(panel)[k * PANEL + column];
    if (!quantised(f)) {
        const uint16_t half = reinterpret_cast<const uint16_t*>(panel)[(k / 2 * PANEL + column) * 2 + k % 2];
        return f.kind == MOESAIC_F16 ? f16_to_float(half) : bf16_to_float(half);
    }
    const int64_t size = group_size(f, m.cols);
    const uint8_t* group = panel + k / size * group_bytes(f, m.cols);
    k %= size;
    const int code = f.kind == MOESAIC_W4
        ? (reinterpret_cast<const uint16_t*>(group)[word_of(k, column)] >> shift_of(k) & 15) - 8
        : int8_t(group[byte_of(f, k, column)]);
    const auto* scales = reinterpret_cast<const uint16_t*>(group + size * PANEL / (f.kind == MOESAIC_W4 ? 2 : 1));
    const float offset = f.offsets ? bf16_to_float(scales[PANEL + column]) : 0.0f;
    return bf16_to_float(scales[column]) * float(code) + offset;
}

}  // namespace
}  // namespace moesaic

MOESAIC_API void moesaic_unpack(const moesaic_unpack_args* a) {
    const moesaic_matrix& m = a->matrix;
    parallel_for(a->num_rows, 16, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            int64_t r = a->first_row + i;
            const bool up = m.format.gated && r >= m.rows / 2;
            const Place place = place_of(!m.format.gated ? MOESAIC_WHOLE : up ? MOESAIC_UP : MOESAIC_GATE);
            if (up) r -= m.rows / 2;
            const auto* panel = static_cast<const uint8_t*>(m.data) + r / place.width * panel_bytes(m.format, m.cols);
            for (int64_t k = 0; k < m.cols; ++k) {
                a->out[i * m.cols + k] = weight_at(m, panel, place.first + r % place.width, k);
            }
        }
    });
}

MOESAIC_API void moesaic_matrix_bytes(moesaic_matrix_bytes_args* a) {
    a->bytes = matrix_bytes(a->matrix.format, a->matrix.rows, a->matrix.cols);
}
