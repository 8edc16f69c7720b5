// The arithmetic of one set of instructions, ONLY_LEVEL: build.py compiles this file once for each, for it is most of all.

#include "arithmetic.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

namespace {
using Kernels = Arithmetic;
}

#define KERNELS_FILE "kernels.h"
#include "each_level.h"

#if ONLY_LEVEL == 0
const Arithmetic& arithmetic_of_baseline() { return baseline::kernels; }
#elif defined(__x86_64__) && ONLY_LEVEL == 1
const Arithmetic& arithmetic_of_avx2() { return avx2::kernels; }
#elif defined(__x86_64__)
const Arithmetic& arithmetic_of_avx512() { return avx512::kernels; }
#endif
