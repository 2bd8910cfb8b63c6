// How weights in 4 or 8 bits are read: a 4-bit weight is table[nibble] times its block's scale, an 8-bit one is
// integer x row scale / 127. Both are rounded to the stored type T, as bitsandbytes does.

#pragma once

#include <algorithm>

#include "numbers.h"

namespace {

typedef uint8_t Bytes __attribute__((vector_size(LAMINA_LANES)));
typedef int8_t SignedBytes __attribute__((vector_size(LAMINA_LANES)));

constexpr int64_t CHUNK = 2 * LANES;  // 4-bit weights in one load, two a byte

struct FourBits {
    const uint8_t* packed;
    const float* table;
    int64_t blocksize;
    const float* absmax;          // a scale per block, or null with double quantization. Then a block's scale is
    const uint8_t* nested;        // nested_code[nested[block]], one byte per block,
    const float* nested_code;
    const float* nested_absmax;   // times a scale per 256 blocks,
    float nested_offset;          // plus this

    float scale(int64_t block) const {
        if (absmax) return absmax[block];
        volatile float product = nested_code[nested[block]] * nested_absmax[block / 256];  // rounded before the sum
        return product + nested_offset;
    }
};

// Compilers widen the bytes one by one; the CPU has an instruction for it.
inline Ints widened(const uint8_t* p) {
#if defined(__AVX512F__)
    return (Ints)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
#elif defined(__AVX2__)
    return (Ints)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
#else
    Bytes bytes;
    std::memcpy(&bytes, p, sizeof bytes);
    return __builtin_convertvector(bytes, Ints);
#endif
}

inline Ints widened(const int8_t* p) {
#if defined(__AVX512F__)
    return (Ints)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p));
#elif defined(__AVX2__)
    return (Ints)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p));
#else
    SignedBytes bytes;
    std::memcpy(&bytes, p, sizeof bytes);
    return __builtin_convertvector(bytes, Ints);
#endif
}

// The sixteen values that nibbles stand for; in one register where it can hold them all.
#if defined(__AVX512F__)
struct Table {
    const Floats numbers;

    explicit Table(const float* from) : numbers(take(from)) {}
    Floats at(Ints places) const { return (Floats)_mm512_permutexvar_ps((__m512i)places, (__m512)numbers); }
};
#else
struct Table {
    const float* numbers;

    explicit Table(const float* from) : numbers(from) {}
    Floats at(Ints places) const {
#if defined(__AVX2__)
        return (Floats)_mm256_i32gather_ps(numbers, (__m256i)places, 4);
#else
        Floats found;
        for (int64_t i = 0; i < LANES; ++i) found[i] = numbers[places[i]];
        return found;
#endif
    }
};
#endif

// Dequantizes CHUNK weights from index `at` (a multiple of CHUNK): those with even and those with odd indices.
template <typename T>
inline void unpack(const FourBits& w, const Table& table, int64_t at, float scale, Floats& even, Floats& odd) {
    const Ints wide = widened(w.packed + at / 2);
    even = rounded<T>(table.at(wide >> 4) * scale);
    odd = rounded<T>(table.at(wide & 15) * scale);
}

// Calls body(column, even, odd) for every CHUNK of a row of weights.
template <typename T, typename Body>
inline void along_row(const FourBits& w, int64_t row, int64_t columns, Body body) {
    const Table table(w.table);
    const int64_t first = row * columns;
    for (int64_t k = 0, block = first / w.blocksize; k < columns; ++block) {
        const int64_t end = std::min(columns, (block + 1) * w.blocksize - first);
        const float scale = w.scale(block);
        for (; k < end; k += CHUNK) {
            Floats even, odd;
            unpack<T>(w, table, first + k, scale, even, odd);
            body(k, even, odd);
        }
    }
}

// Interleaves even and odd, from element FIRST of each.
template <int FIRST, int... LANE>
inline Floats interleaved(Floats even, Floats odd, std::integer_sequence<int, LANE...>) {
    return __builtin_shufflevector(even, odd, (FIRST + LANE / 2 + LANE % 2 * static_cast<int>(LANES))...);
}

inline void put_interleaved(float* to, Floats even, Floats odd) {
    put(to, interleaved<0>(even, odd, EACH_LANE));
    put(to + LANES, interleaved<LANES / 2>(even, odd, EACH_LANE));
}

inline void put_interleaved(bf16* to, Floats even, Floats odd) {  // both are already rounded: the lower 16 bits are 0
    const Words words = ((Words)even >> 16) | ((Words)odd & 0xffff0000u);
    std::memcpy(to, &words, sizeof words);
}

template <typename T>
inline Floats unpack8(const int8_t* packed, float scale, float step) {
    return rounded<T>(__builtin_convertvector(widened(packed), Floats) * scale * step);
}

}  // namespace
