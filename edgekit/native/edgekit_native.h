/* The whole C interface of edgekit's native library. No other library's headers. */
#ifndef EDGEKIT_NATIVE_H
#define EDGEKIT_NATIVE_H

#include <stdint.h>

#define EK_ABI_VERSION 1u
#define EK_API __attribute__((visibility("default")))

/* EK_ABI_VERSION of the library that is loaded; the door refuses any other. */
EK_API uint32_t ek_abi_version(void);

#endif
