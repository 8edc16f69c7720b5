#include "products.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <map>
#include <mutex>
#include <new>
#include <vector>

#include "levels.h"
#include "memory.h"
#include "model.h"

namespace {

constexpr int64_t kPacked = 48 << 20;  // bytes of packed rows at once, but always those of one part

bool same_rows(const Multiplication& one, const Multiplication& other) {
    const Product::Shape &a = one.product->shape(), &b = other.product->shape();
    return one.a == other.a && a.rows == b.rows && a.depth == b.depth && a.a.type == b.a.type && a.a.row == b.a.row &&
           a.a.column == b.a.column && one.product->row_size() == other.product->row_size();
}

// Row parts of a multiplication that are computed in a round, and where their rows lie packed.
struct Share {
    const Multiplication& of;
    int64_t packer;  // the first multiplication of the same rows: it packs them for all
    int64_t part = 0, parts = 0;
    char* packed = nullptr;

    const Product& product() const { return *of.product; }
    int64_t part_bytes() const { return product().packed_bytes(product().row_size()); }
    int64_t first_row() const { return part * product().row_size(); }
    int64_t end_row() const { return std::min(product().shape().rows, (part + parts) * product().row_size()); }
    int64_t pieces() const { return parts * product().column_parts(); }

    // Rows are packed in groups.
    int64_t groups() const {
        return (end_row() - first_row() + product().packed_rows() - 1) / product().packed_rows();
    }

    // Go on to the next parts. -> false when there is none
    bool next() {
        part += parts;
        const int64_t most = part_bytes() ? std::max<int64_t>(1, kPacked / part_bytes()) : product().row_parts();
        parts = std::min(most, product().row_parts() - part);
        return parts > 0;
    }

    void pack(int64_t group) const {
        const int64_t most = product().packed_rows(), rows = group * most, row = first_row() + rows;
        product().pack(product().shape().a.at(of.a, row, 0), std::min(most, end_row() - row),
                       packed + product().packed_bytes(rows));
    }

    bool run(int64_t number, const Columns& columns, int64_t which, int worker) const {
        const int64_t in_round = number / product().column_parts();
        const Product::Piece piece = product().piece(part + in_round, number % product().column_parts());
        const void* a = packed ? packed + in_round * part_bytes() : product().shape().a.at(of.a, piece.row, 0);
        const void* b = columns ? columns(which, piece, worker) : product().shape().b.at(of.b, 0, piece.column);
        return product().run(piece, a, b, of.bias, of.c);
    }
};

// Units of several things one after the other: that of `number`, which becomes a number among its own.
template <class Count>
int64_t find_unit(int64_t& number, const Count& count) {
    int64_t which = 0;
    for (; number >= count(which); ++which) number -= count(which);
    return which;
}

}  // namespace

Product::Piece Product::piece(int64_t row_part, int64_t column_part) const {
    const int64_t row = row_part * row_size_, column = column_part * column_size_;
    return {row, std::min(row_size_, shape_.rows - row), column, std::min(column_size_, shape_.columns - column)};
}

const Product* Product::plan(const Shape& shape, int level) {
    using Key = std::array<int64_t, 15>;
    static std::map<Key, std::unique_ptr<Product>>* plans = new std::map<Key, std::unique_ptr<Product>>;
    static std::mutex lock;
    const bool tiles = level >= (shape.a.type == kBfloat16 ? kTileLevel : kFloatTileLevel);
    const Key key{shape.rows,  shape.columns,  shape.depth,  shape.a.type, shape.a.row,    shape.a.column, shape.b.type,
                  shape.b.row, shape.b.column, shape.c.type, shape.c.row,  shape.c.column, shape.bias,     shape.adds,
                  level};
    const std::lock_guard<std::mutex> guard(lock);
    const auto known = plans->find(key);
    if (known != plans->end()) return known->second.get();
    // Packing would cost more than it saves for so few rows, which oneDNN multiplies as they lie.
    const bool few = shape.rows < 64;
    if (shape.a.type != shape.b.type && (few || tiles)) return nullptr;  // only vectors widen
    std::unique_ptr<Product> made = few ? onednn_product(shape) : nullptr;
    if (!made && tiles) made = tile_product(shape);
    if (!made) made = vector_product(shape, level);
    if (!made && !few) made = onednn_product(shape);
    if (!made) return nullptr;  // oneDNN may be opened later
    return plans->emplace(key, std::move(made)).first->second.get();
}

bool multiply(Pool::Turn& pool, const Multiplication* all, int64_t count, const Columns& columns) {
    static KeptMemory* memory = new KeptMemory;  // one caller at a time has the pool, and with it this
    std::vector<Share> shares;
    for (int64_t i = 0; i < count; ++i) {
        int64_t packer = 0;
        while (packer < i && !same_rows(all[packer], all[i])) ++packer;
        shares.push_back({all[i], packer});
    }
    const auto groups_of = [&](int64_t i) {
        return shares[i].packed && shares[i].packer == i ? shares[i].groups() : int64_t{0};
    };
    const auto pieces_of = [&](int64_t i) { return shares[i].pieces(); };
    std::atomic<bool> good{true};
    for (;;) {
        bool more = false;
        int64_t bytes = 0, groups = 0, pieces = 0;
        for (Share& share : shares) more |= share.next();
        if (!more) return good;
        for (int64_t i = 0; i < count; ++i)
            if (shares[i].packer == i) bytes += shares[i].parts * shares[i].part_bytes();
        char* packed = memory->of(bytes);
        if (bytes > 0 && !packed) throw std::bad_alloc();
        for (int64_t i = 0; i < count; ++i) {
            Share& share = shares[i];
            share.packed = share.packer < i ? shares[share.packer].packed : share.part_bytes() ? packed : nullptr;
            if (share.packer == i) packed += share.parts * share.part_bytes();
            groups += groups_of(i);
            pieces += share.pieces();
        }
        pool.share(groups, [&](int64_t group, int) {
            const int64_t i = find_unit(group, groups_of);
            shares[i].pack(group);
        });
        pool.share(pieces, [&](int64_t piece, int worker) {
            const int64_t i = find_unit(piece, pieces_of);
            if (!shares[i].run(piece, columns, i, worker)) good.store(false, std::memory_order_relaxed);
        });
    }
}

extern "C" {

EXPORTED int spark_open_onednn(const char* path) { return open_onednn(path); }

EXPORTED int64_t spark_packed_bytes() { return kPacked; }

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
