// The public raw operations that the engine itself has no use for.
#include "../abi/ops.h"

#include <algorithm>

#include "../common/team.h"

namespace moesaic {
namespace {

constexpr int SCRATCH = 11, PLACES = 12;  // slots of the workspace
constexpr int64_t OUTPUTS = 16;           // a unit of work: so many outputs of a block

void align_blocks(const moesaic_align_blocks_args& a) {
    const int64_t rows = *a.rows;
    int64_t* place = static_cast<int64_t*>(workspace(PLACES, size_t(a.num_experts) * sizeof(int64_t)));
    std::fill(place, place + a.num_experts, 0);
    for (int64_t i = 0; i < rows; ++i) ++place[a.ids[i]];
    int64_t end = 0;
    for (int64_t e = 0; e < a.num_experts; ++e) {  // from counts to where each expert's choices begin
        const int64_t blocks = (place[e] + a.block_size - 1) / a.block_size;
        std::fill_n(a.block_experts + end / a.block_size, blocks, int32_t(e));
        place[e] = end;
        end += blocks * a.block_size;
    }
    std::fill(a.block_experts + end / a.block_size, a.block_experts + a.num_blocks, 0);
    std::fill(a.sorted, a.sorted + a.num_sorted, int32_t(rows));
    for (int64_t i = 0; i < rows; ++i) a.sorted[place[a.ids[i]]++] = int32_t(i);
    *a.num_padded = int32_t(end);
}

float scale_at(const moesaic_wna16_gemm_args& a, int64_t i) {
    if (a.scale_kind == MOESAIC_F32) return static_cast<const float*>(a.scales)[i];
    const uint16_t half = static_cast<const uint16_t*>(a.scales)[i];
    return a.scale_kind == MOESAIC_BF16 ? bf16_to_float(half) : f16_to_float(half);
}

// The k weights of one output of an expert.
void decode(const moesaic_wna16_gemm_args& a, int64_t expert, int64_t output, float* weights) {
    const int64_t per_byte = 8 / a.bits, groups = a.k / a.group;
    const uint8_t* codes = a.codes + (expert * a.n + output) * (a.k / per_byte);
    const int shift = int(output % per_byte) * a.bits, mask = (1 << a.bits) - 1;
    for (int64_t g = 0; g < groups; ++g) {
        const float scale = scale_at(a, (expert * a.n + output) * groups + g);
        int zero = 1 << (a.bits - 1);
        if (a.zeros != nullptr) {
            const int64_t row = expert * (a.n / per_byte) + output / per_byte;
            zero = (a.zeros[row * groups + g] >> shift) & mask;
        }
        for (int64_t i = g * a.group; i < (g + 1) * a.group; ++i) {
            const int code = (codes[i / per_byte] >> (int(i % per_byte) * a.bits)) & mask;
            weights[i] = float(code - zero) * scale;
        }
    }
}

float dot(const float* x, const float* y, int64_t n) {
    Vec sums[4] = {zero(), zero(), zero(), zero()};
    int64_t i = 0;
    for (; i + 4 * W <= n; i += 4 * W)
        for (int j = 0; j < 4; ++j) sums[j] = fma(load(x + i + j * W), load(y + i + j * W), sums[j]);
    for (; i + W <= n; i += W) sums[0] = fma(load(x + i), load(y + i), sums[0]);
    if (i < n) sums[1] = fma(load_n(x + i, int(n - i)), load_n(y + i, int(n - i)), sums[1]);
    return reduce_add(add(add(sums[0], sums[1]), add(sums[2], sums[3])));
}

void multiply_block(const moesaic_wna16_gemm_args& a, int64_t block, int64_t first, int64_t last) {
    const int64_t choices = *a.rows * a.top_k, expert = a.block_experts[block];
    if (expert < 0) return;
    const int32_t* sorted = a.sorted + block * a.block_size;
    float* weights = static_cast<float*>(workspace(SCRATCH, size_t(a.k) * sizeof(float)));
    for (int64_t output = first; output < last; ++output) {
        decode(a, expert, output, weights);
        for (int64_t m = 0; m < a.block_size && sorted[m] >= 0 && sorted[m] < choices; ++m) {
            const int64_t choice = sorted[m];
            float sum = dot(a.input + choice / a.top_k * a.k, weights, a.k);
            if (a.choice_weights != nullptr) sum *= a.choice_weights[choice];
            a.output[choice * a.n + output] = sum;
        }
    }
}

void wna16_gemm(const moesaic_wna16_gemm_args& a) {
    std::fill(a.output, a.output + *a.rows * a.top_k * a.n, 0.0f);
    const int64_t parts = (a.n + OUTPUTS - 1) / OUTPUTS;
    parallel_for(a.num_blocks * parts, 1, [&](int64_t begin, int64_t end) {
        for (int64_t unit = begin; unit < end; ++unit) {
            const int64_t first = unit % parts * OUTPUTS;
            multiply_block(a, unit / parts, first, std::min(a.n, first + OUTPUTS));
        }
    });
}

}  // namespace
}  // namespace moesaic

MOESAIC_API void moesaic_align_blocks(const moesaic_align_blocks_args* args) { moesaic::align_blocks(*args); }

MOESAIC_API void moesaic_wna16_gemm(const moesaic_wna16_gemm_args* args) { moesaic::wna16_gemm(*args); }
