// From codes that a checkpoint has to the panels of formats.h: nothing is quantised anew, only scales and offsets are
// rounded to bf16.
#include "packing.h"

namespace moesaic {
namespace {

constexpr int WORKSPACE = 15;

// The code of a format for a byte of the source.
float code_of(const moesaic_format& f, uint8_t byte) {
    if (f.kind == MOESAIC_MXFP4) return float(mxfp4_rank(byte));
    return nibbles(f) ? float(byte & 15) : float(int8_t(byte));
}

// Rows [begin, end) of the part, all in one panel.
void pack(const moesaic_pack_codes_args& a, const Part& p, uint8_t* panel, int64_t begin, int64_t end) {
    const int64_t size = group_size(p.f, p.m.cols), num_groups = padded_cols(p.f, p.m.cols) / size;
    float codes_of[256];
    for (int byte = 0; byte < 256; ++byte) codes_of[byte] = code_of(p.f, uint8_t(byte));
    auto* x = static_cast<float*>(workspace(WORKSPACE, size_t(size) * W * 4));
    for (int64_t g = 0; g < num_groups; ++g, panel += group_bytes(p.f, p.m.cols)) {
        const int64_t k = g * size, n = std::min(size, p.m.cols - k);
        for_strips(p, begin, end, [&](Strip strip, int64_t row) {
            Groups groups{};
            std::fill(x, x + size * W, 0.0f);
            for (int r = 0; r < strip.count && row + r < p.rows; ++r) {
                const int64_t source = row + r - a.first_row;
                const uint8_t* codes = static_cast<const uint8_t*>(a.codes) + source * a.stride + k;
                for (int64_t i = 0; i < n; ++i) x[i * W + r] = codes_of[codes[i]];
                groups.scale[r] = a.scales[source * num_groups + g] * (p.f.kind == MOESAIC_MXFP4 ? 0.5f : 1.0f);
                if (p.f.offsets) groups.offset[r] = a.offsets[source * num_groups + g];
            }
            store_codes(p.f, panel, x, size, strip);
            store_scales(p.f, panel + code_bytes(p.f, p.m.cols), groups, x, n, strip);
        });
    }
}

}  // namespace
}  // namespace moesaic

using namespace moesaic;

MOESAIC_API void moesaic_pack_codes(const moesaic_pack_codes_args* a) {
    const Part p(a->matrix, a->part);
    for_panels(p, a->first_row, a->num_rows, a->alone != 0,
               [&](uint8_t* panel, int64_t begin, int64_t end) { pack(*a, p, panel, begin, end); });
}
