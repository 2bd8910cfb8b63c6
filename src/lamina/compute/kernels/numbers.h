// Vector loads, stores and float32 functions that the kernels share.
//
// Vectors use the compiler's vector extension, so this runs on any CPU; intrinsics are used where AVX-512 has one instruction
// for several. A vector is as long as the CPU's registers: compilers keep longer ones in memory, which is five to ten times
// slower.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
#define LAMINA_LANES 16
#elif defined(__AVX2__)
#define LAMINA_LANES 8
#else
#define LAMINA_LANES 4
#endif
constexpr int64_t LANES = LAMINA_LANES;
constexpr auto EACH_LANE = std::make_integer_sequence<int, LANES>();

typedef float Floats __attribute__((vector_size(4 * LAMINA_LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LAMINA_LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LAMINA_LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LAMINA_LANES)));
typedef int16_t Shorts __attribute__((vector_size(2 * LAMINA_LANES)));

struct bf16 {
    uint16_t bits;
};

inline Floats broadcast(float value) { return value - Floats{}; }

inline Floats take(const float* p) {
    Floats value;
    std::memcpy(&value, p, sizeof value);
    return value;
}

inline Floats take(const bf16* p) {
    Halves bits;
    std::memcpy(&bits, p, sizeof bits);
    return (Floats)(__builtin_convertvector(bits, Words) << 16);
}

// Rounds to nearest even; NaN stays NaN. With AVX512-BF16, magnitudes below 2^-126 become 0.
inline Halves round_to_bf16(Floats value) {
#if defined(__AVX512BF16__)
    return (Halves)_mm512_cvtneps_pbh((__m512)value);
#else
    const Words bits = (Words)value;
    const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return __builtin_convertvector(value == value ? rounded : Words{} + 0x7fc0u, Halves);
#endif
}

inline void put(float* p, Floats value) { std::memcpy(p, &value, sizeof value); }

inline void put(bf16* p, Floats value) {
    const Halves bits = round_to_bf16(value);
    std::memcpy(p, &bits, sizeof bits);
}

// The value after a round trip through the stored dtype.
template <typename T>
inline Floats rounded(Floats value);
template <>
inline Floats rounded<float>(Floats value) {
    return value;
}
template <>
inline Floats rounded<bf16>(Floats value) {
    return (Floats)(__builtin_convertvector(round_to_bf16(value), Words) << 16);
}

inline float load(const float* p) { return *p; }
inline float load(const bf16* p) { return __builtin_bit_cast(float, static_cast<uint32_t>(p->bits) << 16); }
inline void store(float* p, float value) { *p = value; }
inline void store(bf16* p, float value) { p->bits = round_to_bf16(broadcast(value))[0]; }

// How `for_each_vector` accesses a row: `Whole` reads and writes a full vector, `Part` the last `count` elements of a row.
struct Whole {
    template <typename T>
    Floats take(const T* p, float = 0.0f) const {
        return ::take(p);
    }
    template <typename T>
    void put(T* p, Floats value) const {
        ::put(p, value);
    }
    Floats only(Floats value) const { return value; }  // in `Part`, elements past the row's end become 0
};

struct Part {
    int64_t count;

    template <typename T>
    Floats take(const T* p, float beyond = 0.0f) const {
        Floats value = broadcast(beyond);
        for (int64_t i = 0; i < count; ++i) value[i] = load(p + i);
        return value;
    }
    template <typename T>
    void put(T* p, Floats value) const {
        for (int64_t i = 0; i < count; ++i) store(p + i, value[i]);
    }
    Floats only(Floats value) const {
        for (int64_t i = count; i < LANES; ++i) value[i] = 0.0f;
        return value;
    }
};

// Calls body(index, access) for every vector of a row.
template <typename Body>
inline void for_each_vector(int64_t width, Body body) {
    int64_t j = 0;
    for (; j + LANES <= width; j += LANES) body(j, Whole{});
    if (j < width) body(j, Part{width - j});
}

template <int STEP, int... LANE>
inline Floats swapped_lanes(Floats v, std::integer_sequence<int, LANE...>) {
    return __builtin_shufflevector(v, v, (LANE ^ STEP)...);
}

template <int STEP = LANES / 2, typename Combine>
inline float reduce_lanes(Floats v, Combine combine) {
    v = combine(v, swapped_lanes<STEP>(v, EACH_LANE));
    if constexpr (STEP > 1)
        return reduce_lanes<STEP / 2>(v, combine);
    else
        return v[0];
}

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }  // b if one of them is NaN
inline Floats smaller(Floats a, Floats b) { return a < b ? a : b; }
inline float sum_of(Floats v) {
    return reduce_lanes(v, [](Floats a, Floats b) { return a + b; });
}
inline float largest_of(Floats v) { return reduce_lanes(v, larger); }

inline Floats to_integer(Floats x) {
#if defined(__AVX512F__)
    return (Floats)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT);
#else
    return (x + 12582912.0f) - 12582912.0f;
#endif
}

// v 2^n
inline Floats scaled(Floats v, Floats n) {
#if defined(__AVX512F__)
    return (Floats)_mm512_scalef_ps((__m512)v, (__m512)n);
#else
    return v * (Floats)((__builtin_convertvector(n, Ints) + 127) << 23);
#endif
}

// exp as 2^n times a polynomial: within 2 ulp of float32.
inline Floats fast_exp(Floats x) {
    x = smaller(broadcast(88.0f), larger(broadcast(-87.0f), x));
    const Floats n = to_integer(x * 1.44269504f);
    const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Floats p = broadcast(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return scaled(p, n);
}

// 1 / x
inline Floats inverse(Floats x) {
#if defined(__AVX512F__)
    const Floats guess = (Floats)_mm512_rcp14_ps((__m512)x);
    return guess + guess * (1.0f - x * guess);
#else
    return 1.0f / x;
#endif
}

inline Floats fast_tanh(Floats x) { return 1.0f - 2.0f * inverse(fast_exp(2.0f * x) + 1.0f); }

}  // namespace

// Defines a function for each stored dtype, which its body calls T.
#define FOR_DTYPES(NAME, PARAMETERS, ...)              \
    extern "C" void NAME##_bfloat16 PARAMETERS {       \
        using T = bf16;                                \
        __VA_ARGS__;                                   \
    }                                                  \
    extern "C" void NAME##_float32 PARAMETERS {        \
        using T = float;                               \
        __VA_ARGS__;                                   \
    }
