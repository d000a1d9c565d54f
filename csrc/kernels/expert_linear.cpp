// One matrix of each chosen expert: choices sorted by expert, each brought into the form that its matrix wants, then
// units of (rows of an expert, panel). Element (choice, column) is the same chain of operations whatever else is in the
// batch.
#include "../abi/expert_linear.h"

#include <algorithm>
#include <vector>

#include "matmul.h"
#include "region.h"

namespace moesaic {
namespace {

constexpr int64_t SPAN_BYTES = 32 << 20;      // of the choices' rows at a time: bounds the workspace
constexpr int64_t SERIAL_WORK = 1 << 17;      // multiply-adds that are not worth a team
constexpr int64_t ALONE = 1 << 15;            // elements that are not worth a barrier
enum Slot { PAIRS, PREPARED, OUTPUTS, ROW };  // of the workspace

// Some choices of one expert.
struct Block {
    const moesaic_matrix* matrix;
    int64_t begin, count;  // in sorted order
    int64_t unit;          // its first
    Form form;
};

// Calls run(c, n, at) for the runs of numbers c .. c + n of [begin, end) that lie together: from `at` on.
template <class Run>
void each_run(int64_t begin, int64_t end, int64_t group, int64_t top_k, int64_t choice, const Run& run) {
    for (int64_t c = begin; c < end;) {
        const int64_t n = std::min(group - c % group, end - c);
        run(c, n, (c / group * top_k + choice) * group + c % group);
        c += n;
    }
}

// The choices of some tokens, by expert.
class Choices {
public:
    // matrix: which one of an expert.
    Choices(const int32_t* ids, int64_t count, const int32_t* slot_of, int32_t num_experts,
            const moesaic_expert* slots, moesaic_matrix moesaic_expert::*matrix)
        : ids_(ids), count_(count), slot_of_(slot_of), num_experts_(num_experts), slots_(slots) {
        pair_of_ = static_cast<int32_t*>(workspace(PAIRS, size_t(count + 1) * sizeof(int32_t)));
        std::vector<int64_t> begin(size_t(num_experts) + 1);
        for (int64_t p = 0; p < count; ++p)
            if (kept(p)) ++begin[size_t(ids[p]) + 1];
        for (size_t e = 0; e < size_t(num_experts); ++e) begin[e + 1] += begin[e];
        size_ = begin[size_t(num_experts)];
        for (int32_t e = 0; e < num_experts; ++e)
            if (begin[size_t(e) + 1] > begin[size_t(e)])
                add(slots[slot_of[e]].*matrix, begin[size_t(e)], begin[size_t(e) + 1]);
        for (int64_t p = 0; p < count; ++p)
            if (kept(p)) pair_of_[begin[size_t(ids[p])]++] = int32_t(p);
        prepared_ = static_cast<char*>(workspace(PREPARED, size_t(size_ * row_bytes_)));
    }

    bool kept(int64_t pair) const {
        return ids_[pair] >= 0 && ids_[pair] < num_experts_ && slot_of_[ids_[pair]] >= 0;
    }

    // The products: prepare(pair) gives a row of inputs, write(pair, first column, columns, sums) takes outputs, then
    // finish(token) is called for each of `tokens`.
    template <class Input, class Write, class Finish>
    void run(const Input& input, const Write& write, int64_t tokens, const Finish& finish) const {
        int64_t work = 0, elements = 0;
        for (const Block& block : blocks_) {
            work += block.count * block.matrix->rows * block.matrix->cols;
            elements += block.count * block.matrix->cols;
        }
        const bool alone = elements <= ALONE;
        const auto prepare = [&](int64_t i) { prepare_block(blocks_[size_t(i)], input); };
        const auto unit = [&](int64_t i) { multiply_unit(i, write); };
        const int64_t num_blocks = int64_t(blocks_.size());
        if (alone)
            for (int64_t i = 0; i < num_blocks; ++i) prepare(i);
        const Region region(team_size(work <= SERIAL_WORK ? 1 : units_));
        Counter blocks, units, ends;
        region.run([&] {
            if (!alone) {
                Region::share(blocks, num_blocks, prepare);
                region.barrier();
            }
            Region::share(units, units_, unit);
            region.barrier();
            Region::share(ends, tokens, finish);
        });
    }

private:
    void add(const moesaic_matrix& matrix, int64_t begin, int64_t end) {
        const Form form = form_of(matrix);
        row_bytes_ = std::max(row_bytes_, form.row_bytes);
        for (; begin < end; begin += BLOCK_ROWS) {
            blocks_.push_back({&matrix, begin, std::min(BLOCK_ROWS, end - begin), units_, form});
            units_ += num_panels(matrix.format, matrix.rows);
        }
    }

    template <class Input>
    void prepare_block(const Block& block, const Input& input) const {
        for (int64_t i = block.begin; i < block.begin + block.count; ++i)
            prepare_row(block.form, input(pair_of_[i]), prepared_ + i * row_bytes_);
    }

    template <class Write>
    void multiply_unit(int64_t unit, const Write& write) const {
        const auto after = std::upper_bound(blocks_.begin(), blocks_.end(), unit,
                                            [](int64_t number, const Block& block) { return number < block.unit; });
        const Block& block = *(after - 1);
        const int64_t panel = unit - block.unit, first = panel * PANEL;
        const char* rows[BLOCK_ROWS];
        alignas(64) float sums[BLOCK_ROWS * PANEL];
        for (int64_t i = 0; i < block.count; ++i) rows[i] = prepared_ + (block.begin + i) * row_bytes_;
        multiply(block.form, *block.matrix, panel, rows, block.count, sums);
        const int64_t columns = std::min<int64_t>(PANEL, block.matrix->rows - first);
        for (int64_t i = 0; i < block.count; ++i) write(pair_of_[block.begin + i], first, columns, sums + i * PANEL);
    }

    const int32_t* ids_;
    int64_t count_;
    const int32_t* slot_of_;
    int32_t num_experts_;
    const moesaic_expert* slots_;
    std::vector<Block> blocks_;
    int64_t size_ = 0, units_ = 0, row_bytes_ = 0;
    int32_t* pair_of_;  // sorted position -> token * k + choice
    char* prepared_;
};

// Tokens [first, first + count) of a call.
void spread(const moesaic_spread_linear_args& a, int64_t first, int64_t count) {
    const int64_t k = a.top_k, width = a.outputs;
    const float* x = a.x + first * a.inputs;
    float* out = a.out + first * k * width;
    const Choices choices(a.ids + first * k, count * k, a.slot_of, a.num_experts, a.slots, &moesaic_expert::gate_up);
    const auto write = [&](int64_t pair, int64_t begin, int64_t columns, const float* sums) {
        float* row = out + pair / k * k * width;
        each_run(begin, begin + columns, a.group, k, pair % k, [&](int64_t c, int64_t n, int64_t at) {
            std::memcpy(row + at, sums + c - begin, size_t(n) * sizeof(float));
        });
    };
    choices.run([&](int64_t pair) { return x + pair / k * a.inputs; }, write, count, [&](int64_t token) {
        for (int64_t j = 0; j < k; ++j) {
            if (choices.kept(token * k + j)) continue;
            each_run(0, width, a.group, k, j, [&](int64_t, int64_t n, int64_t at) {
                std::fill_n(out + token * k * width + at, n, 0.0f);
            });
        }
    });
}

void gather(const moesaic_gather_linear_args& a, int64_t first, int64_t count) {
    const int64_t k = a.top_k, width = a.outputs;
    const float *x = a.x + first * k * a.inputs, *weights = a.weights + first * k;
    float* outputs = static_cast<float*>(workspace(OUTPUTS, size_t(count * k * width) * sizeof(float)));
    const Choices choices(a.ids + first * k, count * k, a.slot_of, a.num_experts, a.slots, &moesaic_expert::down);
    const auto input = [&](int64_t pair) {
        float* row = static_cast<float*>(workspace(ROW, size_t(a.inputs) * sizeof(float)));
        const float* token = x + pair / k * k * a.inputs;
        each_run(0, a.inputs, a.group, k, pair % k, [&](int64_t c, int64_t n, int64_t at) {
            std::memcpy(row + c, token + at, size_t(n) * sizeof(float));
        });
        return row;
    };
    const auto write = [&](int64_t pair, int64_t begin, int64_t columns, const float* sums) {
        std::memcpy(outputs + pair * width + begin, sums, size_t(columns) * sizeof(float));
    };
    choices.run(input, write, count, [&](int64_t token) {
        for (int64_t c = 0; c < width; c += W) {
            const int n = int(std::min<int64_t>(W, width - c));
            Vec sum = zero();
            for (int64_t p = token * k; p < (token + 1) * k; ++p)
                if (choices.kept(p)) sum = fma(set1(weights[p]), load_n(outputs + p * width + c, n), sum);
            store_n(a.out + (first + token) * width + c, sum, n);
        }
    });
}

// Calls body(first, count) for spans of tokens whose choices have so many numbers each.
template <class Body>
void in_spans(int64_t total, int64_t numbers, const Body& body) {
    const int64_t span = std::max<int64_t>(1, SPAN_BYTES / (numbers * int64_t(sizeof(float))));
    for (int64_t first = 0; first < total; first += span) body(first, std::min(span, total - first));
}

}  // namespace
}  // namespace moesaic

using namespace moesaic;

void moesaic_spread_linear(const moesaic_spread_linear_args* args) {
    in_spans(*args->rows, args->top_k * std::max(args->inputs, args->outputs),
             [&](int64_t first, int64_t count) { spread(*args, first, count); });
}

void moesaic_gather_linear(const moesaic_gather_linear_args* args) {
    in_spans(*args->rows, args->top_k * std::max(args->inputs, args->outputs),
             [&](int64_t first, int64_t count) { gather(*args, first, count); });
}
