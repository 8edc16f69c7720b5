// The few functions of oneDNN's C interface that onednn_products.cpp calls, found at run time in the library that MindSpore brings.
//
// Declared here instead of taken from oneDNN's headers, which no package that spark13b needs installs; the names and
// numbers are those of its documentation and have been the same in all of its version 3 (checked when it is opened).
#pragma once

#include <cstddef>
#include <cstdint>

namespace onednn {

using Status = int;  // 0 is success
struct Engine;
struct Stream;
struct MemoryDesc;
struct Memory;
struct Attributes;
struct PostOps;
struct PrimitiveDesc;
struct Primitive;

struct Argument {
    int what;  // an Argument number below
    Memory* memory;
};

struct Version {
    int major, minor, patch;
    const char* hash;
    unsigned cpu_runtime, gpu_runtime;
};

constexpr int kCpu = 1, kBfloat16 = 2, kFloat32 = 3, kUserScratchpad = 1, kInOrder = 1;
constexpr int kQueryScratchpad = 136;
constexpr int kSource = 1, kTarget = 17, kWeights = 33, kBias = 41, kScratchpad = 80;

// Each pointer is named after its function, without the `dnnl_` in front.
struct Functions {
    const Version* (*version)();
    Status (*engine_create)(Engine**, int kind, size_t index);
    Status (*stream_create)(Stream**, Engine*, unsigned flags);
    Status (*memory_desc_create_with_strides)(MemoryDesc**, int dimensions, const int64_t* sizes, int type,
                                              const int64_t* strides);
    Status (*memory_desc_destroy)(MemoryDesc*);
    size_t (*memory_desc_get_size)(const MemoryDesc*);
    Status (*memory_create)(Memory**, const MemoryDesc*, Engine*, void* handle);
    Status (*memory_destroy)(Memory*);
    Status (*primitive_attr_create)(Attributes**);
    Status (*primitive_attr_set_scratchpad_mode)(Attributes*, int mode);
    Status (*primitive_attr_set_post_ops)(Attributes*, const PostOps*);
    Status (*primitive_attr_destroy)(Attributes*);
    Status (*post_ops_create)(PostOps**);
    Status (*post_ops_append_sum)(PostOps*, float scale, int32_t zero_point, int type);
    Status (*post_ops_destroy)(PostOps*);
    Status (*matmul_primitive_desc_create)(PrimitiveDesc**, Engine*, const MemoryDesc* source, const MemoryDesc* weights,
                                           const MemoryDesc* bias, const MemoryDesc* target, const Attributes*);
    const MemoryDesc* (*primitive_desc_query_md)(const PrimitiveDesc*, int what, int index);
    Status (*primitive_desc_destroy)(PrimitiveDesc*);
    Status (*primitive_create)(Primitive**, const PrimitiveDesc*);
    Status (*primitive_execute)(const Primitive*, Stream*, int count, const Argument*);
    Status (*threadpool_interop_set_max_concurrency)(int);
    int (*threadpool_interop_get_max_concurrency)(int*);
};

}  // namespace onednn
