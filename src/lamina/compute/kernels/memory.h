// Memory of a thread's own.

#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace {

// Memory that a thread keeps for its next work: fresh pages would cost more than the arithmetic.
struct Shelf {
    std::vector<void*> free[64];
    ~Shelf() {
        for (auto& blocks : free)
            for (void* block : blocks) std::free(block);
    }
};
thread_local Shelf shelf;

#if defined(__SANITIZE_ADDRESS__)
// A new one each time, no longer than was asked for, and full of NaN: so a sanitizer sees what lies beyond, and a test what
// was not written before it is read.
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
        auto& blocks = shelf.free[power];
        if (blocks.empty()) blocks.push_back(std::aligned_alloc(64, size_t{1} << power));
        data = static_cast<T*>(blocks.back());
        blocks.pop_back();
        if (zeroed) std::memset(data, 0, bytes);
    }
    ~Buffer() { shelf.free[power].push_back(data); }
    Buffer(const Buffer&) = delete;
    T* operator+(int64_t offset) const { return data + offset; }
    T& operator[](int64_t index) const { return data[index]; }
};
#endif

}  // namespace
