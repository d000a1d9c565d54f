// Log-probabilities of a row's own token and of its best ones, without a log-softmax of the whole row in memory.
#include "../abi/sampling.h"

#include "../common/sums.h"
#include "../common/team.h"
#include "select.h"

namespace moesaic {
namespace {

constexpr int SCRATCH = 11, IDS = 12;  // slots of the workspace
constexpr int64_t WORK = 65536;        // logits that are worth a thread

// log(sum of e^(x - top)), the sum in double over lanes whose order depends on the row's length alone.
double log_sum(const Blocks& blocks) {
    DoubleSum total;
    for (int64_t b = 0; b < blocks.count; ++b)
        blocks.each(b, [&](Vec v, int64_t) { total.add(exp(sub(v, set1(blocks.top)))); });
    return std::log(total.total());
}

int64_t count_above(const float* x, int64_t n, float value) {
    int64_t count = 0, i = 0;
    for (; i + W <= n; i += W) count += __builtin_popcount(greater(load(x + i), set1(value)));
    if (i < n) count += __builtin_popcount(greater(load_padded(x + i, n - i, NEGATIVE_INFINITY), set1(value)));
    return count;
}

void logprob_row(const moesaic_logprobs_args& a, int64_t row) {
    const float* x = a.logits + row * a.vocab;
    const int64_t k = std::min(a.counts[row], a.vocab), token = a.tokens[row];
    float* values = static_cast<float*>(workspace(SCRATCH, size_t(2 * a.vocab + a.vocab / LEAST_BLOCK + 1) * 4));
    float* scratch = values + a.vocab;
    int32_t* ids = static_cast<int32_t*>(workspace(IDS, size_t(a.vocab) * sizeof(int32_t)));
    const Blocks blocks(x, a.vocab, k > 0 ? block_size(a.vocab, k) : MOST_BLOCK, scratch + a.vocab);
    const double base = double(blocks.top) + log_sum(blocks);
    const auto logprob = [&](float logit) { return float(double(logit) - base); };
    const float own = token >= 0 && token < a.vocab ? x[token] : std::numeric_limits<float>::quiet_NaN();
    a.own[row] = logprob(own);
    a.ranks[row] = count_above(x, a.vocab, own) + 1;
    a.found[row] = 0;
    if (k <= 0) return;
    const int64_t candidates = blocks.best(k, ids, values, scratch);
    std::sort(ids, ids + candidates, [&](int32_t i, int32_t j) { return x[i] > x[j] || (x[i] == x[j] && i < j); });
    a.found[row] = std::min(k, candidates);
    for (int64_t i = 0; i < a.found[row]; ++i) {
        a.ids[row * a.most + i] = ids[i];
        a.logprobs[row * a.most + i] = logprob(x[ids[i]]);
    }
}

}  // namespace
}  // namespace moesaic

MOESAIC_API void moesaic_logprobs(const moesaic_logprobs_args* args) {
    moesaic::parallel_for(*args->rows, moesaic::WORK / args->vocab + 1, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) moesaic::logprob_row(*args, row);
    });
}
