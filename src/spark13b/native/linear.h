// A linear layer of a training step, y = x W^T + bias, and the gradients of what is trained of it: W itself, or a
// low-rank adapter beside it, y += (x A^T scale) B^T as in model/adapter.py. (A bias's gradient is no product.)
#pragma once

#include <cstdint>
#include <vector>

#include "pool.h"
#include "products.h"

// All but the bias is in the products' type.
struct Linear {
    int64_t outputs, inputs;
    const void* weights;  // (outputs, inputs)
    const float* bias;
    int64_t rank;                     // of its adapter; 0: it has none, and nothing of what follows
    const void *a, *b;                // (rank, inputs), (outputs, rank)
    const void *scaled_a, *scaled_b;  // times the adapter's scale
    void *low, *low_change;           // (N, rank): x A^T scale, which `forward` leaves, and dy B scale, `backward`
};

class Failure {};  // of a product

// Products over N rows, one stated after the other, computed in rounds: each as soon as what it reads is there and what it
// adds to. None may overwrite what one before it in the same run reads. Throws Failure and std::bad_alloc.
class Rounds {
  public:
    Rounds(Pool::Turn& pool, int level, int64_t rows, int32_t type)
        : pool_(pool), level_(level), rows_(rows), type_(type) {}

    // x (N, inputs) -> y (N, outputs) of y_type, in place of what is there or added to it. Without y only `low`.
    // `adapted`: what the adapter gets in place of x.
    void forward(const Linear& layer, const void* x, void* y, int32_t y_type, bool adds, const void* adapted = nullptr);

    // dy -> dx, the gradient of x, likewise. Without dx only `low_change`. `adapted`: (N, inputs) float32 that get what
    // comes through the adapter, in place of dx.
    void backward(const Linear& layer, const void* dy, void* dx, int32_t dx_type, bool adds, float* adapted = nullptr);

    // x and dy -> the gradients that are not null: of W, A and B. Stated behind `backward`. `adapted`: see `forward`.
    void gradients(const Linear& layer, const void* x, const void* dy, float* dweights, float* da, float* db,
                   const void* adapted = nullptr);

    void add(const Product::Shape& shape, const void* a, const void* b, const float* bias, void* c);

    // Compute all that has been stated.
    void run();

  private:
    // The first round behind those that write there.
    size_t after(const void* data) const;

    Layout rows_of(int64_t width) const { return {type_, width, 1}; }
    Layout columns_of(int64_t width) const { return {type_, 1, width}; }  // transposed

    Pool::Turn& pool_;
    const int level_;
    const int64_t rows_;
    const int32_t type_;
    std::vector<std::vector<Multiplication>> rounds_;
};
