// Latent attention (MLA) around paged attention: each head's own product, and what is written of a token.
#include "../abi/latent.h"

#include "matmul.h"
#include "panel_output.h"
#include "prepare.h"
#include "region.h"

namespace moesaic {
namespace {

enum Slots { PREPARED = 0, SCRATCH = 9 };  // of workspace
constexpr int64_t PANELS = 4;              // of a unit of work: rows are prepared anew for each

// Panels [first, last) of one head's product with rows [begin, begin + n).
void head_product(const moesaic_head_linear_args& a, const Form& form, int64_t head, int64_t begin, int64_t n,
                  int64_t first, int64_t last) {
    const moesaic_matrix& matrix = a.matrices[head];
    const float* x = a.x + begin * a.x_stride + head * a.x_head_stride;
    float* out = a.out + begin * a.out_stride + head * a.out_head_stride;
    const char* rows[BLOCK_ROWS];
    if (is_plain(form)) {
        for (int64_t i = 0; i < n; ++i) rows[i] = reinterpret_cast<const char*>(x + i * a.x_stride);
    } else {
        char* prepared = static_cast<char*>(workspace(PREPARED, size_t(n * form.row_bytes)));
        for (int64_t i = 0; i < n; ++i) {
            prepare_row(form, x + i * a.x_stride, prepared + i * form.row_bytes);
            rows[i] = prepared + i * form.row_bytes;
        }
    }
    alignas(64) float sums[BLOCK_ROWS * PANEL];
    for (int64_t panel = first; panel < last; ++panel) {
        multiply(form, matrix, panel, rows, n, sums);
        const PanelOutput output(matrix, panel, nullptr, moesaic_activate{});
        for (int64_t i = 0; i < n; ++i) output.write(sums + i * PANEL, 1.0f, out + i * a.out_stride);
    }
}

}  // namespace
}  // namespace moesaic

using namespace moesaic;

void moesaic_head_linear(const moesaic_head_linear_args* args) {
    const moesaic_head_linear_args& a = *args;
    const int64_t total = *a.rows;
    if (total == 0) return;
    const Form form = form_of(a.matrices[0]);
    const int64_t panels = num_panels(a.matrices[0].format, a.matrices[0].rows), parts = (panels + PANELS - 1) / PANELS;
    const int64_t units = (total + BLOCK_ROWS - 1) / BLOCK_ROWS * a.heads * parts;
    const Region region(team_size(units));
    Counter left;
    region.run([&] {
        Region::share(left, units, [&](int64_t unit) {
            const int64_t part = unit % parts, head = unit / parts % a.heads;
            const int64_t begin = unit / parts / a.heads * BLOCK_ROWS;
            head_product(a, form, head, begin, std::min(BLOCK_ROWS, total - begin), part * PANELS,
                         std::min(panels, (part + 1) * PANELS));
        });
    });
}

void moesaic_prepare_latent(const moesaic_prepare_latent_args* args) {
    const moesaic_prepare_latent_args& a = *args;
    const KvLayout layout(a.cache);
    const int64_t dim = a.cache.key_dim, latent = a.cache.value_dim, rotary = dim - latent;
    // 16 tokens at a time: they share the cache lines of a tile's keys.
    parallel_for(*a.rows, TILE, [&](int64_t begin, int64_t end) {
        float* key = static_cast<float*>(workspace(SCRATCH, size_t(dim) * sizeof(float)));
        for (int64_t t = begin; t < end; ++t) {
            const float* table = a.table != nullptr ? a.table + t * rotary : nullptr;
            for (int64_t h = 0; h < a.heads; ++h) {
                float* out = a.query + (t * a.heads + h) * dim + latent;
                std::memcpy(out, a.rotary + t * a.rotary_stride + h * a.rotary_head_stride,
                            size_t(rotary) * sizeof(float));
                if (table != nullptr) rotate(out, table, rotary / 2, a.interleaved != 0);
            }
            std::memcpy(key, a.key + t * dim, size_t(dim) * sizeof(float));
            rms_norm(key, a.norm, latent, a.eps);
            if (table != nullptr) rotate(key + latent, table, rotary / 2, a.interleaved != 0);
            write(a.cache, layout, a.slots[t], 0, key, nullptr);
        }
    });
}
