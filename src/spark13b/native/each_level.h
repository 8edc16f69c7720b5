// KERNELS_FILE compiled once for each set of instructions, after vectors.h: with KERNEL (the set's attribute, on every
// function), LEVEL (its number) and LANES (floats of a vector). levels.h says how to use it. Include standard headers first.

#include <algorithm>
#include <cstdint>
#include <cstring>

#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace {

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

#ifdef __x86_64__
namespace avx2 {
#define KERNEL __attribute__((target("avx2,fma")))
#define LEVEL 1
#define LANES 8
#include "vectors.h"
#include KERNELS_FILE
#undef KERNEL
#undef LEVEL
#undef LANES
}  // namespace avx2

namespace avx512 {
#define KERNEL __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")))
#define LEVEL 2
#define LANES 16
#include "vectors.h"
#include KERNELS_FILE
#undef KERNEL
#undef LEVEL
#undef LANES
}  // namespace avx512
#endif

const Kernels& kernels_of(int level) {
#ifdef __x86_64__
    if (level >= 2) return avx512::kernels;
    if (level == 1) return avx2::kernels;
#endif
    (void)level;
    return baseline::kernels;
}

}  // namespace
