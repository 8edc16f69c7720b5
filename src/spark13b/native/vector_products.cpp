// Products of float32 by vectors (vector_product_kernels.h), in the way of Goto and van de Geijn ("Anatomy of
// high-performance matrix multiplication", 2008).
//
// A piece goes through the depth in parts. It packs that part of its rows of A, which then stays in the second cache, and
// goes through its columns a panel at a time: the panel of B is packed, and stays in the first cache while all rows pass.

#include <algorithm>
#include <memory>

#include "levels.h"
#include "memory.h"
#include "products.h"

namespace {

// A panel of B is 32 KB, a piece's part of A 192 KB.
constexpr int64_t kDepth = 128, kRows = 384, kColumns = 512;
constexpr int64_t kPieces = 4;  // or more, where columns are enough for that

// How many numbers of a matrix there are from one row to the next and from one column to the next.
struct Strides {
    int64_t row, column;
};

struct Kernels {
    int64_t tall, wide;  // rows of a panel of A, columns of one of B
    void (*pack_left)(const float* a, Strides strides, int64_t rows, int64_t depth, float* to);
    void (*pack_right)(const float* b, Strides strides, int64_t columns, int64_t depth, float* to);
    // by whether A's rows lie one behind the other
    void (*multiply[2])(const float* left, int64_t rows, const float* right, int64_t columns, int64_t depth,
                        const float* bias, bool adds, float* c, int64_t c_row);
};

}  // namespace

#define KERNELS_FILE "vector_product_kernels.h"
#include "each_level.h"

namespace {

thread_local KeptMemory own;

class VectorProduct final : public Product {
  public:
    VectorProduct(const Shape& shape, const Kernels& kernels)
        : Product(shape, divided(shape.rows, kRows, kernels.tall), columns_of(shape, kernels.wide)),
          run_(kernels),
          part_(divided(shape.depth, kDepth, 1)) {}

    bool run(const Piece& piece, const void* a, const void* b, const float* bias, void* c) const override {
        const int64_t rows = (piece.rows + run_.tall - 1) / run_.tall * run_.tall;
        auto* left = reinterpret_cast<float*>(own.of(kDepth * (rows + run_.wide) * sizeof(float)));
        if (!left) return false;
        float* right = left + kDepth * rows;
        const Layout &of_a = shape().a, &of_b = shape().b;
        const auto multiply = run_.multiply[of_a.column == 1];
        for (int64_t first = 0; first < shape().depth; first += part_) {
            const int64_t depth = std::min(part_, shape().depth - first);
            run_.pack_left(static_cast<const float*>(a) + first * of_a.column, {of_a.row, of_a.column}, piece.rows,
                           depth, left);
            for (int64_t j = 0; j < piece.columns; j += run_.wide) {
                const int64_t columns = std::min(run_.wide, piece.columns - j), column = piece.column + j;
                run_.pack_right(static_cast<const float*>(b) + first * of_b.row + j * of_b.column,
                                {of_b.row, of_b.column}, columns, depth, right);
                multiply(left, piece.rows, right, columns, depth, bias && first == 0 ? bias + column : nullptr,
                         shape().adds || first > 0, static_cast<float*>(c) + piece.row * shape().c.row + column,
                         shape().c.row);
            }
        }
        return true;
    }

  private:
    static int64_t columns_of(const Shape& shape, int64_t panel) {
        const int64_t row_parts = (shape.rows + kRows - 1) / kRows, parts = (kPieces + row_parts - 1) / row_parts;
        return divided(shape.columns, std::clamp((shape.columns + parts - 1) / parts, 2 * panel, kColumns), panel);
    }

    const Kernels& run_;
    const int64_t part_;
};

}  // namespace

std::unique_ptr<Product> vector_product(const Product::Shape& shape, int level) {
    if (shape.a.type != kFloat32 || shape.b.type != kFloat32 || shape.c.type != kFloat32 || shape.c.column != 1)
        return nullptr;
    return std::make_unique<VectorProduct>(shape, kernels_of(level));
}
