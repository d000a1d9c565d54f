// From the projection to attention: norms, rotation, and writing keys and values into the paged cache, in one pass.
#include <cmath>

#include "../common/simd.h"
#include "../common/team.h"
#include "prepare.h"

namespace moesaic {
namespace {

constexpr int SCRATCH = 9;  // workspace slot

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
        const float periods = float(a.positions[t] + a.offset) / float(a.period);
        a.out[t] = a.power ? std::exp(a.scale * std::log1p(periods))
                           : 1.0f + a.scale * std::log1p(std::floor(periods));
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
