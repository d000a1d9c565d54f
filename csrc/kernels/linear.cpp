// Linear layers: rows of activations brought into the form of the weights once, then a unit of work for each panel and
// block of rows. Units of one block of rows follow each other: its activations stay in the second-level cache while the
// weights stream by.
#include "matmul.h"
#include "panel_output.h"
#include "region.h"

namespace moesaic {
namespace {

constexpr int64_t SPAN = 1024;       // rows prepared at a time: bounds the workspace
constexpr int64_t SERIAL_ELEMENTS = 1 << 14;  // activations that are not worth a barrier
constexpr int64_t SERIAL_WORK = 1 << 17;      // multiply-adds that are not worth a team

// Rows [first, first + count) of a call.
void linear_span(const moesaic_linear_args& args, int64_t first, int64_t count) {
    const moesaic_matrix& matrix = args.matrix;
    const Form form = form_of(matrix);
    const int64_t panels = num_panels(matrix.format, matrix.rows), outputs = output_size(matrix);
    const int64_t blocks = (count + BLOCK_ROWS - 1) / BLOCK_ROWS, units = blocks * panels;
    const float* x = args.x + first * matrix.cols;
    float* out = args.out + first * outputs;
    char* prepared = static_cast<char*>(workspace(0, size_t(count * form.row_bytes)));
    const auto prepare = [&](int64_t row) { prepare_row(form, x + row * matrix.cols, prepared + row * form.row_bytes); };

    const bool small = count * matrix.rows * matrix.cols <= SERIAL_WORK;
    const bool prepare_alone = count * matrix.cols <= SERIAL_ELEMENTS;
    if (prepare_alone)
        for (int64_t row = 0; row < count; ++row) prepare(row);
    const Region region(small ? 1 : team_size(units));
    Counter rows_left, units_left;
    region.run([&] {
        if (!prepare_alone) {
            Region::share(rows_left, count, prepare);
            region.barrier();
        }
        alignas(64) float sums[BLOCK_ROWS * PANEL];
        const char* rows[BLOCK_ROWS];
        Region::share(units_left, units, [&](int64_t unit) {
            const int64_t panel = unit % panels, begin = unit / panels * BLOCK_ROWS;
            const int64_t n = count - begin < BLOCK_ROWS ? count - begin : BLOCK_ROWS;
            for (int64_t i = 0; i < n; ++i) rows[i] = prepared + (begin + i) * form.row_bytes;
            multiply(form, matrix, panel, rows, n, sums);
            const PanelOutput output(matrix, panel, args.bias, args.activation);
            for (int64_t i = 0; i < n; ++i) output.write(sums + i * PANEL, args.scale, out + (begin + i) * outputs);
        });
    });
}

}  // namespace
}  // namespace moesaic

MOESAIC_API void moesaic_linear(const moesaic_linear_args* args) {
    const int64_t total = *args->rows;
    for (int64_t first = 0; first < total; first += moesaic::SPAN) {
        const int64_t left = total - first;
        moesaic::linear_span(*args, first, left < moesaic::SPAN ? left : moesaic::SPAN);
    }
}
