// Rows of a packed matrix as kernels understand them: for checks and tests, and where a row-major copy is needed.
#include "../abi/pack.h"
#include "../common/formats.h"
#include "../common/simd.h"
#include "../common/team.h"

namespace moesaic {
namespace {

// Code k of a column in a group, as what its scale multiplies.
int code_at(const moesaic_format& f, const uint8_t* group, int64_t column, int64_t k) {
    if (nibbles(f)) {
        const uint16_t word = reinterpret_cast<const uint16_t*>(group)[(k / 8 * PANEL + column) * 2 + k % 2];
        const int code = word >> (k % 8 / 2 * 4) & 15;
        return f.kind == MOESAIC_W4 ? code - 8 : MXFP4_STEPS[code] + MXFP4_LEAST;
    }
    if (f.kind == MOESAIC_W8A8 && quad_bytes()) return int8_t(group[(k / 4 * PANEL + column) * 4 + k % 4]);
    return int8_t(group[(k / 2 * PANEL + column) * 2 + k % 2]);
}

// One column of a panel without codes.
void read_floats(const moesaic_matrix& m, const uint8_t* panel, int64_t column, float* out) {
    for (int64_t k = 0; k < m.cols; ++k) {
        if (m.format.kind == MOESAIC_F32) {
            out[k] = reinterpret_cast<const float*>(panel)[k * PANEL + column];
        } else {
            const uint16_t half = reinterpret_cast<const uint16_t*>(panel)[(k / 2 * PANEL + column) * 2 + k % 2];
            out[k] = m.format.kind == MOESAIC_F16 ? f16_to_float(half) : bf16_to_float(half);
        }
    }
}

// One column of a panel of codes.
void read_codes(const moesaic_matrix& m, const uint8_t* panel, int64_t column, float* out) {
    const moesaic_format& f = m.format;
    const int64_t size = group_size(f, m.cols);
    for (int64_t first = 0; first < m.cols; first += size, panel += group_bytes(f, m.cols)) {
        const auto* scales = reinterpret_cast<const uint16_t*>(panel + code_bytes(f, m.cols));
        const float scale = bf16_to_float(scales[column]);
        const float offset = f.offsets ? bf16_to_float(scales[PANEL + column]) : 0.0f;
        const int64_t n = m.cols - first < size ? m.cols - first : size;
        for (int64_t k = 0; k < n; ++k) out[first + k] = scale * float(code_at(f, panel, column, k)) + offset;
    }
}

}  // namespace
}  // namespace moesaic

using namespace moesaic;

MOESAIC_API void moesaic_unpack(const moesaic_unpack_args* a) {
    const moesaic_matrix& m = a->matrix;
    const int64_t half = m.format.gated ? m.rows / 2 : m.rows, width = m.format.gated ? PANEL / 2 : PANEL;
    parallel_for(a->num_rows, 16, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t r = (a->first_row + i) % half, first = a->first_row + i >= half ? PANEL / 2 : 0;
            const auto* panel = static_cast<const uint8_t*>(m.data) + r / width * panel_bytes(m.format, m.cols);
            const auto read = quantised(m.format) ? read_codes : read_floats;
            read(m, panel, first + r % width, a->out + i * m.cols);
        }
    });
}
