// One pass over numbers that lie in the cache: block by block, first as bytes, then as numbers.
#include "../abi/scan.h"

#include <algorithm>
#include <cmath>

#include "../common/simd.h"

namespace moesaic {
namespace {

constexpr int64_t BLOCK_BYTES = 1 << 14;
constexpr int LANES = 8;
constexpr int64_t STRIPE = LANES * 8;
constexpr uint64_t PRIME = 0x9e3779b97f4a7c15u;  // 2^64 over the golden ratio, odd

// A hash in the manner of XXH3 (Collet): a lane adds the product of the halves of a keyed word, and its neighbour's word
// as it is; keys change from stripe to stripe, and lanes are stirred at the end of every block. And all bits together.
class Hash {
public:
    Hash() {
        for (int l = 0; l < LANES; ++l) key_[l] = PRIME * uint64_t(l + 1), sum_[l] = key_[l] ^ key_[l] >> 31;
    }

    void take(const uint8_t* p, int64_t bytes) {
        const int64_t whole = bytes / STRIPE, rest = bytes % STRIPE;
        stripes(p, whole, sum_, key_, bits_);
        if (rest > 0) {
            uint8_t last[STRIPE] = {};
            std::memcpy(last, p + whole * STRIPE, size_t(rest));
            stripes(last, 1, sum_, key_, bits_);
        }
        for (uint64_t& sum : sum_) sum = (sum ^ sum >> 29) * PRIME;
        length_ += uint64_t(bytes);
    }

    uint64_t value() const {
        uint64_t hash = length_ * PRIME;
        for (uint64_t sum : sum_) hash = ((hash ^ sum) * PRIME) ^ hash >> 32;
        return hash ^ hash >> 29;
    }

    bool blank() const {
        return std::all_of(bits_, bits_ + LANES, [](uint64_t bits) { return bits == 0; });
    }

private:
#if defined(__AVX2__)
    static constexpr int VECTORS = LANES / 4;

    static void stripes(const uint8_t* p, int64_t count, uint64_t* sums, uint64_t* keys, uint64_t* seen) {
        __m256i sum[VECTORS], key[VECTORS], bits[VECTORS];
        for (int v = 0; v < VECTORS; ++v) {
            sum[v] = load(sums + 4 * v), key[v] = load(keys + 4 * v), bits[v] = load(seen + 4 * v);
        }
        const __m256i prime = _mm256_set1_epi64x(int64_t(PRIME));
        for (; count > 0; --count)
            for (int v = 0; v < VECTORS; ++v, p += 32) {
                const __m256i word = load(p), keyed = _mm256_xor_si256(word, key[v]);
                const __m256i product = _mm256_mul_epu32(keyed, _mm256_srli_epi64(keyed, 32));
                const __m256i neighbour = _mm256_shuffle_epi32(word, 0x4e);
                sum[v] = _mm256_add_epi64(sum[v], _mm256_add_epi64(product, neighbour));
                key[v] = _mm256_add_epi64(key[v], prime);
                bits[v] = _mm256_or_si256(bits[v], word);
            }
        for (int v = 0; v < VECTORS; ++v) {
            keep(sums + 4 * v, sum[v]), keep(keys + 4 * v, key[v]), keep(seen + 4 * v, bits[v]);
        }
    }

    static MOESAIC_INLINE __m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
    static MOESAIC_INLINE void keep(uint64_t* p, __m256i v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
#else
    static void stripes(const uint8_t* p, int64_t count, uint64_t* sum, uint64_t* key, uint64_t* bits) {
        for (; count > 0; --count, p += STRIPE) {
            uint64_t word[LANES];
            std::memcpy(word, p, STRIPE);
            for (int l = 0; l < LANES; ++l) {
                const uint64_t keyed = word[l] ^ key[l];
                sum[l] += (keyed & 0xffffffffu) * (keyed >> 32) + word[l ^ 1];
                key[l] += PRIME;
                bits[l] |= word[l];
            }
        }
    }
#endif

    uint64_t sum_[LANES], key_[LANES], bits_[LANES] = {}, length_ = 0;
};

struct F32 {
    using Stored = float;
    static MOESAIC_INLINE Vec vector(const float* p) { return load(p); }
    static float one(float x) { return x; }
};

struct F16 {
    using Stored = uint16_t;
    static MOESAIC_INLINE Vec vector(const uint16_t* p) { return load_f16(p); }
    static float one(uint16_t x) { return f16_to_float(x); }
};

struct Bf16 {
    using Stored = uint16_t;
    static MOESAIC_INLINE Vec vector(const uint16_t* p) { return load_bf16(p); }
    static float one(uint16_t x) { return bf16_to_float(x); }
};

// Sum of squares of `n` numbers; not finite where one of them is not, or where squares are too large for fp32.
template <class Type>
float sum_of_squares(const typename Type::Stored* x, int64_t n) {
    constexpr int SUMS = 4;
    Vec sums[SUMS] = {zero(), zero(), zero(), zero()};
    int64_t i = 0;
    for (; i + SUMS * W <= n; i += SUMS * W)
        for (int s = 0; s < SUMS; ++s) {
            const Vec v = Type::vector(x + i + s * W);
            sums[s] = fma(v, v, sums[s]);
        }
    float rest = 0;
    for (; i < n; ++i) rest += Type::one(x[i]) * Type::one(x[i]);
    return reduce_add(add(add(sums[0], sums[1]), add(sums[2], sums[3]))) + rest;
}

// Numbers one by one, the first of them at `at`.
template <class Type>
void look_closely(const typename Type::Stored* x, int64_t n, int64_t at, moesaic_scan_args& a) {
    for (int64_t i = 0; i < n; ++i) {
        const double value = Type::one(x[i]);
        if (std::isfinite(value)) {
            a.squares += value * value;
        } else if (a.nonfinite++ == 0) {
            a.first = at + i;
        }
    }
}

template <class Type>
void scan(moesaic_scan_args& a, Hash& hash) {
    using Stored = typename Type::Stored;
    const Stored* x = static_cast<const Stored*>(a.data);
    constexpr int64_t BLOCK = BLOCK_BYTES / int64_t(sizeof(Stored));
    for (int64_t i = 0; i < a.count; i += BLOCK) {
        const int64_t n = std::min(BLOCK, a.count - i);
        hash.take(reinterpret_cast<const uint8_t*>(x + i), n * int64_t(sizeof(Stored)));
        const float squares = sum_of_squares<Type>(x + i, n);
        if (std::isfinite(squares)) {
            a.squares += squares;
        } else {
            look_closely<Type>(x + i, n, i, a);
        }
    }
}

}  // namespace
}  // namespace moesaic

using namespace moesaic;

MOESAIC_API void moesaic_scan(moesaic_scan_args* a) {
    a->nonfinite = 0;
    a->first = -1;
    a->squares = 0;
    Hash hash;
    switch (a->dtype) {
        case MOESAIC_F32: scan<F32>(*a, hash); break;
        case MOESAIC_F16: scan<F16>(*a, hash); break;
        case MOESAIC_BF16: scan<Bf16>(*a, hash); break;
        default: hash.take(static_cast<const uint8_t*>(a->data), a->count);
    }
    a->hash = hash.value();
    a->blank = hash.blank();
}
