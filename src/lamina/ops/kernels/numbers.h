// Stored numbers and float32 ones, and functions that vectorise: shared by the kernels.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

struct bf16 {
    uint16_t bits;
};

inline float load(const float* p) { return *p; }

inline float load(const bf16* p) {
    return __builtin_bit_cast(float, static_cast<uint32_t>(p->bits) << 16);
}

inline void store(float* p, float value) { *p = value; }

// Round to nearest even; NaN stays NaN.
inline void store(bf16* p, float value) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, value);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    p->bits = static_cast<uint16_t>(value == value ? rounded : 0x7fc0u);
}

template <typename T>
inline float rounded(float value) {
    T stored;
    store(&stored, value);
    return load(&stored);
}

// exp by 2^n times a polynomial: within 2 float32 spacings, vectorises everywhere.
inline float fast_exp(float x) {
    x = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
    const float n = __builtin_rintf(x * 1.44269504f);
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * __builtin_bit_cast(float, (static_cast<int32_t>(n) + 127) << 23);
}

inline float fast_tanh(float x) { return 1.0f - 2.0f / (fast_exp(2.0f * x) + 1.0f); }

}  // namespace
