// Products by oneDNN: a primitive for one thread for each size of a piece.

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>

#include "memory.h"
#include "onednn.h"
#include "products.h"

namespace {

using onednn::Functions;

struct Found {
    Functions call;
    onednn::Engine* engine;
    int version;
};

std::mutex lock;
std::atomic<Found*> opened{nullptr};

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

// Frees what a function of oneDNN made.
template <class Thing>
using Owned = std::unique_ptr<Thing, onednn::Status (*)(Thing*)>;

Owned<onednn::MemoryDesc> describe(int64_t rows, int64_t columns, const Layout& layout) {
    const int64_t sizes[2] = {rows, columns}, strides[2] = {layout.row, layout.column};
    onednn::MemoryDesc* made = nullptr;
    opened.load()->call.memory_desc_create_with_strides(&made, 2, sizes, type_of(layout.type), strides);
    return {made, opened.load()->call.memory_desc_destroy};
}

// What a thread needs to run pieces: its own stream, and memory for what the kernels put aside.
struct Thread {
    onednn::Stream* stream = nullptr;
    KeptMemory scratch;

    bool ready() {
        return stream || opened.load()->call.stream_create(&stream, opened.load()->engine, onednn::kInOrder) == 0;
    }
};

thread_local Thread own;

// A product of one piece's size, on one thread.
struct Kernel {
    Owned<onednn::MemoryDesc> a{nullptr, nullptr}, b{nullptr, nullptr}, c{nullptr, nullptr}, bias{nullptr, nullptr};
    const onednn::MemoryDesc* scratch = nullptr;  // the primitive's
    size_t scratch_size = 0;
    onednn::Primitive* primitive = nullptr;

    bool make(const Product::Shape& shape, int64_t rows, int64_t columns) {
        const Functions& call = opened.load()->call;
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
        good = good && call.matmul_primitive_desc_create(&desc, opened.load()->engine, a.get(), b.get(), bias.get(), c.get(),
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
        const Functions& call = opened.load()->call;
        char* aside = own.scratch.of(scratch_size);
        if (!own.ready() || (scratch_size > 0 && !aside)) return false;
        onednn::Argument arguments[5];
        int count = 0;
        bool good = true;
        const auto add = [&](int what, const onednn::MemoryDesc* desc, const void* data) {
            onednn::Memory* memory = nullptr;
            good = good && call.memory_create(&memory, desc, opened.load()->engine, const_cast<void*>(data)) == 0;
            if (good) arguments[count++] = {what, memory};
        };
        add(onednn::kSource, a.get(), a_data);
        add(onednn::kWeights, b.get(), b_data);
        add(onednn::kTarget, c.get(), c_data);
        if (bias) add(onednn::kBias, bias.get(), bias_data);
        if (scratch_size > 0) add(onednn::kScratchpad, scratch, aside);
        good = good && call.primitive_execute(primitive, own.stream, count, arguments) == 0;
        for (int i = 0; i < count; ++i) call.memory_destroy(arguments[i].memory);
        return good;
    }
};

class OnednnProduct final : public Product {
  public:
    // Pieces: at most 512 rows, whose part of A then stays in the second cache or near it; as wide as leaves some for each
    // thread. (In bfloat16 with AMX, 256 columns are up to 1.6 times as fast as 64; in float32 a twentieth.)
    explicit OnednnProduct(const Shape& shape)
        : Product(shape, std::min<int64_t>(shape.rows, 512),
                  std::min<int64_t>(shape.columns, shape.columns >= 1024  ? 256
                                                   : shape.columns >= 512 ? 128
                                                                          : 64)) {}

    bool make() {
        const Piece last = piece(row_parts() - 1, column_parts() - 1);
        for (int r = 0; r < 2; ++r)
            for (int c = 0; c < 2; ++c) {
                const int64_t rows = r ? last.rows : row_size(), columns = c ? last.columns : column_size();
                const bool known_row = r && rows == row_size(), known_column = c && columns == column_size();
                if (known_row || known_column) {
                    kernels_[r][c] = kernels_[r && !known_row][c && !known_column];
                    continue;
                }
                kernels_[r][c] = std::make_shared<Kernel>();
                if (!kernels_[r][c]->make(shape(), rows, columns)) return false;
            }
        return true;
    }

    bool run(const Piece& piece, const void* a, const void* b, const float* bias, void* c) const override {
        const Kernel& kernel = *kernels_[piece.rows != row_size()][piece.columns != column_size()];
        return kernel.run(a, b, bias ? bias + piece.column : nullptr, shape().c.at(c, piece.row, piece.column));
    }

  private:
    std::shared_ptr<Kernel> kernels_[2][2];  // of whole and of last pieces, by rows and by columns
};

}  // namespace

std::unique_ptr<Product> onednn_product(const Product::Shape& shape) {
    if (!opened) return nullptr;
    auto made = std::make_unique<OnednnProduct>(shape);
    return made->make() ? std::move(made) : nullptr;
}

int open_onednn(const char* path) {
    const std::lock_guard<std::mutex> guard(lock);
    if (const Found* found = opened) return found->version;
    void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) return 0;
    auto candidate = std::make_unique<Found>();
    if (!look_up_all(library, candidate->call)) return 0;
    const onednn::Version* version = candidate->call.version();
    if (version->major != 3 || candidate->call.engine_create(&candidate->engine, onednn::kCpu, 0) != 0) return 0;
    candidate->version = version->major * 100 + version->minor;
    opened = candidate.release();
    return opened.load()->version;
}
