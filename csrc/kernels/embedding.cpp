// Rows of the embedding table, plain or packed for the output projection that shares it, and rows of activations.
#include <limits>

#include "../abi/norm.h"
#include "../common/formats.h"
#include "../common/team.h"

namespace moesaic {
namespace {

constexpr int64_t WORK = 32768;  // elements that are worth a thread

void fill_nan(float* out, int64_t n) {
    for (int64_t i = 0; i < n; ++i) out[i] = std::numeric_limits<float>::quiet_NaN();
}

MOESAIC_INLINE float to_float(float x, int32_t) { return x; }
MOESAIC_INLINE float to_float(uint16_t x, int32_t kind) {
    return kind == MOESAIC_BF16 ? bf16_to_float(x) : f16_to_float(x);
}

// `pair` inputs of a column lie side by side, columns beside each other: a plain row is one column of a panel of one.
template <class Element>
void copy_column(const Element* column, int64_t pair, int64_t columns, const moesaic_embed_args& a, float* out) {
    const int64_t size = a.table.cols, stride = pair * columns;
    for (int64_t k = 0; k < size; k += pair, column += stride)
        for (int64_t j = 0; j < pair && k + j < size; ++j) out[k + j] = to_float(column[j], a.table.format.kind) * a.scale;
}

template <class Element>
void copy_row(const moesaic_embed_args& a, int64_t id, float* out) {
    const char* data = static_cast<const char*>(a.table.data);
    if (!a.packed) {
        copy_column(reinterpret_cast<const Element*>(data) + id * a.table.cols, 1, 1, a, out);
        return;
    }
    const int64_t pair = sizeof(Element) == 4 ? 1 : 2;
    const char* panel = data + id / PANEL * panel_bytes(a.table.format, a.table.cols);
    copy_column(reinterpret_cast<const Element*>(panel) + id % PANEL * pair, pair, PANEL, a, out);
}

void embed(const moesaic_embed_args& a) {
    const int64_t size = a.table.cols;
    parallel_for(*a.rows, WORK / (size + 1) + 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t id = a.ids[i];
            float* out = a.out + i * size;
            if (id < 0 || id >= a.table.rows)
                fill_nan(out, size);
            else if (a.table.format.kind == MOESAIC_F32)
                copy_row<float>(a, id, out);
            else
                copy_row<uint16_t>(a, id, out);
        }
    });
}

void gather_rows(const moesaic_gather_rows_args& a) {
    for (int64_t i = 0; i < *a.rows; ++i) {
        const int64_t index = a.indices[i];
        float* out = a.out + i * a.size;
        if (index < 0 || index >= *a.x_rows)
            fill_nan(out, a.size);
        else
            std::memcpy(out, a.x + index * a.size, size_t(a.size) * sizeof(float));
    }
}

}  // namespace
}  // namespace moesaic

MOESAIC_API void moesaic_embed(const moesaic_embed_args* args) { moesaic::embed(*args); }

MOESAIC_API void moesaic_gather_rows(const moesaic_gather_rows_args* args) { moesaic::gather_rows(*args); }
