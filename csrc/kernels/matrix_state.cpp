// Layers whose state is a matrix for each head: the gated delta rule, Mamba 2's scan, linear attention.
//
// A unit of work is a sequence's tokens of one head. Its state lies in blocks of 32 columns that stay in the first
// cache while a few tokens pass over them, and that memory streams in order; a column's sums run over the rows in order.
#include "../abi/recurrent.h"

#include "../common/rows.h"
#include "sequences.h"

namespace moesaic {
namespace {

constexpr int COLUMNS = MOESAIC_STATE_COLUMNS, VECTORS = COLUMNS / W;
constexpr int MOST = 256;   // rows of a state
constexpr int TOKENS = 8;   // that pass over a block before the next block's turn
constexpr int CHAINS = VECTORS < 4 ? 2 : 1;  // sums for each column, so that additions need not wait for each other

using Row = Vec[VECTORS];

MOESAIC_INLINE void zero_row(Row row) {
    for (int j = 0; j < VECTORS; ++j) row[j] = zero();
}

// Columns of a token's values or outputs that this block has: all but in the last block.
MOESAIC_INLINE int lanes_of(int columns, int j) {
    const int left = columns - j * W;
    return left >= W ? W : left > 0 ? left : 0;
}

MOESAIC_INLINE void get_row(Row row, const float* p, int columns) {
    for (int j = 0; j < VECTORS; ++j)
        row[j] = columns == COLUMNS ? load(p + j * W) : load_n(p + j * W, lanes_of(columns, j));
}

MOESAIC_INLINE void put_row(float* p, const Row row, int columns) {
    for (int j = 0; j < VECTORS; ++j)
        if (columns == COLUMNS)
            store(p + j * W, row[j]);
        else
            store_n(p + j * W, row[j], lanes_of(columns, j));
}

float softplus_of(float x) {
    float lane[W];
    store(lane, softplus(set1(x)));
    return lane[0];
}

float exp_of(float x) {
    float lane[W];
    store(lane, exp(set1(x)));
    return lane[0];
}

float sigmoid_of(float x) {
    float lane[W];
    store(lane, sigmoid(set1(x)));
    return lane[0];
}

float dot(const float* a, const float* b, int n) {
    Vec sum = zero();
    each_vector(n, [&](int64_t i, int m) { sum = fma(get(a + i, m), get(b + i, m), sum); });
    return reduce_add(sum);
}

const float* at(const moesaic_heads& heads, int64_t token, int64_t head) {
    return heads.data + token * heads.stride + head * heads.head_stride;
}

// A head's state of a sequence: blocks one after the other.
float* state_of(const moesaic_matrix_state& m, const Sequence& sequence, int64_t head) {
    const int64_t blocks = (m.value_dim + COLUMNS - 1) / COLUMNS, size = blocks * m.key_dim * COLUMNS;
    float* state = m.state + (sequence.slot * m.heads + head) * size;
    if (sequence.fresh) std::fill(state, state + size, 0.0f);
    return state;
}

// Calls step(token, i, block, offset, columns) for all tokens and blocks: some tokens on each block in turn, after
// prepare(token, i) of these; i counts them from 0.
template <class Prepare, class Step>
MOESAIC_INLINE void scan(const moesaic_matrix_state& m, const Sequence& sequence, int64_t head, const Prepare& prepare,
                         const Step& step) {
    float* state = state_of(m, sequence, head);
    for (int64_t begin = 0; begin < sequence.count; begin += TOKENS) {
        const int count = int(std::min<int64_t>(TOKENS, sequence.count - begin));
        for (int i = 0; i < count; ++i) prepare(sequence.first + begin + i, i);
        for (int offset = 0; offset < m.value_dim; offset += COLUMNS) {
            float* block = state + int64_t(offset) * m.key_dim;
            const int columns = std::min(COLUMNS, m.value_dim - offset);
            for (int i = 0; i < count; ++i) step(sequence.first + begin + i, i, block, offset, columns);
        }
    }
}

float* out_of(const moesaic_matrix_state& m, int64_t token, int64_t head) {
    return m.out + (token * m.heads + head) * m.value_dim;
}

// ---- the gated delta rule ------------------------------------------------------------------------------------------

// What a few tokens bring for a head.
struct Deltas {
    alignas(64) float query[TOKENS][MOST], key[TOKENS][MOST];
    // Of a decay for each channel: it, and queries and keys times it, which read the state before it has decayed.
    alignas(64) float decay[TOKENS][MOST], old_query[TOKENS][MOST], old_key[TOKENS][MOST];
    float scalar_decay[TOKENS], beta[TOKENS], query_key[TOKENS];
};

void normalise(const float* x, float* out, int n, float eps, float scale) {
    const Vec factor = set1(scale / std::sqrt(dot(x, x, n) + eps));
    each_vector(n, [&](int64_t i, int m) { put(out + i, mul(get(x + i, m), factor), m); });
}

void prepare_delta(const moesaic_gated_delta_args& a, int64_t head, int64_t token, int i, Deltas& d) {
    const int n = a.state.key_dim;
    const int64_t key_head = head / (a.state.heads / a.state.key_heads);
    normalise(at(a.query, token, key_head), d.query[i], n, a.eps, 1.0f / std::sqrt(float(n)));
    normalise(at(a.key, token, key_head), d.key[i], n, a.eps, 1.0f);
    d.query_key[i] = dot(d.query[i], d.key[i], n);
    d.beta[i] = sigmoid_of(*at(a.beta, token, head));
    const float* decay = at(a.decay, token, head);
    const float* bias = a.bias + head * a.channels;
    if (a.channels == 1) {
        d.scalar_decay[i] = exp_of(-a.rate[head] * softplus_of(decay[0] + bias[0]));
        return;
    }
    const Vec rate = set1(-a.rate[head]);
    each_vector(n, [&](int64_t c, int m) {
        const Vec kept = exp(mul(rate, softplus(add(get(decay + c, m), get(bias + c, m)))));
        put(d.decay[i] + c, kept, m);
        put(d.old_query[i] + c, mul(kept, get(d.query[i] + c, m)), m);
        put(d.old_key[i] + c, mul(kept, get(d.key[i] + c, m)), m);
    });
}

// One token on one block: what the decayed state holds for its key and its query, then the update.
template <bool CHANNELS>
MOESAIC_INLINE void delta_step(const moesaic_gated_delta_args& a, const Deltas& d, int i, float* block,
                               const float* value, float* out, int columns) {
    const int n = a.state.key_dim;
    const float *key = CHANNELS ? d.old_key[i] : d.key[i], *query = CHANNELS ? d.old_query[i] : d.query[i];
    Row held[CHAINS], read[CHAINS];
    for (int c = 0; c < CHAINS; ++c) zero_row(held[c]), zero_row(read[c]);
    for (int r = 0; r < n; ++r) {
        const int c = CHAINS == 1 ? 0 : r % CHAINS;
        const Vec k = set1(key[r]), q = set1(query[r]);
        for (int j = 0; j < VECTORS; ++j) {
            const Vec s = load(block + r * COLUMNS + j * W);
            held[c][j] = fma(k, s, held[c][j]);
            read[c][j] = fma(q, s, read[c][j]);
        }
    }
    const Vec decay = set1(CHANNELS ? 1.0f : d.scalar_decay[i]), beta = set1(d.beta[i]), qk = set1(d.query_key[i]);
    Row delta, result;
    get_row(delta, value, columns);
    for (int j = 0; j < VECTORS; ++j) {
        for (int c = 1; c < CHAINS; ++c) {
            held[0][j] = add(held[0][j], held[c][j]);
            read[0][j] = add(read[0][j], read[c][j]);
        }
        delta[j] = mul(beta, fnma(decay, held[0][j], delta[j]));
        result[j] = fma(qk, delta[j], mul(decay, read[0][j]));
    }
    put_row(out, result, columns);
    for (int r = 0; r < n; ++r) {
        const Vec k = set1(d.key[i][r]), kept = CHANNELS ? set1(d.decay[i][r]) : decay;
        for (int j = 0; j < VECTORS; ++j) {
            float* s = block + r * COLUMNS + j * W;
            store(s, fma(k, delta[j], mul(kept, load(s))));
        }
    }
}

template <bool CHANNELS>
void delta_head(const moesaic_gated_delta_args& a, const Sequence& sequence, int64_t head) {
    Deltas deltas;
    scan(
        a.state, sequence, head,
        [&](int64_t token, int i) { prepare_delta(a, head, token, i, deltas); },
        [&](int64_t token, int i, float* block, int offset, int columns) {
            const float* value = at(a.value, token, head) + offset;
            delta_step<CHANNELS>(a, deltas, i, block, value, out_of(a.state, token, head) + offset, columns);
        });
}

// ---- states that only take in --------------------------------------------------------------------------------------

// One token on one block: block = decay * block + key scale value^T; out = block^T query + skip value.
MOESAIC_INLINE void outer_step(int n, float* block, float decay, const float* key, const float* query,
                               const float* value, float scale, float skip, float* out, int columns) {
    Row taken, result, sums[CHAINS];
    get_row(taken, value, columns);
    for (int j = 0; j < VECTORS; ++j) {
        result[j] = mul(set1(skip), taken[j]);
        taken[j] = mul(set1(scale), taken[j]);
    }
    for (int c = 0; c < CHAINS; ++c) zero_row(sums[c]);
    const Vec kept = set1(decay);
    for (int r = 0; r < n; ++r) {
        const int c = CHAINS == 1 ? 0 : r % CHAINS;
        const Vec k = set1(key[r]), q = set1(query[r]);
        for (int j = 0; j < VECTORS; ++j) {
            float* s = block + r * COLUMNS + j * W;
            const Vec updated = fma(k, taken[j], mul(kept, load(s)));
            store(s, updated);
            sums[c][j] = fma(q, updated, sums[c][j]);
        }
    }
    for (int j = 0; j < VECTORS; ++j)
        for (int c = 0; c < CHAINS; ++c) result[j] = add(result[j], sums[c][j]);
    put_row(out, result, columns);
}

void ssd_head(const moesaic_ssd_scan_args& a, const Sequence& sequence, int64_t head) {
    const int64_t group = head / (a.state.heads / a.state.key_heads);
    float step[TOKENS], decay[TOKENS];
    scan(
        a.state, sequence, head,
        [&](int64_t token, int i) {
            const float raw = softplus_of(*at(a.step, token, head) + a.bias[head]);
            step[i] = std::min(a.most, std::max(a.least, raw));
            decay[i] = exp_of(-a.rate[head] * step[i]);
        },
        [&](int64_t token, int i, float* block, int offset, int columns) {
            outer_step(a.state.key_dim, block, decay[i], at(a.b, token, group), at(a.c, token, group),
                       at(a.x, token, head) + offset, step[i], a.skip[head], out_of(a.state, token, head) + offset,
                       columns);
        });
}

void linear_head(const moesaic_linear_attention_args& a, const Sequence& sequence, int64_t head) {
    const int64_t key_head = head / (a.state.heads / a.state.key_heads);
    scan(
        a.state, sequence, head, [](int64_t, int) {},
        [&](int64_t token, int, float* block, int offset, int columns) {
            outer_step(a.state.key_dim, block, a.decay[head], at(a.key, token, key_head), at(a.query, token, key_head),
                       at(a.value, token, head) + offset, 1.0f, 0.0f, out_of(a.state, token, head) + offset, columns);
        });
}

template <class Arguments, class Head>
void each_head(const Arguments& a, const Head& head) {
    const int64_t work = 4 * int64_t(a.state.key_dim) * a.state.value_dim;
    each_part(*a.rows, *a.sequences, a.batch, a.state.heads, work,
              [&](const Sequence& sequence, int64_t h) { head(a, sequence, h); });
}

}  // namespace
}  // namespace moesaic

using namespace moesaic;

void moesaic_gated_delta(const moesaic_gated_delta_args* args) {
    each_head(*args, args->channels == 1 ? delta_head<false> : delta_head<true>);
}

void moesaic_ssd_scan(const moesaic_ssd_scan_args* args) { each_head(*args, ssd_head); }

void moesaic_linear_attention(const moesaic_linear_attention_args* args) { each_head(*args, linear_head); }
