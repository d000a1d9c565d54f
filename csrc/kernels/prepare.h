// What heads go through before attention, and how they are written into the paged cache.
#pragma once

#include <cmath>

#include "../common/simd.h"
#include "kv_layout.h"

namespace moesaic {

// x[n] = x / sqrt(mean of squares + eps) * weight
inline void rms_norm(float* x, const float* weight, int64_t n, float eps) {
    Vec squares = zero();
    int64_t i = 0;
    for (; i + W <= n; i += W) squares = fma(load(x + i), load(x + i), squares);
    if (i < n) squares = fma(load_n(x + i, int(n - i)), load_n(x + i, int(n - i)), squares);
    const float factor = 1.0f / std::sqrt(reduce_add(squares) / float(n) + eps);
    for (i = 0; i + W <= n; i += W) store(x + i, mul(mul(load(x + i), set1(factor)), load(weight + i)));
    for (; i < n; ++i) x[i] = x[i] * factor * weight[i];
}

inline void clamp(float* x, int64_t n, float limit) {
    for (int64_t i = 0; i < n; ++i) x[i] = x[i] < -limit ? -limit : x[i] > limit ? limit : x[i];
}

// Turn each pair of x[2 * half] by its angle; `table` holds half cosines, then half sines.
inline void rotate(float* x, const float* table, int64_t half, bool interleaved) {
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

// The scale of int8 codes: the largest magnitude is 127. NaN where x has one, so that it shows.
inline float code_scale(const float* x, int64_t n) {
    float most = 0, sum = 0;
    for (int64_t i = 0; i < n; ++i) {
        most = std::fabs(x[i]) > most ? std::fabs(x[i]) : most;
        sum += x[i];
    }
    return sum != sum ? sum : most / 127.0f;
}

// Write x[n] to the elements at(0..n-1) of a tile.
template <class At>
inline void put(const KvLayout& layout, void* elements, const float* x, int64_t n, float scale, const At& at) {
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
inline void write(const moesaic_kv_cache& cache, const KvLayout& layout, int64_t slot, int64_t head, const float* key,
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

}  // namespace moesaic
