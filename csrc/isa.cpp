// Which instruction sets this machine offers, best first. Compiled for any machine: it runs before kernels are loaded.
#include "abi/types.h"

namespace {

const char* detect() {
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    const bool newer = __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi") &&
                       __builtin_cpu_supports("avx512bf16");
    if (avx512 && newer) return "avx512_bf16 avx512 avx2 portable";
    if (avx512) return "avx512 avx2 portable";
    if (avx2) return "avx2 portable";
#endif
    return "portable";
}

}  // namespace

// Names separated by spaces: "avx512_bf16", "avx512", "avx2", "portable". AMX and NEON would stand here too.
MOESAIC_API const char* moesaic_isas() {
    static const char* const isas = detect();
    return isas;
}
