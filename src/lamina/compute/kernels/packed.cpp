// Weights in 4 or 8 bits: quantizing, dequantizing into rows of any stride, and products with a few rows of x.
//
// A 4-bit weight is table[nibble] times its block's scale, an 8-bit one is integer x row scale / 127. Both are rounded to the
// stored type T, as bitsandbytes does, so that a product here uses exactly the weights that a dense product would read.

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

inline Floats magnitude(Floats v) { return (Floats)((Words)v & 0x7fffffffu); }

// For each value, how many of the fifteen bounds between the table's values are below it.
inline Ints bounds_below(Floats v, const float* bounds) {
    Ints count = {};
    for (int i = 0; i < 15; ++i) count -= (Ints)(v > broadcast(bounds[i]));
    return count;
}

// Quantizes blocks of weights; `order` maps the number of bounds below a weight to an index into the table. The scale of a
// block with a weight that is not finite is not finite either.
template <typename T>
void pack_4bit(const T* weights, int64_t blocks, int64_t blocksize, const float* bounds, const uint8_t* order, uint8_t* packed,
               float* absmax) {
#pragma omp parallel for schedule(static)
    for (int64_t block = 0; block < blocks; ++block) {
        const T* from = weights + block * blocksize;
        uint8_t* to = packed + block * blocksize / 2;
        Floats most = {}, not_finite = {};
        for (int64_t i = 0; i < blocksize; i += LANES) {
            const Floats v = magnitude(take(from + i));
            most = larger(v, most);
            not_finite += v * 0.0f;
        }
        absmax[block] = largest_of(most) + sum_of(not_finite);
        const float factor = 1.0f / std::max(absmax[block], 1e-38f);
        for (int64_t i = 0; i < blocksize; i += CHUNK) {
            int32_t places[CHUNK];
            for (int64_t half = 0; half < CHUNK; half += LANES) {
                const Floats v = smaller(broadcast(1.0f), larger(broadcast(-1.0f), take(from + i + half) * factor));
                const Ints found = bounds_below(v, bounds);
                std::memcpy(places + half, &found, sizeof found);
            }
            for (int64_t j = 0; j < LANES; ++j)
                to[i / 2 + j] = static_cast<uint8_t>(order[places[2 * j]] << 4 | order[places[2 * j + 1]]);
        }
    }
}

template <typename T>
void dequantize_4bit(const FourBits& w, T* out, int64_t out_row, int64_t rows, int64_t columns) {
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < rows; ++n)
        along_row<T>(w, n, columns,
                     [&](int64_t k, Floats even, Floats odd) { put_interleaved(out + n * out_row + k, even, odd); });
}

// x is (M, columns), float32, with the even columns of each row first, then the odd ones.
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
void dequantize_8bit(const int8_t* packed, const float* scales, float step, T* out, int64_t out_row, int64_t rows,
                     int64_t columns) {
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
    const uint8_t *packed, const float *table, int64_t blocksize, const float *absmax, const uint8_t *nested,                \
        const float *nested_code, const float *nested_absmax, float nested_offset
#define LAMINA_FOUR {packed, table, blocksize, absmax, nested, nested_code, nested_absmax, nested_offset}

#define LAMINA_PACKED(suffix, T)                                                                                             \
    extern "C" void lamina_pack_4bit_##suffix(const T* weights, int64_t blocksize, const float* bounds, const uint8_t* order,\
                                              uint8_t* packed, float* absmax, int64_t blocks) {                              \
        pack_4bit<T>(weights, blocks, blocksize, bounds, order, packed, absmax);                                             \
    }                                                                                                                        \
    extern "C" void lamina_dequantize_4bit_##suffix(LAMINA_FOUR_BITS, T* out, int64_t out_row, int64_t rows, int64_t columns) {\
        dequantize_4bit<T>(LAMINA_FOUR, out, out_row, rows, columns);                                                        \
    }                                                                                                                        \
    extern "C" void lamina_multiply_4bit_##suffix(LAMINA_FOUR_BITS, const float* x, int64_t count, T* y, int64_t y_row,      \
                                                  int64_t rows, int64_t columns) {                                           \
        const FourBits w LAMINA_FOUR;                                                                                        \
        with_rows(count, Multiply4<T>{w, x, y, y_row, rows, columns});                                                       \
    }                                                                                                                        \
    extern "C" void lamina_dequantize_8bit_##suffix(const int8_t* packed, const float* scales, float step, T* out, int64_t out_row,\
                                             int64_t rows, int64_t columns) {                                                \
        dequantize_8bit<T>(packed, scales, step, out, out_row, rows, columns);                                               \
    }                                                                                                                        \
    extern "C" void lamina_multiply_8bit_##suffix(const int8_t* packed, const float* scales, float step, const float* x,     \
                                                  int64_t count, T* y, int64_t y_row, int64_t rows, int64_t columns) {       \
        with_rows(count, Multiply8<T>{packed, scales, step, x, y, y_row, rows, columns});                                    \
    }

LAMINA_PACKED(float32, float)
LAMINA_PACKED(bfloat16, bf16)
