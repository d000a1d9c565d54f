// Which instruction set this machine offers, decided once, when asked.
#include "moesaic.h"

namespace {

const char* detect() {
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (avx512 && __builtin_cpu_supports("avx512bf16")) return "avx512_bf16";
    if (avx512) return "avx512";
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "avx2";
#endif
    return "portable";
}

}  // namespace

extern "C" int moesaic_abi_version() { return MOESAIC_ABI_VERSION; }

extern "C" const char* moesaic_isa() {
    static const char* const isa = detect();
    return isa;
}
