// A layer of experts: tokens sorted by expert, gate-up with its activation, down, and each token's weighted sum of its
// choices in their order.
//
// One parallel region: tokens are brought into the form that the experts want (once a token and form, not once a
// choice); units of (rows of an expert, panel) make hidden rows; these are brought into the form that their down matrix
// wants; units of (rows of an expert, panel) make each choice's output; tokens are summed.
#include <algorithm>
#include <vector>

#include "matmul.h"
#include "matmul_tiles.h"
#include "panel_output.h"
#include "region.h"

namespace moesaic {
namespace {

constexpr int64_t SPAN_BYTES = 32 << 20;  // of the choices' outputs at a time: bounds the workspace
constexpr int64_t SUM_COLUMNS = 512;      // of a token that one unit sums
enum Slot { PAIRS, TOKENS, HIDDEN, PREPARED, OUTPUTS };

// Some rows of one expert.
struct Block {
    const moesaic_expert* expert;
    int64_t begin, count;             // in sorted order
    int64_t gate_up_unit, down_unit;  // its first unit of each product
    int32_t form;                     // index of its tokens' form
    Form down_form;
};

// Tokens [first, first + count) of a call.
class MoeSpan {
public:
    MoeSpan(const moesaic_fused_moe_args& args, int64_t first, int64_t count)
        : args_(args), count_(count), k_(args.top_k), width_(args.hidden_size), hidden_(args.hidden + first * width_),
          ids_(args.ids + first * k_), weights_(args.weights + first * k_), out_(args.out + first * width_) {
        sort();
        reserve();
    }

    // Each barrier costs what the slowest thread is late, so what is little work is done outside the region, alone.
    void run() {
        const int64_t tokens_to_prepare = int64_t(forms_.size()) * count_;
        const bool prepare_alone = tokens_to_prepare * width_ <= ALONE, sum_alone = count_ * k_ * width_ <= ALONE;
        const int64_t pieces = (width_ + SUM_COLUMNS - 1) / SUM_COLUMNS;
        const auto token = [&](int64_t i) { prepare_token(i); };
        const auto sum = [&](int64_t i) { sum_token(i / pieces, i % pieces * SUM_COLUMNS); };
        if (prepare_alone) each(tokens_to_prepare, token);
        const Region region(team_size(work() <= SERIAL_WORK ? 1 : gate_up_units_));
        Counter tokens, gate_up, hidden, down, sums;
        region.run([&] {
            if (!prepare_alone) {
                Region::share(tokens, tokens_to_prepare, token);
                region.barrier();
            }
            Region::share(gate_up, gate_up_units_, [&](int64_t unit) { gate_up_unit(unit); });
            region.barrier();
            if (!hidden_is_prepared_) {
                Region::share(hidden, int64_t(blocks_.size()), [&](int64_t i) { prepare_hidden(blocks_[size_t(i)]); });
                region.barrier();
            }
            Region::share(down, down_units_, [&](int64_t unit) { down_unit(unit); });
            if (!sum_alone) {
                region.barrier();
                Region::share(sums, count_ * pieces, sum);
            }
        });
        if (sum_alone) each(count_ * pieces, sum);
    }

private:
    static constexpr int64_t SERIAL_WORK = 1 << 17;  // multiply-adds that are not worth a team
    static constexpr int64_t ALONE = 1 << 15;        // elements that are not worth a barrier

    template <class Unit>
    static void each(int64_t total, const Unit& unit) {
        for (int64_t i = 0; i < total; ++i) unit(i);
    }

    const moesaic_expert* expert_of(int32_t id) const {
        if (id < 0 || id >= args_.num_experts || args_.slot_of[id] < 0) return nullptr;
        return args_.slots + args_.slot_of[id];
    }

    // Choices in the order of their experts, and blocks of them.
    void sort() {
        const int64_t pairs = count_ * k_;
        pair_of_ = static_cast<int32_t*>(workspace(PAIRS, size_t(pairs + 1) * sizeof(int32_t)));
        std::vector<int64_t> begin(size_t(args_.num_experts) + 1);
        for (int64_t p = 0; p < pairs; ++p)
            if (expert_of(ids_[p])) ++begin[size_t(ids_[p]) + 1];
        for (size_t e = 0; e < size_t(args_.num_experts); ++e) begin[e + 1] += begin[e];
        for (int32_t e = 0; e < args_.num_experts; ++e)
            if (begin[size_t(e) + 1] > begin[size_t(e)]) add_blocks(expert_of(e), begin[size_t(e)], begin[size_t(e) + 1]);
        for (int64_t p = 0; p < pairs; ++p)
            if (expert_of(ids_[p])) pair_of_[begin[size_t(ids_[p])]++] = int32_t(p);
    }

    void add_blocks(const moesaic_expert* expert, int64_t begin, int64_t end) {
        const int64_t most = args_.block_size > 0 && args_.block_size < BLOCK_ROWS ? args_.block_size : BLOCK_ROWS;
        if (args_.tally != nullptr) {
            args_.tally[0] += end - begin;
            args_.tally[1] += round_up(end - begin, args_.block_size > 0 ? most : TILE_ROWS);
        }
        const int32_t form = token_form(form_of(expert->gate_up));
        const Form down_form = form_of(expert->down);
        for (; begin < end; begin += most) {
            const int64_t rows = end - begin < most ? end - begin : most;
            blocks_.push_back({expert, begin, rows, gate_up_units_, down_units_, form, down_form});
            gate_up_units_ += num_panels(expert->gate_up.format, expert->gate_up.rows);
            down_units_ += num_panels(expert->down.format, expert->down.rows);
        }
    }

    int32_t token_form(const Form& form) {
        for (size_t i = 0; i < forms_.size(); ++i)
            if (forms_[i] == form) return int32_t(i);
        forms_.push_back(form);
        return int32_t(forms_.size() - 1);
    }

    void reserve() {
        int64_t tokens_bytes = 0;
        for (const Form& form : forms_) {
            tokens_at_.push_back(tokens_bytes);
            tokens_bytes += form.row_bytes * count_;
        }
        int64_t sorted = 0;
        for (const Block& block : blocks_) {
            sorted = block.begin + block.count;
            hidden_size_ = std::max(hidden_size_, block.expert->down.cols);
            prepared_bytes_ = std::max(prepared_bytes_, block.down_form.row_bytes);
            hidden_is_prepared_ = hidden_is_prepared_ && is_plain(block.down_form);
        }
        if (hidden_is_prepared_) hidden_size_ = prepared_bytes_ / int64_t(sizeof(float));
        tokens_ = static_cast<char*>(workspace(TOKENS, size_t(tokens_bytes)));
        hidden_rows_ = static_cast<float*>(workspace(HIDDEN, size_t(sorted * hidden_size_) * sizeof(float)));
        prepared_ = hidden_is_prepared_ ? reinterpret_cast<char*>(hidden_rows_)
                                        : static_cast<char*>(workspace(PREPARED, size_t(sorted * prepared_bytes_)));
        outputs_ = static_cast<float*>(workspace(OUTPUTS, size_t(count_ * k_ * width_) * sizeof(float)));
    }

    int64_t work() const {
        int64_t sum = 0;
        for (const Block& block : blocks_) sum += block.count * block.expert->gate_up.rows * width_;
        return sum;
    }

    void prepare_token(int64_t i) const {
        const Form& form = forms_[size_t(i / count_)];
        const int64_t token = i % count_;
        prepare_row(form, hidden_ + token * width_, tokens_ + tokens_at_[size_t(i / count_)] + token * form.row_bytes);
    }

    template <int64_t Block::*FIRST>
    const Block& block_of(int64_t unit) const {
        size_t low = 0, high = blocks_.size();  // the last block whose first unit is not beyond
        while (high - low > 1) {
            const size_t middle = (low + high) / 2;
            (blocks_[middle].*FIRST <= unit ? low : high) = middle;
        }
        return blocks_[low];
    }

    void gate_up_unit(int64_t unit) const {
        const Block& block = block_of<&Block::gate_up_unit>(unit);
        const moesaic_matrix& matrix = block.expert->gate_up;
        const Form& form = forms_[size_t(block.form)];
        const char* tokens = tokens_ + tokens_at_[size_t(block.form)];
        const char* rows[BLOCK_ROWS];
        alignas(64) float sums[BLOCK_ROWS * PANEL];
        const int32_t* pairs = pair_of_ + block.begin;
        for (int64_t i = 0; i < block.count; ++i) rows[i] = tokens + pairs[i] / k_ * form.row_bytes;
        const int64_t panel = unit - block.gate_up_unit;
        multiply(form, matrix, panel, rows, block.count, sums);
        const PanelOutput output(matrix, panel, block.expert->gate_up_bias, args_.activation);
        for (int64_t i = 0; i < block.count; ++i) {
            const float scale = args_.weight_on_input ? weights_[pairs[i]] : 1.0f;
            output.write(sums + i * PANEL, scale, hidden_rows_ + (block.begin + i) * hidden_size_);
        }
    }

    void prepare_hidden(const Block& block) const {
        for (int64_t i = block.begin; i < block.begin + block.count; ++i)
            prepare_row(block.down_form, hidden_rows_ + i * hidden_size_, prepared_ + i * prepared_bytes_);
    }

    void down_unit(int64_t unit) const {
        const Block& block = block_of<&Block::down_unit>(unit);
        const moesaic_matrix& matrix = block.expert->down;
        const char* rows[BLOCK_ROWS];
        alignas(64) float sums[BLOCK_ROWS * PANEL];
        for (int64_t i = 0; i < block.count; ++i) rows[i] = prepared_ + (block.begin + i) * prepared_bytes_;
        const int64_t panel = unit - block.down_unit;
        multiply(block.down_form, matrix, panel, rows, block.count, sums);
        const PanelOutput output(matrix, panel, block.expert->down_bias, moesaic_activate{});
        for (int64_t i = 0; i < block.count; ++i)
            output.write(sums + i * PANEL, 1.0f, outputs_ + pair_of_[block.begin + i] * width_);
    }

    // Columns [begin, begin + SUM_COLUMNS) of a token's output.
    void sum_token(int64_t token, int64_t begin) const {
        const int64_t end = begin + SUM_COLUMNS < width_ ? begin + SUM_COLUMNS : width_;
        for (int64_t c = begin; c < end; c += W) {
            const int n = int(end - c < W ? end - c : W);
            Vec sum = zero();
            for (int64_t p = token * k_; p < (token + 1) * k_; ++p) {
                if (!expert_of(ids_[p])) continue;
                const Vec weight = set1(args_.weight_on_input ? 1.0f : weights_[p]);
                sum = fma(weight, load_n(outputs_ + p * width_ + c, n), sum);
            }
            store_n(out_ + token * width_ + c, sum, n);
        }
    }

    const moesaic_fused_moe_args& args_;
    int64_t count_, k_, width_;
    const float* hidden_;
    const int32_t* ids_;
    const float* weights_;
    float* out_;

    std::vector<Block> blocks_;
    std::vector<Form> forms_;  // of tokens: as many as the experts want
    std::vector<int64_t> tokens_at_;
    int64_t gate_up_units_ = 0, down_units_ = 0;
    bool hidden_is_prepared_ = true;                // every expert's down matrix takes hidden rows as they are
    int64_t hidden_size_ = 0, prepared_bytes_ = 0;  // from a row to the next: elements, bytes
    int32_t* pair_of_ = nullptr;                    // sorted position -> token * k + choice
    char* tokens_ = nullptr;
    float* hidden_rows_ = nullptr;
    char* prepared_ = nullptr;
    float* outputs_ = nullptr;  // [count * k, width], by choice
};

}  // namespace
}  // namespace moesaic

MOESAIC_API void moesaic_fused_moe(const moesaic_fused_moe_args* args) {
    const int64_t total = *args->rows, row = args->hidden_size * args->top_k * int64_t(sizeof(float));
    const int64_t span = std::max<int64_t>(1, moesaic::SPAN_BYTES / row);
    for (int64_t first = 0; first < total; first += span)
        moesaic::MoeSpan(*args, first, std::min(span, total - first)).run();
}
