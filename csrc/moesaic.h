// The CPU backend's whole interface: a plain C ABI of pointers and sizes, called from Python through ctypes.
#pragma once

// Raised with every change of a signature below; the binding refuses a library of another version.
#define MOESAIC_ABI_VERSION 1

#if defined(__GNUC__)
#define MOESAIC_API extern "C" __attribute__((visibility("default")))
#else
#define MOESAIC_API extern "C"
#endif

MOESAIC_API int moesaic_abi_version();

// The best instruction set the machine offers: "avx512_bf16", "avx512", "avx2" or "portable".
MOESAIC_API const char* moesaic_isa();
