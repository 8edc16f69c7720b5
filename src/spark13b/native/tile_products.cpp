// Products by AMX (tiles.h): of float32, with the precision of float32, or of bfloat16.
//
// The rows of A are packed once for all pieces. A piece goes through the depth in parts: it packs that part of its columns
// of B, and multiplies all its rows with it. What is packed of B stays in the second cache; sums do, too, or are written
// at once where there is one part only.

#include <algorithm>
#include <memory>

#include "memory.h"
#include "products.h"
#include "tiles.h"

#ifdef SPARK13B_TILES

namespace {

using tiles::kSide;

thread_local KeptMemory own;

// A square's sums += those of another part of the depth.
TILES void add(const float* from, float* sums) {
    for (int64_t i = 0; i < kSide * kSide; i += 16)
        _mm512_store_ps(sums + i, _mm512_add_ps(_mm512_load_ps(sums + i), _mm512_load_ps(from + i)));
}

// `rows` x `columns` <= 32 x 32 sums -> C, with what is to be added.
template <class Element>
TILES void write(const float* sums, int64_t rows, int64_t columns, const float* bias, bool adds, Element* c, int64_t c_row) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t j = 0; j < columns; j += 16) {
            const __mmask16 some = tiles::first_of(columns - j);
            __m512 sum = _mm512_load_ps(sums + r * kSide + j);
            if (bias) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(some, bias + j));
            Element* to = c + r * c_row + j;
            if (adds) sum = _mm512_add_ps(sum, tiles::load(to, columns - j));
            if constexpr (sizeof(Element) == 4)
                _mm512_mask_storeu_ps(to, some, sum);
            else
                _mm256_mask_storeu_epi16(to, some, (__m256i)_mm512_cvtneps_pbh(sum));
        }
}

// PARTS of a number, Element of A and B.
template <int PARTS, class Element>
class TileProduct final : public Product {
  public:
    explicit TileProduct(const Shape& shape)
        : Product(shape, divided(shape.rows, 512, kSide),
                  divided(shape.columns, std::clamp<int64_t>(shape.columns / 4, 64, 256), kSide)) {}

    int64_t packed_bytes(int64_t rows) const override {
        return tiles::steps_of(rows) * tiles::steps_of(shape().depth) * tiles::step_bytes(PARTS);
    }

    int64_t packed_rows() const override { return kSide; }

    void pack(const void* a, int64_t rows, void* to) const override {
        const tiles::Operand<Element> operand{static_cast<const Element*>(a), shape().a.row, shape().a.column};
        tiles::pack_panel<PARTS, false>(operand, rows, shape().depth, static_cast<char*>(to));
    }

    bool run(const Piece& piece, const void* a, const void* b, const float* bias, void* c) const override {
        return shape().c.type == kFloat32 ? run(piece, a, b, bias, static_cast<float*>(c))
                                          : run(piece, a, b, bias, static_cast<uint16_t*>(c));
    }

  private:
    static constexpr int64_t kStep = tiles::step_bytes(PARTS);
    static constexpr int64_t kSteps = PARTS == 3 ? 8 : 24;  // of the depth at once
    static constexpr int64_t kSquare = kSide * kSide;

    template <class Number>
    bool run(const Piece& piece, const void* a, const void* b, const float* bias, Number* c) const {
        const int64_t steps = tiles::steps_of(shape().depth);
        const int64_t rows = tiles::steps_of(piece.rows), columns = tiles::steps_of(piece.columns);
        const bool once = steps <= kSteps;
        const size_t panels = columns * std::min(steps, kSteps) * kStep;
        const size_t squares = (1 + (once ? 0 : rows * columns)) * kSquare * sizeof(float);
        char* packed = own.of(panels + squares);
        if (!packed) return false;
        auto* here = reinterpret_cast<float*>(packed + panels);
        float* sums = here + kSquare;
        const tiles::Operand<Element> right{static_cast<const Element*>(b), shape().b.column, shape().b.row};
        const tiles::Turn turn;
        for (int64_t first = 0; first < steps; first += kSteps) {
            const int64_t some = std::min(kSteps, steps - first);
            for (int64_t j = 0; j < columns; ++j)
                tiles::pack_panel<PARTS, true>(
                    tiles::Operand<Element>{right.data + j * kSide * right.row + first * kSide * right.depth, right.row,
                                            right.depth},
                    piece.columns - j * kSide, std::min(some * kSide, shape().depth - first * kSide),
                    packed + j * some * kStep);
            for (int64_t i = 0; i < rows; ++i) {
                const char* left = static_cast<const char*>(a) + (i * steps + first) * kStep;
                for (int64_t j = 0; j < columns; ++j) {
                    // each part's sums begin at 0: what is small is not lost beside what was added before
                    float* square = once ? here : sums + (i * columns + j) * kSquare;
                    tiles::multiply<PARTS>(left, packed + j * some * kStep, some, false, first == 0 ? square : here);
                    if (first > 0) add(here, square);
                    if (first + some < steps) continue;
                    write(square, std::min(kSide, piece.rows - i * kSide), std::min(kSide, piece.columns - j * kSide),
                          bias ? bias + piece.column + j * kSide : nullptr, shape().adds,
                          c + (piece.row + i * kSide) * shape().c.row + piece.column + j * kSide, shape().c.row);
                }
            }
        }
        return true;
    }
};

}  // namespace

std::unique_ptr<Product> tile_product(const Product::Shape& shape) {
    if (shape.c.column != 1 || shape.a.type != shape.b.type) return nullptr;
    if (shape.a.type == kBfloat16) return std::make_unique<TileProduct<1, uint16_t>>(shape);
    return std::make_unique<TileProduct<3, float>>(shape);
}

#else

std::unique_ptr<Product> tile_product(const Product::Shape&) { return nullptr; }

#endif
