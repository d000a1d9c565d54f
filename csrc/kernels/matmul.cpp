// Which engine multiplies a matrix, and rows of activations in the form that it wants.
#include "matmul.h"

#include "matmul_bf16.h"
#include "matmul_fp32.h"
#include "matmul_int16.h"
#include "matmul_int8.h"

namespace moesaic {
namespace {

constexpr float TINY = 1e-30f;  // a chunk whose largest element is below counts as zero: 32767 / TINY is still finite

Engine engine_of(const moesaic_format& format) {
    if (format.kind == MOESAIC_W8A8 && quad_bytes()) return Engine::INT8;
    if (quantised(format)) return Engine::INT16;
#if defined(__AVX512BF16__)
    if (format.kind == MOESAIC_BF16) return Engine::BF16;
#endif
    return Engine::FP32;
}

int64_t element_bytes(Engine engine) { return engine == Engine::FP32 ? 4 : engine == Engine::INT8 ? 1 : 2; }

// Calls f(i, vector of x[i..]) over n elements; lanes beyond n are 0.
template <class F>
MOESAIC_INLINE void for_vectors(const float* x, int64_t n, const F& f) {
    int64_t i = 0;
    for (; i + W <= n; i += W) f(i, load(x + i));
    if (i < n) f(i, load_n(x + i, int(n - i)));
}

// The scale that maps the largest of n elements to `levels`: NaN if an element is not finite.
float scale_of(const float* x, int64_t n, float levels) {
    Vec largest = zero(), not_finite = zero();
    for_vectors(x, n, [&](int64_t, Vec v) {
        largest = max(abs(v), largest);
        not_finite = fma(v, zero(), not_finite);
    });
    const float most = reduce_max(largest);
    return (most < TINY ? 0.0f : most / levels) + reduce_add(not_finite);
}

#if defined(__AVX512VNNI__)
MOESAIC_INLINE void store_codes(uint8_t* p, Int codes) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(int_add(codes, int_set1(128))));
}
#endif
MOESAIC_INLINE void store_codes(int16_t* p, Int codes) { store_int16(p, codes); }

// Integers of one chunk of n elements and what they stand for. Whole vectors are written: the row has room for them.
template <class Code>
ChunkScale quantise(const float* x, int64_t n, float scale, Code* out) {
    if (!(scale > 0)) {  // all are zero, or one is not finite
        for (int64_t i = 0; i < n; ++i) out[i] = sizeof(Code) == 1 ? Code(128) : Code(0);
        return {scale, scale, 0};
    }
    const Vec inverse = set1(1.0f / scale);
    Int sum = int_zero();
    for_vectors(x, n, [&](int64_t i, Vec v) {
        const Int codes = to_int(mul(v, inverse));
        sum = int_add(sum, codes);
        store_codes(out + i, codes);
    });
    const int32_t code_sum = int_reduce_add(sum);
    return {scale, scale * float(code_sum), code_sum};
}

template <class Code>
void quantise_row(const Form& form, const float* x, char* row) {
    Code* codes = reinterpret_cast<Code*>(row);
    ChunkScale* scales = reinterpret_cast<ChunkScale*>(row + form.scales_at);
    const float row_scale = form.whole_row ? scale_of(x, form.cols, form.levels) : 0.0f;
    for (int64_t begin = 0; begin < form.padded; begin += form.chunk, ++scales) {
        const int64_t left = form.cols - begin, n = left < 0 ? 0 : left < form.chunk ? left : form.chunk;
        const float scale = form.whole_row ? row_scale : scale_of(x + begin, n, form.levels);
        *scales = quantise(x + begin, n, scale, codes + begin);
    }
    for (int64_t k = form.cols; k < form.padded; ++k) codes[k] = sizeof(Code) == 1 ? Code(128) : Code(0);
}

}  // namespace

Form form_of(const moesaic_matrix& matrix) {
    const moesaic_format& format = matrix.format;
    Form form{};
    form.engine = engine_of(format);
    form.cols = matrix.cols;
    form.padded = padded_cols(format, matrix.cols);
    if (quantised(format)) {
        const int64_t group = group_size(format, matrix.cols);
        const bool cut = form.engine == Engine::INT16 && group > INT16_CHUNK;
        form.chunk = int32_t(cut ? INT16_CHUNK : group);
        form.levels = format.kind == MOESAIC_W8A8 ? 127.0f : 32767.0f;
        form.whole_row = cut && format.kind == MOESAIC_W8A8;
    }
    // Room for whole vectors beyond the last element; and rows do not begin at the same place of every 4 KiB, which would
    // let them fight for the same few places of the first-level cache.
    form.scales_at = round_up(form.padded * element_bytes(form.engine), 64) + 64;
    const int64_t chunks = form.chunk ? (form.padded + form.chunk - 1) / form.chunk : 0;
    form.row_bytes = round_up(form.scales_at + chunks * int64_t(sizeof(ChunkScale)), 64);
    if (form.row_bytes % 1024 == 0) form.row_bytes += 64;
    return form;
}

void prepare_row(const Form& form, const float* x, void* row) {
    switch (form.engine) {
        case Engine::FP32: {
            float* out = static_cast<float*>(row);
            std::memcpy(out, x, size_t(form.cols) * 4);
            for (int64_t k = form.cols; k < form.padded; ++k) out[k] = 0.0f;
            break;
        }
        case Engine::BF16: {
            uint16_t* out = static_cast<uint16_t*>(row);
            for_vectors(x, form.cols, [&](int64_t k, Vec v) { store_bf16(out + k, v); });
            for (int64_t k = form.cols; k < form.padded; ++k) out[k] = 0;
            break;
        }
        case Engine::INT16: quantise_row<int16_t>(form, x, static_cast<char*>(row)); break;
        case Engine::INT8:
#if defined(__AVX512VNNI__)
            quantise_row<uint8_t>(form, x, static_cast<char*>(row));
#endif
            break;
    }
}

void multiply(const Form& form, const moesaic_matrix& matrix, int64_t panel, const char* const* rows, int64_t count,
              float* out) {
    const char* data = static_cast<const char*>(matrix.data) + panel * panel_bytes(matrix.format, matrix.cols);
    switch (matrix.format.kind) {
        case MOESAIC_F32: return fp32_multiply<F32Weights>(form.padded, data, rows, count, out);
        case MOESAIC_F16: return fp32_multiply<F16Weights>(form.padded, data, rows, count, out);
        case MOESAIC_BF16:
#if defined(__AVX512BF16__)
            return bf16_multiply(form.padded, data, rows, count, out);
#else
            return fp32_multiply<Bf16Weights>(form.padded, data, rows, count, out);
#endif
        case MOESAIC_W4: return int16_multiply<NibbleCodes>(form, matrix, data, rows, count, out);
        case MOESAIC_MXFP4: return int16_multiply<Mxfp4Codes>(form, matrix, data, rows, count, out);
        case MOESAIC_W8A8:
#if defined(__AVX512VNNI__)
            return int8_multiply(form, matrix, data, rows, count, out);
#endif
        default: return int16_multiply<ByteCodes>(form, matrix, data, rows, count, out);
    }
}

}  // namespace moesaic
