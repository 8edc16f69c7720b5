#include "products.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <tuple>

#include "model.h"
#include "onednn.h"
#include "pool.h"

namespace {

using onednn::Functions;

struct Found {
    Functions call;
    onednn::Engine* engine;
    int version;
};

std::mutex lock;  // of the two below
Found* found = nullptr;

template <class Function>
bool look_up(void* library, const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    return function != nullptr;
}

bool look_up_all(void* library, Functions& call) {
#define LOOK_UP(name) look_up(library, "dnnl_" #name, call.name)
    return LOOK_UP(version) && LOOK_UP(engine_create) && LOOK_UP(stream_create) &&
           LOOK_UP(memory_desc_create_with_strides) && LOOK_UP(memory_desc_destroy) && LOOK_UP(memory_desc_get_size) &&
           LOOK_UP(memory_create) && LOOK_UP(memory_destroy) && LOOK_UP(primitive_attr_create) &&
           LOOK_UP(primitive_attr_set_scratchpad_mode) && LOOK_UP(primitive_attr_set_post_ops) &&
           LOOK_UP(primitive_attr_destroy) && LOOK_UP(post_ops_create) && LOOK_UP(post_ops_append_sum) &&
           LOOK_UP(post_ops_destroy) && LOOK_UP(matmul_primitive_desc_create) && LOOK_UP(primitive_desc_query_md) &&
           LOOK_UP(primitive_desc_destroy) && LOOK_UP(primitive_create) && LOOK_UP(primitive_execute) &&
           LOOK_UP(threadpool_interop_set_max_concurrency) && LOOK_UP(threadpool_interop_get_max_concurrency);
#undef LOOK_UP
}

int type_of(int32_t type) { return type == kBfloat16 ? onednn::kBfloat16 : onednn::kFloat32; }

int64_t bytes_of(int32_t type) { return type == kBfloat16 ? 2 : 4; }

// Frees what a function of oneDNN made.
template <class Thing>
using Owned = std::unique_ptr<Thing, onednn::Status (*)(Thing*)>;

Owned<onednn::MemoryDesc> describe(int64_t rows, int64_t columns, const Layout& layout) {
    const int64_t sizes[2] = {rows, columns}, strides[2] = {layout.row, layout.column};
    onednn::MemoryDesc* made = nullptr;
    found->call.memory_desc_create_with_strides(&made, 2, sizes, type_of(layout.type), strides);
    return {made, found->call.memory_desc_destroy};
}

// What a thread needs to run pieces: its own stream, and memory for what the kernels put aside.
struct Thread {
    onednn::Stream* stream = nullptr;
    void* scratch = nullptr;
    size_t size = 0;

    ~Thread() { std::free(scratch); }

    bool ready(size_t needed) {
        if (!stream && found->call.stream_create(&stream, found->engine, onednn::kInOrder) != 0) return false;
        if (size >= needed) return true;
        std::free(scratch);
        size = (needed + 4095) / 4096 * 4096;
        scratch = std::aligned_alloc(4096, size);
        if (!scratch) size = 0;
        return scratch != nullptr;
    }
};

thread_local Thread own;

}  // namespace

int open_onednn(const char* path) {
    const std::lock_guard<std::mutex> guard(lock);
    if (found) return found->version;
    void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) return 0;
    auto candidate = std::make_unique<Found>();
    if (!look_up_all(library, candidate->call)) return 0;
    const onednn::Version* version = candidate->call.version();
    if (version->major != 3 || candidate->call.engine_create(&candidate->engine, onednn::kCpu, 0) != 0) return 0;
    candidate->version = version->major * 100 + version->minor;
    found = candidate.release();
    return found->version;
}

// A product of one piece's size, on one thread.
struct Product::Kernel {
    Owned<onednn::MemoryDesc> a{nullptr, nullptr}, b{nullptr, nullptr}, c{nullptr, nullptr}, bias{nullptr, nullptr};
    const onednn::MemoryDesc* scratch = nullptr;  // the primitive's
    size_t scratch_size = 0;
    onednn::Primitive* primitive = nullptr;

    bool make(const Shape& shape, int64_t rows, int64_t columns) {
        const Functions& call = found->call;
        a = describe(rows, shape.depth, shape.a);
        b = describe(shape.depth, columns, shape.b);
        c = describe(rows, columns, shape.c);
        bias = {nullptr, call.memory_desc_destroy};
        if (shape.bias) bias = describe(1, columns, {kFloat32, columns, 1});
        onednn::Attributes* attributes = nullptr;
        onednn::PostOps* post_ops = nullptr;
        onednn::PrimitiveDesc* desc = nullptr;
        bool good = a && b && c && bool(bias) == shape.bias && call.primitive_attr_create(&attributes) == 0 &&
                    call.primitive_attr_set_scratchpad_mode(attributes, onednn::kUserScratchpad) == 0;
        if (good && shape.adds)
            good = call.post_ops_create(&post_ops) == 0 &&
                   call.post_ops_append_sum(post_ops, 1.0f, 0, type_of(shape.c.type)) == 0 &&
                   call.primitive_attr_set_post_ops(attributes, post_ops) == 0;
        // For one thread: what is made here is never divided further
        int before = 0;
        call.threadpool_interop_get_max_concurrency(&before);
        call.threadpool_interop_set_max_concurrency(1);
        good = good && call.matmul_primitive_desc_create(&desc, found->engine, a.get(), b.get(), bias.get(), c.get(),
                                                         attributes) == 0;
        good = good && call.primitive_create(&primitive, desc) == 0;
        call.threadpool_interop_set_max_concurrency(before);
        if (good) {
            scratch = call.primitive_desc_query_md(desc, onednn::kQueryScratchpad, 0);
            scratch_size = call.memory_desc_get_size(scratch);
            // `desc` stays: the scratchpad's description is its own
        }
        else if (desc) {
            call.primitive_desc_destroy(desc);
        }
        if (attributes) call.primitive_attr_destroy(attributes);
        if (post_ops) call.post_ops_destroy(post_ops);
        return good;
    }

    bool run(const void* a_data, const void* b_data, const float* bias_data, void* c_data) const {
        const Functions& call = found->call;
        if (!own.ready(scratch_size)) return false;
        onednn::Argument arguments[5];
        int count = 0;
        bool good = true;
        const auto add = [&](int what, const onednn::MemoryDesc* desc, const void* data) {
            onednn::Memory* memory = nullptr;
            good = good && call.memory_create(&memory, desc, found->engine, const_cast<void*>(data)) == 0;
            if (good) arguments[count++] = {what, memory};
        };
        add(onednn::kSource, a.get(), a_data);
        add(onednn::kWeights, b.get(), b_data);
        add(onednn::kTarget, c.get(), c_data);
        if (bias) add(onednn::kBias, bias.get(), bias_data);
        if (scratch_size > 0) add(onednn::kScratchpad, scratch, own.scratch);
        good = good && call.primitive_execute(primitive, own.stream, count, arguments) == 0;
        for (int i = 0; i < count; ++i) call.memory_destroy(arguments[i].memory);
        return good;
    }
};

// Pieces: at most 512 rows, whose part of A then stays in the second cache or near it; as wide as leaves some for each thread.
// (In bfloat16 with AMX, 256 columns are up to 1.6 times as fast as 64; in float32 a twentieth.)
Product::Product(const Shape& shape) : shape_(shape) {
    row_size_ = std::min<int64_t>(shape.rows, 512);
    row_parts_ = (shape.rows + row_size_ - 1) / row_size_;
    const int64_t most = shape.columns >= 1024 ? 256 : shape.columns >= 512 ? 128 : 64;
    column_size_ = std::min(shape.columns, most);
    column_parts_ = (shape.columns + column_size_ - 1) / column_size_;
}

bool Product::make() {
    const int64_t last_rows = shape_.rows - (row_parts_ - 1) * row_size_;
    const int64_t last_columns = shape_.columns - (column_parts_ - 1) * column_size_;
    for (int r = 0; r < 2; ++r)
        for (int c = 0; c < 2; ++c) {
            if ((r && last_rows == row_size_) || (c && last_columns == column_size_)) {
                kernels_[r][c] = kernels_[r && last_rows != row_size_][c && last_columns != column_size_];
                continue;
            }
            auto kernel = std::make_unique<Kernel>();
            if (!kernel->make(shape_, r ? last_rows : row_size_, c ? last_columns : column_size_)) return false;
            kernels_[r][c] = kernel.release();
        }
    return true;
}

const Product* Product::plan(const Shape& shape) {
    using Key = std::array<int64_t, 14>;
    static std::map<Key, const Product*>* plans = new std::map<Key, const Product*>;
    const std::lock_guard<std::mutex> guard(lock);
    if (!found) return nullptr;
    const Key key{shape.rows,  shape.columns, shape.depth,    shape.a.type, shape.a.row,  shape.a.column, shape.b.type,
                  shape.b.row, shape.b.column, shape.c.type, shape.c.row,  shape.c.column, shape.bias,    shape.adds};
    const auto known = plans->find(key);
    if (known != plans->end()) return known->second;
    std::unique_ptr<Product> made(new Product(shape));
    const Product* result = made->make() ? made.release() : nullptr;
    plans->emplace(key, result);
    return result;
}

Product::Piece Product::piece(int64_t number) const {
    const int64_t row = number / column_parts_ * row_size_, column = number % column_parts_ * column_size_;
    return {row, std::min(row_size_, shape_.rows - row), column, std::min(column_size_, shape_.columns - column)};
}

bool Product::run_part(int64_t number, const void* a, const void* b_part, const float* bias, void* c) const {
    const Piece part = piece(number);
    const Kernel* kernel = kernels_[part.rows != row_size_][part.columns != column_size_];
    const auto at = [](const void* data, const Layout& layout, int64_t row, int64_t column) {
        return static_cast<const char*>(data) + (row * layout.row + column * layout.column) * bytes_of(layout.type);
    };
    return kernel->run(at(a, shape_.a, part.row, 0), b_part, bias ? bias + part.column : nullptr,
                       const_cast<char*>(at(c, shape_.c, part.row, part.column)));
}

bool Product::run(int64_t number, const void* a, const void* b, const float* bias, void* c) const {
    const int64_t offset = piece(number).column * shape_.b.column * bytes_of(shape_.b.type);
    return run_part(number, a, static_cast<const char*>(b) + offset, bias, c);
}

extern "C" {

EXPORTED int spark_open_onednn(const char* path) { return open_onednn(path); }

// One product, for tests and measurements. `numbers`: rows, columns, depth; type, row and column of A, B and C; bias or
// not, adds or not. -> 0, 1 when oneDNN refuses, 2 when it fails.
EXPORTED int spark_multiply(const int64_t* numbers, const void* a, const void* b, const float* bias, void* c,
                            int threads) {
    const auto layout = [&](int first) {
        return Layout{static_cast<int32_t>(numbers[first]), numbers[first + 1], numbers[first + 2]};
    };
    const Product* product = Product::plan(
        {numbers[0], numbers[1], numbers[2], layout(3), layout(6), layout(9), numbers[12] != 0, numbers[13] != 0});
    if (!product) return 1;
    std::atomic<bool> good{true};
    Pool::Turn pool(Pool::of_process(), threads);
    pool.share(product->pieces(), [&](int64_t piece, int) {
        if (!product->run(piece, a, b, bias, c)) good = false;
    });
    return good ? 0 : 2;
}

}  // extern "C"
