// Memory that stays from call to call, and how one piece of it is divided.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>

#ifdef __linux__
#include <sys/mman.h>
#endif

class KeptMemory {
  public:
    KeptMemory() = default;
    ~KeptMemory() { std::free(memory_); }
    KeptMemory(const KeptMemory&) = delete;
    KeptMemory& operator=(const KeptMemory&) = delete;

    // `size` bytes or more, in whole pages; what was there is lost when they grow. Null when there are none.
    char* of(size_t size) {
        if (size > size_) {
            const size_t page = size < kLarge ? 4096 : kLarge;
            std::free(memory_);
            size_ = (size + page - 1) / page * page;
            memory_ = static_cast<char*>(std::aligned_alloc(page, size_));
            if (!memory_) size_ = 0;
#ifdef __linux__
            if (memory_ && page == kLarge) madvise(memory_, size_, MADV_HUGEPAGE);  // a wish: rows far apart share a page
#endif
        }
        return memory_;
    }

  private:
    static constexpr size_t kLarge = 2 << 20;

    char* memory_ = nullptr;
    size_t size_ = 0;
};

// Pieces of whole cache lines, one after the other; without `base` they are only measured.
class Arena {
  public:
    explicit Arena(char* base) : base_(base) {}

    template <class Number>
    Number* take(int64_t count) {
        char* at = base_ ? base_ + used_ : nullptr;
        used_ += (count * sizeof(Number) + 63) / 64 * 64;
        return reinterpret_cast<Number*>(at);
    }

    size_t used() const { return used_; }

  private:
    char* base_;
    size_t used_ = 0;
};
