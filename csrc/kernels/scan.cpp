// One pass over numbers that lie in the cache: block by block, first as bytes, then as numbers.
#include "../abi/scan.h"

#include <algorithm>
#include <cmath>

#include "../common/simd.h"

namespace moesaic {
namespace {

constexpr int64_t BLOCK_BYTES = 1 << 14;
constexpr int LANES = 4;
constexpr uint64_t PRIME = 0x9e3779b97f4a7c15u;  // 2^64 over the golden ratio, odd

MOESAIC_INLINE uint64_t mixed(uint64_t hash, uint64_t word) {
    hash = (hash ^ word) * PRIME;
    return hash << 29 | hash >> 35;
}

// Lanes of a multiply-and-rotate hash, so that products overlap; and all bits together.
class Hash {
public:
    void take(const uint8_t* p, int64_t bytes) {
        int64_t i = 0;
        for (; i + LANES * 8 <= bytes; i += LANES * 8)
            for (int l = 0; l < LANES; ++l) add(l, p + i + l * 8, 8);
        for (; i < bytes; i += 8) add(0, p + i, std::min<int64_t>(8, bytes - i));
        length_ += uint64_t(bytes);
    }

    uint64_t value() const {
        uint64_t hash = length_ * PRIME;
        for (uint64_t lane : lane_) hash = mixed(hash, lane);
        hash = (hash ^ hash >> 32) * PRIME;
        return hash ^ hash >> 29;
    }

    bool blank() const { return bits_ == 0; }

private:
    MOESAIC_INLINE void add(int lane, const uint8_t* p, int64_t bytes) {
        uint64_t word = 0;
        std::memcpy(&word, p, size_t(bytes));
        lane_[lane] = mixed(lane_[lane], word);
        bits_ |= word;
    }

    uint64_t lane_[LANES] = {1, 2, 3, 4}, bits_ = 0, length_ = 0;
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
