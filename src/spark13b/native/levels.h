// Sets of instructions. A source file that has arithmetic of its own names that file and its table of functions,
//
//     struct Kernels { void (*linear)(...); ... };
//     #define KERNELS_FILE "kernels.h"        // ends with: static const Kernels kernels = {linear, ...};
//     #include "each_level.h"
//
// and calls it as kernels_of(level).linear(...).
#pragma once

// The best set of instructions here: 0 baseline, 1 AVX2, 2 AVX-512.
inline int best_level() {
#ifdef __x86_64__
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
    return 0;
}

// Whether a processor with AVX-512 has its instructions for products of bytes, too.
inline bool has_vnni() {
#ifdef __x86_64__
    return best_level() >= 2 && __builtin_cpu_supports("avx512vnni");
#else
    return false;
#endif
}
