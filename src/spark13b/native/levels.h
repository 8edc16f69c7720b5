// Sets of instructions. A source file that has arithmetic of its own names that file and its table of functions,
//
//     struct Kernels { void (*linear)(...); ... };
//     #define KERNELS_FILE "kernels.h"        // ends with: static const Kernels kernels = {linear, ...};
//     #include "each_level.h"
//
// and calls it as kernels_of(level).linear(...).
#pragma once

// Of a function's target: vectors are 512 bits wide. clang takes their type at its word.
#ifdef __clang__
#define WHOLE_VECTORS ""
#else
#define WHOLE_VECTORS ",prefer-vector-width=512"
#endif

#ifdef __x86_64__
#include <cpuid.h>
#endif

#if defined(__x86_64__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define SPARK13B_AVX_VNNI  // the compiler knows it, and AMX
#ifdef __linux__
#define SPARK13B_TILES
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

#if defined(__aarch64__) && \
    (defined(__ARM_FEATURE_DOTPROD) || (defined(__clang__) ? __clang_major__ >= 17 : __GNUC__ >= 10))
#define SPARK13B_SDOT  // the compiler knows it
#ifdef __linux__
#include <sys/auxv.h>
#endif
#endif

// From these sets on tiles.h multiplies many rows of bfloat16, and of float32, too.
constexpr int kTileLevel = 3, kFloatTileLevel = 4;

#ifdef SPARK13B_TILES
// Whether the processor multiplies tiles of bfloat16, and Linux lets this process do so.
inline bool find_tiles() {
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a >> 5 & 1)) return false;                       // AVX512_BF16
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & 1) || !(d >> 24 & 1)) return false;  // AMX-BF16, -TILE
    constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, which threads to come inherit
    return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}
#endif

inline int find_level() {
#ifdef __x86_64__
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
#ifdef SPARK13B_TILES
        if (find_tiles()) return kFloatTileLevel;
#endif
        return 2;
    }
    unsigned a, b, c, d;
    const bool float16 = __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1);  // F16C
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && float16) return 1;
#endif
    return 0;
}

// The best set of instructions here: 0 baseline, 1 AVX2, 2 AVX-512; with AMX for products of many rows in bfloat16 3, and in
// float32, too, 4.
inline int best_level() {
    static const int found = find_level();
    return found;
}

// Whether a set of instructions has those for products of bytes here, too: VNNI, or aarch64's SDOT.
inline bool has_whole_numbers(int level) {
    if (level > best_level()) return false;
#ifdef __x86_64__
    if (level >= 2) return __builtin_cpu_supports("avx512vnni");
#ifdef SPARK13B_AVX_VNNI
    unsigned a, b, c, d;
    static const bool found = __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
    if (level == 1) return found;
#endif
#elif defined(SPARK13B_SDOT) && defined(__linux__)
    return getauxval(AT_HWCAP) >> 20 & 1;  // HWCAP_ASIMDDP
#elif defined(SPARK13B_SDOT) && defined(__APPLE__)
    return true;
#endif
    return false;
}

// Whether a processor with tiles of bfloat16 has tiles of bytes, too.
inline bool has_byte_tiles() {
#ifdef SPARK13B_TILES
    unsigned a, b, c, d;
    static const bool found = best_level() >= kTileLevel && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 25 & 1);
    return found;
#else
    return false;
#endif
}
