// Clipping by the global norm and AdamW, in two passes over the gradients and one over everything else.
#pragma once

#include <cstdint>
#include <vector>

#include "pool.h"

struct AdamNumbers {
    float rate, factor, beta1, beta2, epsilon;  // rate: corrected for the moments' begin; gradients count times `factor`
};

// Parameters with their moments and gradients, `count` numbers each.
struct Updated {
    float *parameter, *m, *v;
    const float* gradient;
    int64_t count;
    bool decays;
};

// The norm of all gradients.
double norm_of(Pool::Turn& pool, int level, const std::vector<Updated>& all);

// m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2, p = p (1 - rate decay) - rate m / (sqrt(v) + epsilon), in place.
void update_weights(Pool::Turn& pool, int level, const std::vector<Updated>& all, const AdamNumbers& numbers, float decay);
