// The optimizer's passes over all parameters, in pieces that fit the second cache.

#include "optimizer.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "levels.h"

namespace {

struct Kernels {
    float (*squares)(const float* from, int64_t count);
    void (*adam)(float* p, float* m, float* v, const float* gradient, int64_t count, const AdamNumbers& numbers,
                 float decay);
};

}  // namespace

#define KERNELS_FILE "optimizer_kernels.h"
#include "each_level.h"

namespace {

constexpr int64_t kPart = 16384;

struct Part {
    const Updated* of;
    int64_t begin, count;
};

std::vector<Part> parts_of(const std::vector<Updated>& all) {
    std::vector<Part> parts;
    for (const Updated& one : all)
        for (int64_t begin = 0; begin < one.count; begin += kPart)
            parts.push_back({&one, begin, std::min(kPart, one.count - begin)});
    return parts;
}

// The pool counts pieces in 20 bits: parts in groups, where there are more.
template <class Work>
void share(Pool::Turn& pool, const std::vector<Part>& parts, const Work& work) {
    const int64_t count = static_cast<int64_t>(parts.size()), group = (count >> 19) + 1;
    pool.share((count + group - 1) / group, [&](int64_t piece, int) {
        for (int64_t at = piece * group; at < std::min(count, (piece + 1) * group); ++at) work(at);
    });
}

}  // namespace

double norm_of(Pool::Turn& pool, int level, const std::vector<Updated>& all) {
    const Kernels& run = kernels_of(level);
    const std::vector<Part> parts = parts_of(all);
    std::vector<float> sums(parts.size());
    share(pool, parts, [&](int64_t at) {
        sums[at] = run.squares(parts[at].of->gradient + parts[at].begin, parts[at].count);
    });
    double total = 0.0;
    for (const float sum : sums) total += sum;
    return std::sqrt(total);
}

void update_weights(Pool::Turn& pool, int level, const std::vector<Updated>& all, const AdamNumbers& numbers,
                    float decay) {
    const Kernels& run = kernels_of(level);
    const std::vector<Part> parts = parts_of(all);
    share(pool, parts, [&](int64_t at) {
        const auto& [of, begin, count] = parts[at];
        run.adam(of->parameter + begin, of->m + begin, of->v + begin, of->gradient + begin, count, numbers,
                 of->decays ? decay : 0.0f);
    });
}
