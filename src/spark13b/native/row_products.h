// Products of rows as they lie: those of a decode step, of few rows, and of any number of rows where int8 and int4 weights are
// multiplied by whole numbers. Weights are read from memory once for all rows.
//
// For whole numbers (VNNI, SDOT) rows are rounded first, once for all products that read them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <new>
#include <vector>

#include "arithmetic.h"
#include "levels.h"
#include "memory.h"
#include "pool.h"
#include "weights.h"

namespace row_products {

// Whether an int8 or int4 matrix is multiplied by whole numbers. `whole_numbers`: the caller's wish.
inline bool by_whole_numbers(int level, bool whole_numbers) { return whole_numbers && has_whole_numbers(level); }

// One product and its pieces of work: outputs whose weights are 128 KB, which a core reads in about 10 us, in whole strips; of
// many rows, which take longer, at most 64 outputs.
struct Product {
    const Matrix& w;
    const float* bias;
    int64_t outputs, size, count;

    Product(const Matrix& w, const float* bias, int64_t rows, int64_t inputs) : w(w), bias(bias), outputs(w.outputs) {
        const int64_t usual = (int64_t{1} << 20) / (inputs * bits_of(w.type)), least = outputs >> 19;
        size = (std::max(rows > kRoundedRows ? std::min(usual, 3 * kStrip) : usual, least) / kStrip + 1) * kStrip;
        count = (outputs + size - 1) / size;
    }

    int64_t begin(int64_t piece) const { return piece * size; }
    int64_t end(int64_t piece) const { return std::min(outputs, (piece + 1) * size); }
};

// work(row, worker) for all rows.
template <class Work>
void each(Pool::Turn& pool, int64_t rows, const Work& work) {
    if (rows > 2) return pool.share(rows, work);
    for (int64_t row = 0; row < rows; ++row) work(row, 0);  // faster than to share them
}

// Rows that products read: as they are and, with whole numbers, rounded for each group that their weights have.
class Inputs {
  public:
    // Up to `rows` rows of up to `most` numbers. Throws std::bad_alloc.
    Inputs(Pool::Turn& pool, int level, bool whole_numbers, int64_t rows, int64_t most)
        : pool_(pool),
          run_(arithmetic(level)),
          whole_(by_whole_numbers(level, whole_numbers)),
          tiles_(whole_ && level >= kTileLevel && has_byte_tiles()) {
        if (!whole_) return;
        static KeptMemory memory;  // of who has the pool
        room_ = (rows * rounded_size(most, kLeast) + 127) / 64 * 64;
        char* rounded = memory.of(kKinds * room_);
        if (!rounded) throw std::bad_alloc();
        memory_ = reinterpret_cast<int8_t*>(rounded);
    }

    // From here on: x (rows, in), of products with the matrices `of`.
    void take(const float* x, int64_t rows, int64_t in, const std::vector<const Matrix*>& of) {
        x_ = x;
        rows_ = rows;
        in_ = in;
        bool rounded[kKinds] = {};
        for (const Matrix* w : of) {
            if (!whole_ || w->group == 0 || rounded[kind(*w)]) continue;
            rounded[kind(*w)] = true;
            int8_t* to = rounded_of(*w);
            const auto round = [&](int64_t row, int) { run_.round_row(x + row * in, row, rows, in, w->group, to); };
            each(pool_, rows, round);
        }
    }

    // The outputs `begin` to `end` of a product with one of them.
    void multiply(const Product& of, bool adds, float* y, int64_t begin, int64_t end) const {
        if (!whole_ || of.w.group == 0) {
            run_.linear(of.w, of.bias, x_, rows_, in_, adds, y, of.outputs, begin, end);
            return;
        }
        const auto linear = tiles_ && rows_ >= kTileRows ? run_.linear_by_tiles : run_.linear_of_rounded;
        linear(of.w, of.bias, rounded_of(of.w), rows_, in_, adds, y, of.outputs, begin, end);
    }

  private:
    static constexpr int kKinds = 3, kLeast = 32;  // groups are 32, 64 and 128
    static constexpr int64_t kTileRows = 5;        // fewer take as long by vectors, whose rate is steadier

    static int kind(const Matrix& w) { return w.group / 64; }
    int8_t* rounded_of(const Matrix& w) const { return memory_ + kind(w) * room_; }

    Pool::Turn& pool_;
    const Arithmetic& run_;
    const bool whole_, tiles_;
    int64_t room_ = 0;
    int8_t* memory_ = nullptr;
    const float* x_ = nullptr;
    int64_t rows_ = 0, in_ = 0;
};

// to (rows, outputs) = or += the rows that `inputs` have taken, by one matrix.
inline void multiply(Pool::Turn& pool, const Inputs& inputs, const Product& of, bool adds, float* to) {
    pool.share(of.count, [&](int64_t piece, int) { inputs.multiply(of, adds, to, of.begin(piece), of.end(piece)); });
}

}  // namespace row_products
