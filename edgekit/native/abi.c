#include "edgekit_native.h"

uint32_t ek_abi_version(void) { return EK_ABI_VERSION; }
