// Weights in 4 or 8 bits: packed, turned back into rows of any stride, or multiplied with a few rows as they are.
//
// A 4-bit weight is table[nibble] times its block's scale, an 8-bit one whole number x row scale / 127, both rounded to the
// stored type T, as bitsandbytes does it. So what is multiplied are the very weights that a dense product would read.

#include <algorithm>

#include "numbers.h"

namespace {

typedef uint8_t Bytes __attribute__((vector_size(LAMINA_LANES)));
typedef int8_t SignedBytes __attribute__((vector_size(LAMINA_LANES)));

constexpr int64_t CHUNK = 2 * LANES;  // 4-bit weights of one load: a byte for two

struct FourBits {
    const uint8_t* packed;
    const float* table;
    int64_t blocksize;
    const float* absmax;          // a scale a block, or null where scales are quantized too:
    const uint8_t* nested;        // then a byte a block, a number of `nested_code`,
    const float* nested_code;
    const float* nested_absmax;   // times a scale for each 256 of them,
    float nested_offset;          // plus this

    float scale(int64_t block) const {
        if (absmax) return absmax[block];
        volatile float product = nested_code[nested[block]] * nested_absmax[block / 256];  // rounded before the sum
        return product + nested_offset;
    }
};

// Compilers take the bytes apart one by one; the CPU does not.
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

// The sixteen numbers that nibbles stand for: in a register where one holds them all.
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

// The weights from `at` on, an even multiple of CHUNK: those at even places, and those at odd ones.
template <typename T>
inline void unpack(const FourBits& w, const Table& table, int64_t at, float scale, Floats& even, Floats& odd) {
    const Ints wide = widened(w.packed + at / 2);
    even = rounded<T>(table.at(wide >> 4) * scale);
    odd = rounded<T>(table.at(wide & 15) * scale);
}

// body(column, even, odd) along a row of weights
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

// From `FIRST` on, one of each in turns.
template <int FIRST, int... LANE>
inline Floats in_turns(Floats even, Floats odd, std::integer_sequence<int, LANE...>) {
    return __builtin_shufflevector(even, odd, (FIRST + LANE / 2 + LANE % 2 * static_cast<int>(LANES))...);
}

inline void put_both(float* to, Floats even, Floats odd) {
    put(to, in_turns<0>(even, odd, EACH_LANE));
    put(to + LANES, in_turns<LANES / 2>(even, odd, EACH_LANE));
}

inline void put_both(bf16* to, Floats even, Floats odd) {  // both are rounded: their upper halves are all there is
    const Words words = ((Words)even >> 16) | ((Words)odd & 0xffff0000u);
    std::memcpy(to, &words, sizeof words);
}

inline Floats magnitude(Floats v) { return (Floats)((Words)v & 0x7fffffffu); }

// How many of the fifteen bounds between the table's numbers lie below each.
inline Ints places_of(Floats v, const float* bounds) {
    Ints count = {};
    for (int i = 0; i < 15; ++i) count -= (Ints)(v > splat(bounds[i]));
    return count;
}

// Blocks of weights as nibbles; `order` gives the table's place for each number of bounds below. A scale is not finite if
// one of its block's weights is not.
template <typename T>
void pack_4bit(const T* weights, int64_t blocks, int64_t blocksize, const float* bounds, const uint8_t* order, uint8_t* packed,
               float* absmax) {
#pragma omp parallel for schedule(static)
    for (int64_t block = 0; block < blocks; ++block) {
        const T* from = weights + block * blocksize;
        uint8_t* to = packed + block * blocksize / 2;
        Floats most = {}, spoiled = {};
        for (int64_t i = 0; i < blocksize; i += LANES) {
            const Floats v = magnitude(take(from + i));
            most = larger(v, most);
            spoiled += v * 0.0f;
        }
        absmax[block] = largest_of(most) + sum_of(spoiled);
        const float factor = 1.0f / std::max(absmax[block], 1e-38f);
        for (int64_t i = 0; i < blocksize; i += CHUNK) {
            int32_t places[CHUNK];
            for (int64_t half = 0; half < CHUNK; half += LANES) {
                const Floats v = smaller(splat(1.0f), larger(splat(-1.0f), take(from + i + half) * factor));
                const Ints found = places_of(v, bounds);
                std::memcpy(places + half, &found, sizeof found);
            }
            for (int64_t j = 0; j < LANES; ++j)
                to[i / 2 + j] = static_cast<uint8_t>(order[places[2 * j]] << 4 | order[places[2 * j + 1]]);
        }
    }
}

template <typename T>
void lay_4bit(const FourBits& w, T* out, int64_t out_row, int64_t rows, int64_t columns) {
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < rows; ++n)
        along_row<T>(w, n, columns, [&](int64_t k, Floats even, Floats odd) { put_both(out + n * out_row + k, even, odd); });
}

// x (M, columns) as float32 in two halves: even columns, then odd ones.
template <int M, typename T>
void multiply_4bit(const FourBits& w, const float* x, T* y, int64_t y_row, int64_t rows, int64_t columns) {
    const int64_t half = columns / 2;
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < rows; ++n) {
        Floats sums[M] = {}, others[M] = {};
        along_row<T>(w, n, columns, [&](int64_t k, Floats even, Floats odd) {
            for (int m = 0; m < M; ++m) {
                const float* from = x + m * columns + k / 2;
                sums[m] += even * take(from);
                others[m] += odd * take(from + half);
            }
        });
        for (int m = 0; m < M; ++m) store(y + m * y_row + n, sum_of(sums[m] + others[m]));
    }
}

template <typename T>
inline Floats unpack8(const int8_t* packed, float scale, float step) {
    return rounded<T>(__builtin_convertvector(widened(packed), Floats) * scale * step);
}

template <typename T>
void lay_8bit(const int8_t* packed, const float* scales, float step, T* out, int64_t out_row, int64_t rows, int64_t columns) {
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < rows; ++n)
        for (int64_t k = 0; k < columns; k += LANES)
            put(out + n * out_row + k, unpack8<T>(packed + n * columns + k, scales[n], step));
}

template <int M, typename T>
void multiply_8bit(const int8_t* packed, const float* scales, float step, const float* x, T* y, int64_t y_row, int64_t rows,
                   int64_t columns) {
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < rows; ++n) {
        Floats sums[M] = {};
        for (int64_t k = 0; k < columns; k += LANES) {
            const Floats weights = unpack8<T>(packed + n * columns + k, scales[n], step);
            for (int m = 0; m < M; ++m) sums[m] += weights * take(x + m * columns + k);
        }
        for (int m = 0; m < M; ++m) store(y + m * y_row + n, sum_of(sums[m]));
    }
}

template <typename Body>
void with_rows(int64_t count, Body body) {
    switch (count) {
        case 1: return body.template operator()<1>();
        case 2: return body.template operator()<2>();
        case 3: return body.template operator()<3>();
        case 4: return body.template operator()<4>();
        case 5: return body.template operator()<5>();
        case 6: return body.template operator()<6>();
        case 7: return body.template operator()<7>();
        default: return body.template operator()<8>();
    }
}

template <typename T>
struct Multiply4 {
    const FourBits& w;
    const float* x;
    T* y;
    int64_t y_row, rows, columns;
    template <int M>
    void operator()() const {
        multiply_4bit<M>(w, x, y, y_row, rows, columns);
    }
};

template <typename T>
struct Multiply8 {
    const int8_t* packed;
    const float* scales;
    float step;
    const float* x;
    T* y;
    int64_t y_row, rows, columns;
    template <int M>
    void operator()() const {
        multiply_8bit<M>(packed, scales, step, x, y, y_row, rows, columns);
    }
};

}  // namespace

#define LAMINA_FOUR_BITS                                                                                                     \
    const uint8_t *packed, const float *table, int64_t blocksize, const float *absmax, const uint8_t *nested,               \
        const float *nested_code, const float *nested_absmax, float nested_offset
#define LAMINA_FOUR {packed, table, blocksize, absmax, nested, nested_code, nested_absmax, nested_offset}

#define LAMINA_PACKED(suffix, T)                                                                                             \
    extern "C" void lamina_pack_4bit_##suffix(const T* weights, int64_t blocksize, const float* bounds, const uint8_t* order, \
                                              uint8_t* packed, float* absmax, int64_t blocks) {                              \
        pack_4bit<T>(weights, blocks, blocksize, bounds, order, packed, absmax);                                             \
    }                                                                                                                        \
    extern "C" void lamina_lay_4bit_##suffix(LAMINA_FOUR_BITS, T* out, int64_t out_row, int64_t rows, int64_t columns) {     \
        lay_4bit<T>(LAMINA_FOUR, out, out_row, rows, columns);                                                               \
    }                                                                                                                        \
    extern "C" void lamina_multiply_4bit_##suffix(LAMINA_FOUR_BITS, const float* x, int64_t count, T* y, int64_t y_row,      \
                                                  int64_t rows, int64_t columns) {                                           \
        const FourBits w LAMINA_FOUR;                                                                                        \
        with_rows(count, Multiply4<T>{w, x, y, y_row, rows, columns});                                                       \
    }                                                                                                                        \
    extern "C" void lamina_lay_8bit_##suffix(const int8_t* packed, const float* scales, float step, T* out, int64_t out_row, \
                                             int64_t rows, int64_t columns) {                                                \
        lay_8bit<T>(packed, scales, step, out, out_row, rows, columns);                                                      \
    }                                                                                                                        \
    extern "C" void lamina_multiply_8bit_##suffix(const int8_t* packed, const float* scales, float step, const float* x,     \
                                                  int64_t count, T* y, int64_t y_row, int64_t rows, int64_t columns) {       \
        with_rows(count, Multiply8<T>{packed, scales, step, x, y, y_row, rows, columns});                                    \
    }

LAMINA_PACKED(float32, float)
LAMINA_PACKED(bfloat16, bf16)
