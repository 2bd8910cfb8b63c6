// Everything between two matrix products of a decoder layer, in one pass over memory each, forward and backward.
//
// Rows are tokens (or heads of tokens), split over threads; all arithmetic is float32, whatever is stored. Plain loops
// that compilers vectorise; `plain.py` says the same in torch and is what these are tested against.

#include "numbers.h"

namespace {

// Activations with their derivatives. 0: SiLU, 1: GELU by tanh.
template <int KIND>
inline void activate(float x, float* value, float* slope) {
    if (KIND == 0) {
        const float sigmoid = 1.0f / (1.0f + fast_exp(-x));
        *value = x * sigmoid;
        *slope = sigmoid * (1.0f + x * (1.0f - sigmoid));
    } else {
        const float t = fast_tanh(0.7978845608f * (x + 0.044715f * x * x * x));
        *value = 0.5f * x * (1.0f + t);
        *slope = 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * 0.7978845608f * (1.0f + 0.134145f * x * x);
    }
}

template <typename T>
void rms_norm(const T* x, int64_t x_row, T* y, int64_t y_row, const T* weight, float* scale, int64_t rows, int64_t width,
              float eps, float offset) {
#pragma omp parallel for
    for (int64_t i = 0; i < rows; ++i) {
        const T* xi = x + i * x_row;
        T* yi = y + i * y_row;
        float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
        for (int64_t j = 0; j < width; ++j) squares += load(xi + j) * load(xi + j);
        const float r = 1.0f / std::sqrt(squares / static_cast<float>(width) + eps);
        if (scale) scale[i] = r;
        if (offset == 0.0f) {  // Llama rounds before the weight
#pragma omp simd
            for (int64_t j = 0; j < width; ++j) store(yi + j, rounded<T>(load(xi + j) * r) * load(weight + j));
        } else {  // Gemma after it
#pragma omp simd
            for (int64_t j = 0; j < width; ++j) store(yi + j, load(xi + j) * r * (offset + load(weight + j)));
        }
    }
}

// dx = scale (g w - x scale^2 mean(g w x)) + residual
template <typename T>
void rms_norm_backward(const T* g, int64_t g_row, const T* x, int64_t x_row, const T* weight, const float* scale,
                       const T* residual, int64_t residual_row, T* dx, int64_t dx_row, int64_t rows, int64_t width,
                       float offset) {
#pragma omp parallel for
    for (int64_t i = 0; i < rows; ++i) {
        const T* gi = g + i * g_row;
        const T* xi = x + i * x_row;
        T* di = dx + i * dx_row;
        const float r = scale[i];
        float dot = 0.0f;
#pragma omp simd reduction(+ : dot)
        for (int64_t j = 0; j < width; ++j) dot += load(gi + j) * (offset + load(weight + j)) * load(xi + j);
        const float c = dot * r * r / static_cast<float>(width);
        if (residual) {
            const T* ri = residual + i * residual_row;
#pragma omp simd
            for (int64_t j = 0; j < width; ++j)
                store(di + j, r * (load(gi + j) * (offset + load(weight + j)) - load(xi + j) * c) + load(ri + j));
        } else {
#pragma omp simd
            for (int64_t j = 0; j < width; ++j)
                store(di + j, r * (load(gi + j) * (offset + load(weight + j)) - load(xi + j) * c));
        }
    }
}

template <typename T, int KIND>
void gated(const T* gate, const T* up, int64_t in_row, T* out, int64_t out_row, int64_t rows, int64_t width) {
#pragma omp parallel for
    for (int64_t i = 0; i < rows; ++i) {
        const T *gi = gate + i * in_row, *ui = up + i * in_row;
        T* oi = out + i * out_row;
#pragma omp simd
        for (int64_t j = 0; j < width; ++j) {
            float value, slope;
            activate<KIND>(load(gi + j), &value, &slope);
            store(oi + j, rounded<T>(value) * load(ui + j));
        }
    }
}

// From d of the product: d gate, d up, and the product itself once more.
template <typename T, int KIND>
void gated_backward(const T* gate, const T* up, int64_t in_row, const T* d, int64_t d_row, T* dgate, T* dup,
                    int64_t grad_row, T* out, int64_t out_row, int64_t rows, int64_t width) {
#pragma omp parallel for
    for (int64_t i = 0; i < rows; ++i) {
        const T *gi = gate + i * in_row, *ui = up + i * in_row, *di = d + i * d_row;
        T *dgi = dgate + i * grad_row, *dui = dup + i * grad_row, *oi = out + i * out_row;
#pragma omp simd
        for (int64_t j = 0; j < width; ++j) {
            float value, slope;
            activate<KIND>(load(gi + j), &value, &slope);
            const float grad = load(di + j), u = load(ui + j);
            store(oi + j, rounded<T>(value) * u);
            store(dgi + j, grad * u * slope);
            store(dui + j, grad * value);
        }
    }
}

// Turns the two halves of the first `rotated` elements of every head, in place; direction -1 turns back.
template <typename T>
void rotary(T* x, int64_t x_row, const T* cosine, const T* sine, int64_t angle_row, int64_t tokens, int64_t heads,
            int64_t head_size, int64_t rotated, float direction) {
    const int64_t half = rotated / 2;
#pragma omp parallel for
    for (int64_t i = 0; i < tokens; ++i) {
        const T *ci = cosine + i * angle_row, *si = sine + i * angle_row;
        for (int64_t h = 0; h < heads; ++h) {
            T* first = x + i * x_row + h * head_size;
            T* second = first + half;
#pragma omp simd
            for (int64_t j = 0; j < half; ++j) {
                const float c = load(ci + j), s = direction * load(si + j), a = load(first + j), b = load(second + j);
                store(first + j, a * c - b * s);
                store(second + j, b * c + a * s);
            }
        }
    }
}

template <typename T>
void scale_columns(T* y, int64_t y_row, const float* scale, int64_t rows, int64_t width) {
#pragma omp parallel for
    for (int64_t i = 0; i < rows; ++i) {
        T* yi = y + i * y_row;
#pragma omp simd
        for (int64_t j = 0; j < width; ++j) store(yi + j, load(yi + j) * scale[j]);
    }
}

// out = g scale, and sums[j] = the sum of g y over column j. Threads share columns, so that sums have one order.
template <typename T>
void scale_columns_backward(const T* g, int64_t g_row, const T* y, int64_t y_row, const float* scale, T* out,
                            int64_t out_row, float* sums, int64_t rows, int64_t width) {
    constexpr int64_t block = 256;
#pragma omp parallel for
    for (int64_t first = 0; first < width; first += block) {
        const int64_t columns = width - first < block ? width - first : block;
        float sum[block] = {};
        for (int64_t i = 0; i < rows; ++i) {
            const T *gi = g + i * g_row + first, *yi = y + i * y_row + first;
            T* oi = out + i * out_row + first;
#pragma omp simd
            for (int64_t j = 0; j < columns; ++j) {
                const float grad = load(gi + j);
                sum[j] += grad * load(yi + j);
                store(oi + j, grad * scale[first + j]);
            }
        }
        for (int64_t j = 0; j < columns; ++j) sums[first + j] = sum[j];
    }
}

// Logits become their gradient, softmax - one-hot, in place; loss[i] = -log softmax[target].
// A logit is softcap tanh(multiplier product / softcap), or multiplier product without a softcap (0).
template <typename T>
void cross_entropy(T* logits, const int64_t* target, float* loss, int64_t rows, int64_t width, float multiplier,
                   float softcap, int64_t wants_gradient) {
    const float inner = softcap > 0.0f ? multiplier / softcap : multiplier;
#pragma omp parallel for
    for (int64_t i = 0; i < rows; ++i) {
        T* row = logits + i * width;
        const auto logit = [=](float product) { return softcap > 0.0f ? softcap * fast_tanh(product * inner) : product * inner; };
        const float at_target = logit(load(row + target[i]));
        float largest = -INFINITY, sum = 0.0f;
#pragma omp simd reduction(max : largest)
        for (int64_t j = 0; j < width; ++j) {
            const float value = load(row + j) * inner;
            largest = value > largest ? value : largest;
        }
        if (softcap > 0.0f) largest = softcap * fast_tanh(largest);
        if (softcap > 0.0f) {
#pragma omp simd reduction(+ : sum)
            for (int64_t j = 0; j < width; ++j) sum += fast_exp(softcap * fast_tanh(load(row + j) * inner) - largest);
        } else {
#pragma omp simd reduction(+ : sum)
            for (int64_t j = 0; j < width; ++j) sum += fast_exp(load(row + j) * inner - largest);
        }
        const float normaliser = largest + std::log(sum);
        // A NaN among the logits must not be lost to the comparisons above.
        loss[i] = normaliser - at_target;
        if (!wants_gradient) continue;
        const float hit = load(row + target[i]);
        if (softcap > 0.0f) {
#pragma omp simd
            for (int64_t j = 0; j < width; ++j) {
                const float t = fast_tanh(load(row + j) * inner);
                store(row + j, fast_exp(softcap * t - normaliser) * (1.0f - t * t) * multiplier);
            }
        } else {
#pragma omp simd
            for (int64_t j = 0; j < width; ++j) store(row + j, fast_exp(load(row + j) * inner - normaliser) * multiplier);
        }
        const float t = softcap > 0.0f ? fast_tanh(hit * inner) : 0.0f;
        const float p = fast_exp(at_target - normaliser);
        store(row + target[i], (p - 1.0f) * (1.0f - t * t) * multiplier);
    }
}

}  // namespace

#define FOR_DTYPES(NAME, PARAMETERS, ...)              \
    extern "C" void NAME##_bfloat16 PARAMETERS {       \
        using T = bf16;                                \
        __VA_ARGS__;                                   \
    }                                                  \
    extern "C" void NAME##_float32 PARAMETERS {        \
        using T = float;                               \
        __VA_ARGS__;                                   \
    }

FOR_DTYPES(lamina_rms_norm,
           (const void* x, int64_t x_row, void* y, int64_t y_row, const void* weight, float* scale, int64_t rows,
            int64_t width, float eps, float offset),
           rms_norm((const T*)x, x_row, (T*)y, y_row, (const T*)weight, scale, rows, width, eps, offset))

FOR_DTYPES(lamina_rms_norm_backward,
           (const void* g, int64_t g_row, const void* x, int64_t x_row, const void* weight, const float* scale,
            const void* residual, int64_t residual_row, void* dx, int64_t dx_row, int64_t rows, int64_t width,
            float offset),
           rms_norm_backward((const T*)g, g_row, (const T*)x, x_row, (const T*)weight, scale, (const T*)residual,
                             residual_row, (T*)dx, dx_row, rows, width, offset))

FOR_DTYPES(lamina_gated,
           (const void* gate, const void* up, int64_t in_row, void* out, int64_t out_row, int64_t rows, int64_t width,
            int64_t kind),
           if (kind == 0) gated<T, 0>((const T*)gate, (const T*)up, in_row, (T*)out, out_row, rows, width);
           else gated<T, 1>((const T*)gate, (const T*)up, in_row, (T*)out, out_row, rows, width))

FOR_DTYPES(lamina_gated_backward,
           (const void* gate, const void* up, int64_t in_row, const void* d, int64_t d_row, void* dgate, void* dup,
            int64_t grad_row, void* out, int64_t out_row, int64_t rows, int64_t width, int64_t kind),
           if (kind == 0) gated_backward<T, 0>((const T*)gate, (const T*)up, in_row, (const T*)d, d_row, (T*)dgate,
                                               (T*)dup, grad_row, (T*)out, out_row, rows, width);
           else gated_backward<T, 1>((const T*)gate, (const T*)up, in_row, (const T*)d, d_row, (T*)dgate, (T*)dup,
                                     grad_row, (T*)out, out_row, rows, width))

FOR_DTYPES(lamina_rotary,
           (void* x, int64_t x_row, const void* cosine, const void* sine, int64_t angle_row, int64_t tokens,
            int64_t heads, int64_t head_size, int64_t rotated, float direction),
           rotary((T*)x, x_row, (const T*)cosine, (const T*)sine, angle_row, tokens, heads, head_size, rotated,
                  direction))

FOR_DTYPES(lamina_scale_columns, (void* y, int64_t y_row, const float* scale, int64_t rows, int64_t width),
           scale_columns((T*)y, y_row, scale, rows, width))

FOR_DTYPES(lamina_scale_columns_backward,
           (const void* g, int64_t g_row, const void* y, int64_t y_row, const float* scale, void* out, int64_t out_row,
            float* sums, int64_t rows, int64_t width),
           scale_columns_backward((const T*)g, g_row, (const T*)y, y_row, scale, (T*)out, out_row, sums, rows, width))

FOR_DTYPES(lamina_cross_entropy,
           (void* logits, const int64_t* target, float* loss, int64_t rows, int64_t width, float multiplier,
            float softcap, int64_t wants_gradient),
           cross_entropy((T*)logits, target, loss, rows, width, multiplier, softcap, wants_gradient))
