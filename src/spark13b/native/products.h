// Products of many rows, in pieces of the result, each computed by one thread of ours: the same bits for any number of them.
//
// Three can compute them: AMX, by tiles.h (tile_products.cpp); vectors, in float32 (vector_products.cpp); and oneDNN, from
// the library that MindSpore brings (onednn_products.cpp). oneDNN's own threads are not used: who has nothing to do takes
// the next piece, where oneDNN's threads get equal parts and wait for the slowest.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "pool.h"
#include "weights.h"

// How a matrix lies in memory: its type, and the elements from a row to the next and from a column to the next, of which one is
// 1. kFloat32 or kBfloat16; B also kFloat16, and either of 16 bits beside an A of float32.
struct Layout {
    int32_t type;
    int64_t row, column;

    int64_t bytes() const { return bytes_of(type); }
    const void* at(const void* data, int64_t r, int64_t c) const {
        return static_cast<const char*>(data) + (r * row + c * column) * bytes();
    }
    void* at(void* data, int64_t r, int64_t c) const {
        return const_cast<void*>(at(static_cast<const void*>(data), r, c));
    }
};

// C (rows, columns) = A (rows, depth) B (depth, columns), with a bias (columns,) or not, in place of what is in C or added
// to it. Plan it in one thread, run its pieces in any; a plan lives as long as the process.
class Product {
  public:
    struct Shape {
        int64_t rows, columns, depth;
        Layout a, b, c;
        bool bias, adds;
    };
    struct Piece {
        int64_t row, rows, column, columns;
    };

    // Null when nobody can compute it at that level (levels.h).
    static const Product* plan(const Shape& shape, int level);

    virtual ~Product() = default;
    Product(const Product&) = delete;
    Product& operator=(const Product&) = delete;

    const Shape& shape() const { return shape_; }
    int64_t row_parts() const { return (shape_.rows + row_size_ - 1) / row_size_; }
    int64_t column_parts() const { return (shape_.columns + column_size_ - 1) / column_size_; }
    int64_t row_size() const { return row_size_; }        // rows of all parts but the last
    int64_t column_size() const { return column_size_; }  // columns, likewise
    Piece piece(int64_t row_part, int64_t column_part) const;

    // A piece. `a` begins with its first row, packed or as it lies (see below), `b` with its first column; `bias` and `c`
    // are whole. -> false on failure.
    virtual bool run(const Piece& piece, const void* a, const void* b, const float* bias, void* c) const = 0;

    // A product whose left factor is packed before: bytes of so many rows; 0 where it is taken as it lies.
    virtual int64_t packed_bytes(int64_t) const { return 0; }
    // Pack `rows` rows of A, up to packed_rows(), the first of which is a multiple of those away from its part's first.
    virtual void pack(const void*, int64_t, void*) const {}
    virtual int64_t packed_rows() const { return 1; }

  protected:
    Product(const Shape& shape, int64_t row_size, int64_t column_size)
        : shape_(shape), row_size_(row_size), column_size_(column_size) {}

    // The size of parts that are alike, at most `most` up to the next multiple of `step`.
    static int64_t divided(int64_t count, int64_t most, int64_t step) {
        const int64_t parts = (count + most - 1) / most, size = (count + parts - 1) / parts;
        return (size + step - 1) / step * step;
    }

  private:
    const Shape shape_;
    const int64_t row_size_, column_size_;
};

struct Multiplication {
    const Product* product;
    const void *a, *b;
    const float* bias;
    void* c;
};

// Where columns of B lie that are made only when they are needed: (which multiplication, piece, worker) -> the first one.
using Columns = std::function<const void*(int64_t, const Product::Piece&, int)>;

// Products that do not need each other's results. -> false when one fails. Throws std::bad_alloc.
bool multiply(Pool::Turn& pool, const Multiplication* all, int64_t count, const Columns& columns = nullptr);

// The three that can. Null when they cannot, or refuse.
std::unique_ptr<Product> tile_product(const Product::Shape& shape);
std::unique_ptr<Product> vector_product(const Product::Shape& shape, int level);
std::unique_ptr<Product> onednn_product(const Product::Shape& shape);

// Use the oneDNN at `path` -> its version, major * 100 + minor, or 0 when it cannot be used; the first that can stays.
int open_onednn(const char* path);
