// KERNELS_FILE compiled once for each set of instructions, after vectors.h: with KERNEL (the set's attribute, on every
// function), LEVEL (its number) and LANES (floats of a vector). levels.h says how to use it. Include standard headers first.
//
// With ONLY_LEVEL, a number, only that set is compiled, for arithmetic so much that
// each set has a compilation of its own (build.py).

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "bfloat16.h"
#include "float16.h"
#include "levels.h"

#ifdef __x86_64__
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

#if !defined(ONLY_LEVEL) || ONLY_LEVEL == 0
// What every processor of the architecture can: SSE2, or NEON.
namespace baseline {
#define KERNEL
#define LEVEL 0
#define LANES 4
#include "vectors.h"
#include KERNELS_FILE
#undef KERNEL
#undef LEVEL
#undef LANES
}  // namespace baseline
#endif

#ifdef __x86_64__
#if !defined(ONLY_LEVEL) || ONLY_LEVEL == 1
namespace avx2 {
#define KERNEL __attribute__((target("avx2,fma,f16c")))
#define LEVEL 1
#define LANES 8
#include "vectors.h"
#include KERNELS_FILE
#undef KERNEL
#undef LEVEL
#undef LANES
}  // namespace avx2
#endif

#if !defined(ONLY_LEVEL) || ONLY_LEVEL == 2
namespace avx512 {
#define KERNEL __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl" WHOLE_VECTORS)))
#define LEVEL 2
#define LANES 16
#include "vectors.h"
#include KERNELS_FILE
#undef KERNEL
#undef LEVEL
#undef LANES
}  // namespace avx512
#endif
#endif

#ifndef ONLY_LEVEL
const Kernels& kernels_of(int level) {
#ifdef __x86_64__
    if (level >= 2) return avx512::kernels;
    if (level == 1) return avx2::kernels;
#endif
    (void)level;
    return baseline::kernels;
}
#endif

}  // namespace
