// What a library of kernels says of itself.
#include "../abi/types.h"

// Raised with every change of a struct or function under abi/; the binding refuses a library of another version.
#define MOESAIC_ABI_VERSION 10

MOESAIC_API int moesaic_abi_version() { return MOESAIC_ABI_VERSION; }

// The instruction set that this library was compiled for.
MOESAIC_API const char* moesaic_isa() { return MOESAIC_ISA; }
