// Products of float32 by vectors (vector_product_kernels.h), in the way of Goto and van de Geijn ("Anatomy of
// high-performance matrix multiplication", 2008). B may have 16 bits, and is widened where it is packed.
//
// A is packed before, once for all pieces. A piece goes through the depth in parts, and through its columns a panel at a
// time: the panel of B is packed, and stays in the first cache while all rows of that part of A pass, which stay in the
// second, as do the sums. Those lie a tile behind the other until the last part of the depth: in C a tile's rows are often
// a multiple of 4 KB apart, and take each other's place in the caches. Memory is asked for what comes next: the next panel
// of A while a tile is computed, the next of B, line by line, while all tiles are.

#include <algorithm>
#include <memory>

#include "levels.h"
#include "memory.h"
#include "products.h"

namespace {

// A panel of B is 32 KB; a piece's part of A 384 KB, its sums 768 KB.
constexpr int64_t kDepth = 128, kRows = 768, kColumns = 256;
constexpr int64_t kPieces = 4;  // or more, where columns are enough for that

// How many numbers of a matrix there are from one row to the next and from one column to the next.
struct Strides {
    int64_t row, column;
};

// Where a panel's sums end: the first of its columns, with or without a bias, and added to what is there or not.
struct Result {
    float* c;
    int64_t row;
    const float* bias;
    bool adds;
};

// A panel of B before it is packed, runs of numbers that lie together: memory is asked for it while the one before is used.
struct Ahead {
    const char* first;
    int64_t row;  // bytes from one run to the next
    int64_t runs;
    int64_t length;  // bytes of a run
};

struct Kernels {
    int64_t tall, wide;  // rows of a panel of A, columns of one of B
    void (*pack_left)(const float* a, Strides strides, int64_t rows, int64_t depth, int64_t panel, float* to);
    void (*pack_right)(const void* b, const Layout& lies, int64_t columns, int64_t depth, float* to);
    // by whether A's rows lie one behind the other
    void (*multiply[2])(const float* left, int64_t panel, int64_t rows, const float* right, int64_t columns, int64_t depth,
                        bool adds, float* sums, const Result* result, Ahead ahead);
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
          part_(divided(shape.depth, kDepth, 1)),
          panel_((shape.depth + part_ - 1) / part_ * kDepth * kernels.tall) {}

    int64_t packed_bytes(int64_t rows) const override {
        return (rows + run_.tall - 1) / run_.tall * panel_ * sizeof(float);
    }

    int64_t packed_rows() const override { return 16 * run_.tall; }

    void pack(const void* a, int64_t rows, void* to) const override {
        const Layout& of_a = shape().a;
        for (int64_t first = 0, part = 0; first < shape().depth; first += part_, ++part)
            run_.pack_left(static_cast<const float*>(a) + first * of_a.column, {of_a.row, of_a.column}, rows,
                           std::min(part_, shape().depth - first), panel_,
                           static_cast<float*>(to) + part * kDepth * run_.tall);
    }

    bool run(const Piece& piece, const void* a, const void* b, const float* bias, void* c) const override {
        const int64_t rows = (piece.rows + run_.tall - 1) / run_.tall * run_.tall;
        const int64_t width = (piece.columns + run_.wide - 1) / run_.wide * run_.wide;
        auto* right = reinterpret_cast<float*>(own.of((kDepth * run_.wide + rows * width) * sizeof(float)));
        if (!right) return false;
        float* sums = right + kDepth * run_.wide;
        auto* left = static_cast<const float*>(a);
        const Layout& of_b = shape().b;
        const auto multiply = run_.multiply[shape().a.column == 1];
        for (int64_t first = 0; first < shape().depth; first += part_, left += kDepth * run_.tall) {
            const int64_t depth = std::min(part_, shape().depth - first);
            for (int64_t j = 0; j < piece.columns; j += run_.wide) {
                const int64_t columns = std::min(run_.wide, piece.columns - j), column = piece.column + j;
                run_.pack_right(of_b.at(b, first, j), of_b, columns, depth, right);
                const Result result{static_cast<float*>(c) + piece.row * shape().c.row + column, shape().c.row,
                                    bias ? bias + column : nullptr, shape().adds};
                multiply(left, panel_, piece.rows, right, columns, depth, first > 0, sums + j * rows,
                         first + depth == shape().depth ? &result : nullptr, ahead(piece, b, first, j + run_.wide));
            }
        }
        return true;
    }

  private:
    static int64_t columns_of(const Shape& shape, int64_t panel) {
        const int64_t row_parts = (shape.rows + kRows - 1) / kRows, parts = (kPieces + row_parts - 1) / row_parts;
        return divided(shape.columns, std::clamp((shape.columns + parts - 1) / parts, 2 * panel, kColumns), panel);
    }

    // The panel that begins at that depth and column of the piece, or the one after the last of its depths.
    Ahead ahead(const Piece& piece, const void* b, int64_t first, int64_t j) const {
        if (j >= piece.columns) {
            j = 0;
            first += part_;
        }
        const Layout& of_b = shape().b;
        const int64_t columns = std::min(run_.wide, piece.columns - j), depth = std::min(part_, shape().depth - first);
        if (depth <= 0) return {nullptr, 0, 0, 0};
        const auto* at = static_cast<const char*>(of_b.at(b, first, j));
        const int64_t bytes = of_b.bytes();
        return of_b.column == 1 ? Ahead{at, of_b.row * bytes, depth, columns * bytes}
                                : Ahead{at, of_b.column * bytes, columns, depth * bytes};
    }

    const Kernels& run_;
    const int64_t part_;   // of the depth
    const int64_t panel_;  // numbers of a panel of A
};

}  // namespace

std::unique_ptr<Product> vector_product(const Product::Shape& shape, int level) {
    if (shape.a.type != kFloat32 || shape.c.type != kFloat32 || shape.c.column != 1) return nullptr;
    return std::make_unique<VectorProduct>(shape, kernels_of(level));
}
