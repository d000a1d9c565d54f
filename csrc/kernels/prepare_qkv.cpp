// From the projection to attention: norms, rotation, and writing keys and values into the paged cache, in one pass.
#include <cmath>

#include "../common/simd.h"
#include "../common/team.h"
#include "kv_layout.h"

namespace moesaic {
namespace {

constexpr int SCRATCH = 9;  // workspace slot

// x[n] = x / sqrt(mean of squares + eps) * weight
void rms_norm(float* x, const float* weight, int64_t n, float eps) {
    Vec squares = zero();
    int64_t i = 0;
    for (; i + W <= n; i += W) squares = fma(load(x + i), load(x + i), squares);
    if (i < n) squares = fma(load_n(x + i, int(n - i)), load_n(x + i, int(n - i)), squares);
    const float factor = 1.0f / std::sqrt(reduce_add(squares) / float(n) + eps);
    for (i = 0; i + W <= n; i += W) store(x + i, mul(mul(load(x + i), set1(factor)), load(weight + i)));
    for (; i < n; ++i) x[i] = x[i] * factor * weight[i];
}

void clamp(float* x, int64_t n, float limit) {
    for (int64_t i = 0; i < n; ++i) x[i] = x[i] < -limit ? -limit : x[i] > limit ? limit : x[i];
}

// Turn each pair of x[2 * half] by its angle; `table` holds half cosines, then half sines.
void rotate(float* x, const float* table, int64_t half, bool interleaved) {
    const float *cos = table, *sin = table + half;
    if (interleaved) {
        for (int64_t i = 0; i < half; ++i) {
            const float a = x[2 * i], b = x[2 * i + 1];
            x[2 * i] = a * cos[i] - b * sin[i];
            x[2 * i + 1] = b * cos[i] + a * sin[i];
        }
        return;
    }
    for (int64_t i = 0; i < half; ++i) {
        const float a = x[i], b = x[half + i];
        x[i] = a * cos[i] - b * sin[i];
        x[half + i] = b * cos[i] + a * sin[i];
    }
}

// Norm, clip and rotation of `heads` heads of one token, in place.
void transform(const moesaic_prepare_qkv_args& a, float* x, int64_t heads, const float* weight, int64_t together,
               int64_t token) {
    const int64_t dim = a.cache.key_dim;
    const auto norm = [&] {
        if (weight == nullptr) return;
        for (int64_t h = 0; h < heads; h += together) rms_norm(x + h * dim, weight, together * dim, a.eps);
    };
    if (!a.norm_last) norm();
    if (a.clip < INFINITY) clamp(x, heads * dim, a.clip);
    if (a.table != nullptr) {
        const float* table = a.table + token * a.rotary;
        for (int64_t h = 0; h < heads; ++h) {
            rotate(x + h * dim + a.rotary_start, table, a.rotary / 2, a.interleaved != 0);
        }
    }
    if (a.norm_last) norm();
}

// The scale of int8 codes: the largest magnitude is 127. NaN where x has one, so that it shows.
float code_scale(const float* x, int64_t n) {
    float most = 0, sum = 0;
    for (int64_t i = 0; i < n; ++i) {
        most = std::fabs(x[i]) > most ? std::fabs(x[i]) : most;
        sum += x[i];
    }
    return sum != sum ? sum : most / 127.0f;
}

// Write x[n] to the elements at(0..n-1) of a tile.
template <class At>
void put(const KvLayout& layout, void* elements, const float* x, int64_t n, float scale, const At& at) {
    const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
    switch (layout.kind) {
        case MOESAIC_KV_F32:
            for (int64_t d = 0; d < n; ++d) static_cast<float*>(elements)[at(d)] = x[d];
            break;
        case MOESAIC_KV_F16:
            for (int64_t d = 0; d < n; ++d) static_cast<uint16_t*>(elements)[at(d)] = float_to_f16(x[d]);
            break;
        case MOESAIC_KV_BF16:
            for (int64_t d = 0; d < n; ++d) static_cast<uint16_t*>(elements)[at(d)] = float_to_bf16(x[d]);
            break;
        default:
            for (int64_t d = 0; d < n; ++d) {
                static_cast<int8_t*>(elements)[at(d)] = int8_t(std::lrintf(x[d] * inverse));
            }
    }
}

// One head's key and value of one token. `value` is absent in a latent cache.
void write(const moesaic_kv_cache& cache, const KvLayout& layout, int64_t slot, int64_t head, const float* key,
           const float* value) {
    const int64_t offset = slot % cache.block_size, t = offset % layout.width;
    char* tile = static_cast<char*>(cache.data) + slot / cache.block_size * layout.block_bytes +
                 head * layout.head_bytes + offset / layout.width * layout.tile_bytes;
    float* scales = reinterpret_cast<float*>(tile + layout.scales_at);
    const bool codes = layout.kind == MOESAIC_KV_INT8;
    const float key_scale = codes ? code_scale(key, cache.key_dim) : 0;
    put(layout, tile, key, cache.key_dim, key_scale, [&](int64_t d) { return layout.key_index(t, d); });
    if (codes) scales[t] = key_scale;
    if (layout.paired() && cache.key_dim % 2) {  // the odd one's partner
        reinterpret_cast<uint16_t*>(tile)[layout.key_index(t, cache.key_dim)] = 0;
    }
    if (cache.latent) {
        if (codes) scales[layout.width + t] = key_scale;
        return;
    }
    const float value_scale = codes ? code_scale(value, cache.value_dim) : 0;
    put(layout, tile + layout.value_at, value, cache.value_dim, value_scale,
        [&](int64_t d) { return layout.value_index(t, d); });
    if (codes) scales[layout.width + t] = value_scale;
}

}  // namespace
}  // namespace moesaic

using namespace moesaic;

int64_t moesaic_kv_block_bytes(const moesaic_kv_cache* cache) { return KvLayout(*cache).block_bytes; }

void moesaic_rope_table(const moesaic_rope_table_args* args) {
    const moesaic_rope_table_args& a = *args;
    parallel_for(*a.rows, 16, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
            float* row = a.table + t * 2 * a.half;
            for (int64_t i = 0; i < a.half; ++i) {
                const float angle = float(a.positions[t]) * a.inverse[i];
                row[i] = std::cos(angle) * a.factor;
                row[a.half + i] = std::sin(angle) * a.factor;
            }
        }
    });
}

void moesaic_query_temperature(const moesaic_query_temperature_args* args) {
    const moesaic_query_temperature_args& a = *args;
    for (int64_t t = 0; t < *a.rows; ++t) {
        const float periods = std::floor(float(a.positions[t] + a.offset) / float(a.period));
        a.out[t] = 1.0f + a.scale * std::log1p(periods);
    }
}

void moesaic_prepare_qkv(const moesaic_prepare_qkv_args* args) {
    const moesaic_prepare_qkv_args& a = *args;
    const KvLayout layout(a.cache);
    const int64_t dim = a.cache.key_dim, query_size = a.heads * dim, key_size = a.cache.heads * dim;
    const int64_t value_size = a.cache.heads * a.cache.value_dim;
    // 16 tokens at a time: they share the cache lines of a tile's keys.
    parallel_for(*a.rows, TILE, [&](int64_t begin, int64_t end) {
        float* scratch = static_cast<float*>(workspace(SCRATCH, size_t(key_size + value_size) * sizeof(float)));
        for (int64_t t = begin; t < end; ++t) {
            if (a.query != nullptr) {
                float* out = a.out + t * query_size;
                std::memcpy(out, a.query + t * a.query_stride, size_t(query_size) * sizeof(float));
                transform(a, out, a.heads, a.query_norm, a.query_norm_heads, t);
            }
            if (a.key == nullptr) continue;
            float *key = scratch, *value = scratch + key_size;
            std::memcpy(key, a.key + t * a.key_stride, size_t(key_size) * sizeof(float));
            transform(a, key, a.cache.heads, a.key_norm, a.key_norm_heads, t);
            if (a.value != nullptr) {
                std::memcpy(value, a.value + t * a.value_stride, size_t(value_size) * sizeof(float));
                if (a.clip < INFINITY) clamp(value, value_size, a.clip);
            }
            for (int64_t h = 0; h < a.cache.heads; ++h) {
                write(a.cache, layout, a.slots[t], h, key + h * dim, value + h * a.cache.value_dim);
            }
        }
    });
}
