// Layers that keep a state of fixed size for each sequence instead of every token's keys and values. All is fp32, and
// computed token by token in one order, so that neither chunks nor neighbours in the batch change a bit.
#pragma once

#include "types.h"

// The step's tokens by sequence, and where each sequence's state lies. A sequence whose first position is 0 begins with
// zeros, whatever its slot holds; any other continues from its slot. Slots are written at the end of a sequence's
// tokens, others are not touched.
typedef struct {
    const int64_t* query_start;  // [S + 1], rows of each sequence
    const int64_t* positions;    // [T]
    const int64_t* slots;        // [S], all different
} moesaic_stateful;

// out[t, c] = act(bias[c] + sum over k of weight[k, c] * x[t - width + 1 + k, c]), each channel by itself.
typedef struct {
    moesaic_count rows;       // T
    moesaic_count sequences;  // S
    const float* x;           // [T, channels], rows x_stride apart
    const float* weight;      // [width, channels]
    const float* bias;        // [channels]; NULL for none
    float* state;             // [slots, width - 1, channels], the last inputs, oldest first
    float* out;               // [T, channels]
    moesaic_stateful batch;
    int64_t x_stride;
    int64_t channels;
    int32_t width;
    int32_t silu;  // 1: act is silu; 0: there is none
} moesaic_causal_conv_args;

MOESAIC_API void moesaic_causal_conv(const moesaic_causal_conv_args* args);

// Rows of heads: those of token t and head h lie at data + t * stride + h * head_stride.
typedef struct {
    const float* data;
    int64_t stride;
    int64_t head_stride;
} moesaic_heads;

// Columns of a head's state that lie together, as rows of the keys' numbers: state[slots, heads, blocks, key_dim, 32].
// What pads the last block stays zero.
enum { MOESAIC_STATE_COLUMNS = 32 };

// Where a state that is a matrix [key_dim, value_dim] for each head lies, and what is read out of it.
typedef struct {
    float* state;
    float* out;  // [T, heads, value_dim]
    int32_t heads;
    int32_t key_heads;  // of keys and queries: each serves heads / key_heads neighbours
    int32_t key_dim;    // at most 256
    int32_t value_dim;
} moesaic_matrix_state;

// The gated delta rule (Yang et al. 2024). With k and q of length 1, q divided by sqrt(key_dim), b = sigmoid(beta) and
// d = exp(-rate * softplus(decay + bias)), one number a head or one a key channel (Kimi Linear, 2025):
//   S = d S;  S += k (b (v - S^T k))^T;  out = S^T q
typedef struct {
    moesaic_count rows;
    moesaic_count sequences;
    moesaic_heads query;  // [T, key_heads, key_dim]
    moesaic_heads key;
    moesaic_heads value;  // [T, heads, value_dim]
    moesaic_heads decay;  // [T, heads, channels]
    moesaic_heads beta;   // [T, heads, 1]
    const float* rate;    // [heads]
    const float* bias;    // [heads, channels]
    moesaic_matrix_state state;
    moesaic_stateful batch;
    int32_t channels;  // 1 or key_dim
    float eps;         // added to the squares that queries and keys are divided by the root of
} moesaic_gated_delta_args;

MOESAIC_API void moesaic_gated_delta(const moesaic_gated_delta_args* args);

// Mamba 2's scan (Dao and Gu 2024). With dt = softplus(step + bias), between the two limits:
//   S = exp(-rate dt) S + B (dt x)^T;  out = S^T C + skip x
typedef struct {
    moesaic_count rows;
    moesaic_count sequences;
    moesaic_heads x;     // [T, heads, value_dim]
    moesaic_heads b;     // [T, key_heads, key_dim]
    moesaic_heads c;
    moesaic_heads step;  // [T, heads, 1]
    const float* rate;   // [heads]
    const float* bias;   // [heads]
    const float* skip;   // [heads]
    moesaic_matrix_state state;
    moesaic_stateful batch;
    float least;
    float most;
} moesaic_ssd_scan_args;

MOESAIC_API void moesaic_ssd_scan(const moesaic_ssd_scan_args* args);

// Linear attention with a decay that is fixed for each head (lightning attention, Qin et al. 2024; MiniMax-01):
//   S = decay S + k v^T;  out = S^T q
typedef struct {
    moesaic_count rows;
    moesaic_count sequences;
    moesaic_heads query;
    moesaic_heads key;
    moesaic_heads value;
    const float* decay;  // [heads]
    moesaic_matrix_state state;
    moesaic_stateful batch;
} moesaic_linear_attention_args;

MOESAIC_API void moesaic_linear_attention(const moesaic_linear_attention_args* args);

// Mamba's selective scan (Gu and Dao 2023), each channel with a state of its own. With dt = softplus(step + bias):
//   h[n] = exp(-rate[n] dt) h[n] + B[n] dt x;  out = (sum over n of C[n] h[n] + skip x) silu(gate)
typedef struct {
    moesaic_count rows;
    moesaic_count sequences;
    const float* x;     // [T, channels], rows x_stride apart
    const float* step;  // [T, channels]
    const float* b;     // [T, state_size]
    const float* c;     // [T, state_size]
    const float* gate;  // [T, channels], rows gate_stride apart
    const float* rate;  // [tiles, state_size, 32]: 32 channels a tile; what pads the last one is zero
    const float* bias;  // [channels]
    const float* skip;  // [channels]
    float* state;       // [slots, tiles, state_size, 32]
    float* out;         // [T, channels]
    moesaic_stateful batch;
    int64_t x_stride;
    int64_t gate_stride;
    int64_t channels;
    int32_t state_size;
} moesaic_selective_scan_args;

MOESAIC_API void moesaic_selective_scan(const moesaic_selective_scan_args* args);

// An RMS norm of each `group` numbers and a gate: out = norm(x) * weight * act(gate), or, where the gate comes first,
// out = norm(x * act(gate)) * weight.
typedef struct {
    moesaic_count rows;
    const float* x;       // [rows, size]
    const float* gate;    // [rows, size], rows gate_stride apart
    const float* weight;  // [size], or [group] for all groups alike
    float* out;           // [rows, size]; may be x
    int64_t size;
    int64_t group;
    int64_t weight_size;
    int64_t gate_stride;
    float eps;
    int32_t silu;        // 1: act is silu; 0: sigmoid
    int32_t gate_first;
} moesaic_gated_norm_args;

MOESAIC_API void moesaic_gated_norm(const moesaic_gated_norm_args* args);
