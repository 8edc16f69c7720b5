#include "products.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <vector>

#include "levels.h"
#include "model.h"

namespace {

constexpr int64_t kPacked = 48 << 20;  // bytes of packed rows at once, but always those of one part

// Kept from call to call: one caller at a time has the pool, and with it this.
char* memory_of(int64_t size) {
    static char* memory = nullptr;
    static int64_t available = 0;
    if (size > available) {
        std::free(memory);
        available = (size + 4095) / 4096 * 4096;
        memory = static_cast<char*>(std::aligned_alloc(4096, available));
        if (!memory) {
            available = 0;
            throw std::bad_alloc();
        }
    }
    return memory;
}

bool same_rows(const Multiplication& one, const Multiplication& other) {
    const Product::Shape &a = one.product->shape(), &b = other.product->shape();
    return one.a == other.a && a.rows == b.rows && a.depth == b.depth && a.a.type == b.a.type && a.a.row == b.a.row &&
           a.a.column == b.a.column && one.product->row_size() == other.product->row_size();
}

// The parts of rows of one multiplication that are computed in a round, and where they lie packed.
struct Share {
    int64_t first_part, parts;
    char* packed;
    bool packs;  // the first with these rows
    int64_t pieces, groups;
};

}  // namespace

Product::Piece Product::piece(int64_t row_part, int64_t column_part) const {
    const int64_t row = row_part * row_size_, column = column_part * column_size_;
    return {row, std::min(row_size_, shape_.rows - row), column, std::min(column_size_, shape_.columns - column)};
}

const Product* Product::plan(const Shape& shape, int level) {
    using Key = std::array<int64_t, 15>;
    static std::map<Key, std::unique_ptr<Product>>* plans = new std::map<Key, std::unique_ptr<Product>>;
    static std::mutex lock;
    const bool tiles = level >= kTileLevel;
    const Key key{shape.rows,  shape.columns,  shape.depth,  shape.a.type, shape.a.row,    shape.a.column, shape.b.type,
                  shape.b.row, shape.b.column, shape.c.type, shape.c.row,  shape.c.column, shape.bias,     shape.adds,
                  tiles};
    const std::lock_guard<std::mutex> guard(lock);
    const auto known = plans->find(key);
    if (known != plans->end()) return known->second.get();
    std::unique_ptr<Product> made = tiles ? tile_product(shape) : nullptr;
    if (!made) made = onednn_product(shape);
    if (!made) return nullptr;  // oneDNN may be opened later
    return plans->emplace(key, std::move(made)).first->second.get();
}

bool multiply(Pool::Turn& pool, const Multiplication* all, int64_t count, const Columns& columns) {
    std::vector<Share> shares(count);
    std::atomic<bool> good{true};
    for (bool more = true; more;) {
        more = false;
        int64_t bytes = 0, pieces = 0, groups = 0;
        for (int64_t i = 0; i < count; ++i) {
            const Product& product = *all[i].product;
            Share& share = shares[i];
            share.first_part += share.parts;
            const int64_t part_bytes = product.packed_bytes(product.row_size());
            share.parts = std::min(product.row_parts() - share.first_part,
                                   part_bytes ? std::max<int64_t>(1, kPacked / part_bytes) : product.row_parts());
            more |= share.first_part + share.parts < product.row_parts();
            share.pieces = share.parts * product.column_parts();
            pieces += share.pieces;
            share.packs = part_bytes > 0;
            for (int64_t j = 0; j < i; ++j) share.packs &= !same_rows(all[j], all[i]);
            const int64_t last_row = std::min(product.shape().rows, (share.first_part + share.parts) * product.row_size());
            share.groups = !share.packs ? 0 : (last_row - share.first_part * product.row_size() + Product::kPackedRows - 1) / Product::kPackedRows;
            groups += share.groups;
            bytes += share.packs ? share.parts * part_bytes : 0;
        }
        char* packed = memory_of(bytes);
        for (int64_t i = 0; i < count; ++i) {
            shares[i].packed = packed;
            if (shares[i].packs) packed += shares[i].parts * all[i].product->packed_bytes(all[i].product->row_size());
            for (int64_t j = 0; j < i; ++j)
                if (same_rows(all[j], all[i])) shares[i].packed = shares[j].packed;
        }
        pool.share(groups, [&](int64_t group, int) {
            int64_t i = 0;
            while (group >= shares[i].groups) group -= shares[i++].groups;
            const Product& product = *all[i].product;
            const int64_t row = shares[i].first_part * product.row_size() + group * Product::kPackedRows;
            product.pack(product.shape().a.at(all[i].a, row, 0),
                         std::min(Product::kPackedRows, product.shape().rows - row),
                         shares[i].packed + product.packed_bytes(group * Product::kPackedRows));
        });
        pool.share(pieces, [&](int64_t number, int worker) {
            int64_t i = 0;
            while (number >= shares[i].pieces) number -= shares[i++].pieces;
            const Multiplication& one = all[i];
            const Product& product = *one.product;
            const int64_t part = number / product.column_parts();
            const Product::Piece piece =
                product.piece(shares[i].first_part + part, number % product.column_parts());
            const int64_t packed_part = product.packed_bytes(product.row_size());
            const void* a = packed_part ? shares[i].packed + part * packed_part
                                        : product.shape().a.at(one.a, piece.row, 0);
            const void* b = columns ? columns(i, piece, worker) : product.shape().b.at(one.b, 0, piece.column);
            if (!product.run(piece, a, b, one.bias, one.c)) good.store(false, std::memory_order_relaxed);
        });
    }
    return good;
}

extern "C" {

EXPORTED int spark_open_onednn(const char* path) { return open_onednn(path); }

// One product, for tests and measurements. `numbers`: rows, columns, depth; type, row and column of A, B and C; bias or
// not, adds or not. -> 0, 1 when nobody can compute it, 2 when that fails, 3 when there is no memory.
EXPORTED int spark_multiply(const int64_t* numbers, const void* a, const void* b, const float* bias, void* c,
                            int threads, int level) {
    const auto layout = [&](int first) {
        return Layout{static_cast<int32_t>(numbers[first]), numbers[first + 1], numbers[first + 2]};
    };
    const Product* product = Product::plan(
        {numbers[0], numbers[1], numbers[2], layout(3), layout(6), layout(9), numbers[12] != 0, numbers[13] != 0},
        level);
    if (!product) return 1;
    const Multiplication one{product, a, b, bias, c};
    Pool::Turn pool(Pool::of_process(), threads);
    try {
        return multiply(pool, &one, 1) ? 0 : 2;
    } catch (const std::bad_alloc&) {
        return 3;
    }
}

}  // extern "C"
