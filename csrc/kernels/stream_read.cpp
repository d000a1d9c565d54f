// Reads memory as fast as this machine does: what benchmarks of streaming kernels are compared with.
#include "../abi/matmul.h"
#include "../common/team.h"
#include "matmul_simd.h"

namespace moesaic {
namespace {

constexpr int64_t UNIT = 128 << 10, AHEAD = 1024, STEP = 256;

// A checksum, so that the reads are not left out.
int32_t read(const char* p, int64_t bytes) {
    constexpr int VECTORS = STEP / (W * 4);
    Int sum[VECTORS];
    for (Int& s : sum) s = int_zero();
    for (int64_t i = 0; i + STEP <= bytes; i += STEP) {
        for (int line = 0; line < STEP; line += 64) prefetch(p + i + AHEAD + line);
        for (int v = 0; v < VECTORS; ++v) sum[v] = int_add(sum[v], int_load(p + i + v * W * 4));
    }
    for (int v = 1; v < VECTORS; ++v) sum[0] = int_add(sum[0], sum[v]);
    return int_reduce_add(sum[0]);
}

}  // namespace
}  // namespace moesaic

MOESAIC_API void moesaic_stream_read(const moesaic_stream_read_args* args) {
    using namespace moesaic;
    const char* data = static_cast<const char*>(args->data);
    std::atomic<int32_t> total{0};
    parallel_for((args->bytes + UNIT - 1) / UNIT, 1, [&](int64_t begin, int64_t end) {
        const int64_t stop = end * UNIT < args->bytes ? end * UNIT : args->bytes;
        total.fetch_add(read(data + begin * UNIT, stop - begin * UNIT), std::memory_order_relaxed);
    });
    asm volatile("" : : "r"(total.load()) : "memory");
}
