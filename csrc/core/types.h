// The integer types of csrc/core and of the kernels. This is the one file of csrc/core and csrc/cpu/kernels that
// includes headers of the C library: these two define types alone and no functions. A function of the standard library
// must not come with them, or it would be compiled once per instruction set (see csrc/cpu/kernels/kernels.cpp).
#pragma once

#include <stddef.h>
#include <stdint.h>
