// Weights in 4 or 8 bits: quantizing, dequantizing into rows of any stride, and products with a few rows of x. A product here
// uses exactly the weights that a dense product would read.

#include <algorithm>

#include "packed.h"

namespace {

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
