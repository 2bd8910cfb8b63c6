// Block matrix products with float32 accumulation: attention and the gradients of A and B are made of these.
//
//     C (rows, 32) = A (rows, 32 steps) B          or += with `add`
//
// A is row-major. B is packed in tiles of 32 (summed dimension) x 16 (columns). The tiles of 16 columns follow each other in
// memory, and the second 16 columns start `column` elements after the first. In a tile, 32 bits of a column (one float32, or
// two bfloat16 that are consecutive in the summed dimension) are followed by the 32 bits of the next column. So every
// multiply below reads A and B as 32-bit words.

#pragma once

#include "numbers.h"

#if defined(__AVX512BF16__) && defined(__AVX512BW__)
#define LAMINA_PAIRS
#endif

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(LAMINA_PAIRS)
#define LAMINA_TILES
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

constexpr int64_t BLOCK = 32;
constexpr int64_t TILE = BLOCK * 16;  // elements

// The row stride, in elements, of a buffer whose rows are read or written together. It is an odd number of cache lines: rows
// at a stride of a power of two evict each other from the L1 cache.
template <typename E>
constexpr int64_t padded_row(int64_t elements) {
    constexpr int64_t line = 64 / sizeof(E);
    return ((elements + line - 1) / line | 1) * line;
}

template <typename E>
constexpr int64_t PER_WORD = 4 / static_cast<int64_t>(sizeof(E));

#if defined(__AVX512F__)
inline Floats multiply_add(const float* a, const float* b, Floats sum) { return sum + *a * take(b); }
#endif

#ifdef LAMINA_PAIRS
inline Floats multiply_add(const bf16* a, const bf16* b, Floats sum) {
    int32_t pair;
    std::memcpy(&pair, a, sizeof pair);
    return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)_mm512_loadu_si512(b));
}
#endif

// With vector instructions: one word of A times sixteen of B at once. Float32 on any CPU, bfloat16 with AVX512-BF16.
template <typename E>
struct Vectors {
    using Element = E;

    static void begin() {}
    static void end() {}

    template <int ROWS>
    static void multiply(float* C, int64_t c_row, const E* A, int64_t a_row, const E* B, int64_t column, int64_t steps,
                         bool add) {
        for (int64_t m = 0; m < ROWS; m += HERE, C += HERE * c_row, A += HERE * a_row)
            multiply_rows(C, c_row, A, a_row, B, column, steps, add);
    }

   private:
    static constexpr int HERE = 8;  // rows whose sums stay in registers

#if defined(__AVX512F__)
    static void multiply_rows(float* C, int64_t c_row, const E* A, int64_t a_row, const E* B, int64_t column,
                              int64_t steps, bool add) {
        Floats left[HERE] = {}, right[HERE] = {};
        if (add)
#pragma GCC unroll 8
            for (int i = 0; i < HERE; ++i) {
                left[i] = take(C + i * c_row);
                right[i] = take(C + i * c_row + 16);
            }
        for (int64_t k = 0; k < steps * BLOCK; k += PER_WORD<E>)
#pragma GCC unroll 8
            for (int i = 0; i < HERE; ++i) {
                left[i] = multiply_add(A + i * a_row + k, B + k * 16, left[i]);
                right[i] = multiply_add(A + i * a_row + k, B + column + k * 16, right[i]);
            }
#pragma GCC unroll 8
        for (int i = 0; i < HERE; ++i) {
            put(C + i * c_row, left[i]);
            put(C + i * c_row + 16, right[i]);
        }
    }
#else
    // Shorter registers cannot hold this many sums; compilers generate faster code from plain loops.
    static void multiply_rows(float* C, int64_t c_row, const float* A, int64_t a_row, const float* B, int64_t column,
                              int64_t steps, bool add) {
        for (int64_t half = 0; half < 2; ++half, C += 16, B += column) {
            float sum[HERE][16];
            for (int i = 0; i < HERE; ++i)
                for (int n = 0; n < 16; ++n) sum[i][n] = add ? C[i * c_row + n] : 0.0f;
            for (int64_t k = 0; k < steps * BLOCK; ++k)
                for (int i = 0; i < HERE; ++i) {
                    const float a = A[i * a_row + k];
#pragma omp simd
                    for (int n = 0; n < 16; ++n) sum[i][n] += a * B[k * 16 + n];
                }
            for (int i = 0; i < HERE; ++i)
                for (int n = 0; n < 16; ++n) C[i * c_row + n] = sum[i][n];
        }
    }
#endif
};

#ifdef LAMINA_TILES
bool may_use_tiles() {  // Linux enables the AMX tile registers only on request
    static const bool granted = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* XTILEDATA */) == 0;
    return granted;
}

// With AMX: sixteen rows, 32 of the summed dimension and sixteen columns at once.
struct Tiles {
    using Element = bf16;

    // Palette 1; eight tiles of 16 rows, 64 bytes each.
    static void begin() {
        alignas(64) static constexpr uint8_t config[64] = {1,  0, 0,  0, 0,  0, 0,  0, 0,  0, 0,  0, 0,  0, 0,  0,
                                                           64, 0, 64, 0, 64, 0, 64, 0, 64, 0, 64, 0, 64, 0, 64, 0,
                                                           0,  0, 0,  0, 0,  0, 0,  0, 0,  0, 0,  0, 0,  0, 0,  0,
                                                           16, 16, 16, 16, 16, 16, 16, 16};
        _tile_loadconfig(config);
    }
    static void end() { _tile_release(); }

    template <int ROWS>
    static void multiply(float* C, int64_t c_row, const bf16* A, int64_t a_row, const bf16* B, int64_t column,
                         int64_t steps, bool add) {
        asm volatile("" ::: "memory");  // the compiler does not know that tile loads read memory
        const size_t c = static_cast<size_t>(c_row) * 4, a = static_cast<size_t>(a_row) * 2;
        if (add) {
            _tile_loadd(0, C, c);
            _tile_loadd(1, C + 16, c);
            if constexpr (ROWS == 32) {
                _tile_loadd(2, C + 16 * c_row, c);
                _tile_loadd(3, C + 16 * c_row + 16, c);
            }
        } else {
            _tile_zero(0);
            _tile_zero(1);
            if constexpr (ROWS == 32) {
                _tile_zero(2);
                _tile_zero(3);
            }
        }
        for (int64_t k = 0; k < steps; ++k) {
            _tile_loadd(4, A + k * BLOCK, a);
            _tile_loadd(6, B + k * TILE, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, B + k * TILE + column, 64);
            _tile_dpbf16ps(1, 4, 7);
            if constexpr (ROWS == 32) {
                _tile_loadd(5, A + k * BLOCK + 16 * a_row, a);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
        }
        _tile_stored(0, C, c);
        _tile_stored(1, C + 16, c);
        if constexpr (ROWS == 32) {
            _tile_stored(2, C + 16 * c_row, c);
            _tile_stored(3, C + 16 * c_row + 16, c);
        }
    }
};
#endif

}  // namespace
