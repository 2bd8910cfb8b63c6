// The pointwise operations on one row, which training's kernels and generation's share, so that both round alike.

#pragma once

#include "numbers.h"

namespace {

// Activations and their derivatives. 0: SiLU, 1: GELU (tanh approximation).
template <int KIND>
inline void activate(Floats x, Floats* value, Floats* slope) {
    if (KIND == 0) {
        const Floats sigmoid = inverse(1.0f + fast_exp(-x));
        *value = x * sigmoid;
        *slope = sigmoid * (1.0f + x * (1.0f - sigmoid));
    } else {
        const Floats t = fast_tanh(0.7978845608f * (x + 0.044715f * x * x * x));
        *value = 0.5f * x * (1.0f + t);
        *slope = 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * 0.7978845608f * (1.0f + 0.134145f * x * x);
    }
}

// y = x / rms(x) (offset + weight). Returns 1 / rms(x).
template <typename T>
inline float norm_row(const T* x, T* y, const T* weight, int64_t width, float eps, float offset) {
    Floats squares = {};
    for_each_vector(width, [&](int64_t j, auto at) {
        const Floats a = at.take(x + j);
        squares += a * a;
    });
    const float r = 1.0f / std::sqrt(sum_of(squares) / static_cast<float>(width) + eps);
    if (offset == 0.0f)  // Llama rounds before it multiplies by the weight
        for_each_vector(width, [&](int64_t j, auto at) {
            at.put(y + j, rounded<T>(at.take(x + j) * r) * at.take(weight + j));
        });
    else  // Gemma rounds after
        for_each_vector(width, [&](int64_t j, auto at) {
            at.put(y + j, at.take(x + j) * r * (offset + at.take(weight + j)));
        });
    return r;
}

// out = act(gate) up
template <int KIND, typename T>
inline void gated_row(const T* gate, const T* up, T* out, int64_t width) {
    for_each_vector(width, [&](int64_t j, auto at) {
        Floats value, slope;
        activate<KIND>(at.take(gate + j), &value, &slope);
        at.put(out + j, rounded<T>(value) * at.take(up + j));
    });
}

// Rotates the two halves of the first `2 half` elements of a head, in place; direction -1 is the inverse rotation.
template <typename T>
inline void rotate_head(T* head, const T* cosine, const T* sine, int64_t half, float direction) {
    T *first = head, *second = head + half;
    for_each_vector(half, [&](int64_t j, auto at) {
        const Floats c = at.take(cosine + j), s = direction * at.take(sine + j);
        const Floats a = at.take(first + j), b = at.take(second + j);
        at.put(first + j, a * c - b * s);
        at.put(second + j, b * c + a * s);
    });
}

}  // namespace
