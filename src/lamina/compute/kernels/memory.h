// Thread-local scratch memory.

#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace {

// Freed blocks that a thread keeps for reuse: page faults on new memory would cost more than the arithmetic.
struct FreeBlocks {
    std::vector<void*> of_power[64];
    ~FreeBlocks() {
        for (auto& blocks : of_power)
            for (void* block : blocks) std::free(block);
    }
};
thread_local FreeBlocks free_blocks;

#if defined(__SANITIZE_ADDRESS__)
// Under a sanitizer: a new allocation each time, of the exact size and filled with NaN. So the sanitizer detects access out
// of bounds, and a test detects a read of what was never written.
template <typename T>
struct Buffer {
    T* data;

    explicit Buffer(int64_t count, bool zeroed = false) {
        const size_t bytes = sizeof(T) * static_cast<size_t>(count);
        void* fresh = nullptr;
        if (posix_memalign(&fresh, 64, bytes)) std::abort();
        data = static_cast<T*>(fresh);
        std::memset(fresh, zeroed ? 0 : 0xff, bytes);
    }
    ~Buffer() { std::free(data); }
    Buffer(const Buffer&) = delete;
    T* operator+(int64_t offset) const { return data + offset; }
    T& operator[](int64_t index) const { return data[index]; }
};
#else
template <typename T>
struct Buffer {
    T* data;
    int power = 6;  // of two, in bytes

    explicit Buffer(int64_t count, bool zeroed = false) {
        const size_t bytes = sizeof(T) * static_cast<size_t>(count);
        while ((size_t{1} << power) < bytes) ++power;
        auto& blocks = free_blocks.of_power[power];
        if (blocks.empty()) blocks.push_back(std::aligned_alloc(64, size_t{1} << power));
        data = static_cast<T*>(blocks.back());
        blocks.pop_back();
        if (zeroed) std::memset(data, 0, bytes);
    }
    ~Buffer() { free_blocks.of_power[power].push_back(data); }
    Buffer(const Buffer&) = delete;
    T* operator+(int64_t offset) const { return data + offset; }
    T& operator[](int64_t index) const { return data[index]; }
};
#endif

}  // namespace
