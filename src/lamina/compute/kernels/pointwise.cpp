// The pointwise operations between the matrix products of a decoder layer, forward and backward, each in one pass over memory.
//
// Rows are tokens (or heads of tokens) and are split over threads. All arithmetic is float32, whatever the stored dtype.
// `plain.py` computes the same in torch; the tests compare these with it.

#include "rows.h"

namespace {

template <typename T>
void rms_norm(const T* x, int64_t x_row, T* y, int64_t y_row, const T* weight, float* scale, int64_t rows, int64_t width,
              float eps, float offset) {
#pragma omp parallel for
    for (int64_t i = 0; i < rows; ++i) scale[i] = norm_row(x + i * x_row, y + i * y_row, weight, width, eps, offset);
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
        const T* ri = residual ? residual + i * residual_row : nullptr;
        T* di = dx + i * dx_row;
        const float r = scale[i];
        Floats products = {};
        for_each_vector(width, [&](int64_t j, auto at) {
            products += at.take(gi + j) * (offset + at.take(weight + j)) * at.take(xi + j);
        });
        const float c = sum_of(products) * r * r / static_cast<float>(width);
        for_each_vector(width, [&](int64_t j, auto at) {
            const Floats d = r * (at.take(gi + j) * (offset + at.take(weight + j)) - at.take(xi + j) * c);
            at.put(di + j, ri ? d + at.take(ri + j) : d);
        });
    }
}

template <typename T, int KIND>
void gated(const T* gate, int64_t gate_row, const T* up, int64_t up_row, T* out, int64_t out_row, int64_t rows,
           int64_t width) {
#pragma omp parallel for
    for (int64_t i = 0; i < rows; ++i) gated_row<KIND>(gate + i * gate_row, up + i * up_row, out + i * out_row, width);
}

// In place: gate and up are overwritten by their gradients, and d, the gradient of the product, by the product itself.
template <typename T, int KIND>
void gated_backward(T* gate, int64_t gate_row, T* up, int64_t up_row, T* d, int64_t d_row, int64_t rows,
                    int64_t width) {
#pragma omp parallel for
    for (int64_t i = 0; i < rows; ++i) {
        T *gi = gate + i * gate_row, *ui = up + i * up_row, *di = d + i * d_row;
        for_each_vector(width, [&](int64_t j, auto at) {
            Floats value, slope;
            activate<KIND>(at.take(gi + j), &value, &slope);
            const Floats grad = at.take(di + j), u = at.take(ui + j);
            at.put(di + j, rounded<T>(value) * u);
            at.put(gi + j, grad * u * slope);
            at.put(ui + j, grad * value);
        });
    }
}

// Rotates the first `rotated` elements of every head, in place; direction -1 is the inverse rotation.
template <typename T>
void rotary(T* x, int64_t x_row, const T* cosine, int64_t cosine_row, const T* sine, int64_t sine_row, int64_t tokens,
            int64_t heads, int64_t head_size, int64_t rotated, float direction) {
#pragma omp parallel for
    for (int64_t i = 0; i < tokens; ++i)
        for (int64_t h = 0; h < heads; ++h)
            rotate_head(x + i * x_row + h * head_size, cosine + i * cosine_row, sine + i * sine_row, rotated / 2, direction);
}

template <typename T>
void scale_columns(T* y, int64_t y_row, const float* scale, int64_t rows, int64_t width) {
#pragma omp parallel for
    for (int64_t i = 0; i < rows; ++i) {
        T* yi = y + i * y_row;
        for_each_vector(width, [&](int64_t j, auto at) { at.put(yi + j, at.take(yi + j) * at.take(scale + j)); });
    }
}

// out = g scale, and sums[j] = the sum of g y over column j. One thread sums a column, so the order of summation is fixed.
template <typename T>
void scale_columns_backward(const T* g, int64_t g_row, const T* y, int64_t y_row, const float* scale, T* out,
                            int64_t out_row, float* sums, int64_t rows, int64_t width) {
    constexpr int64_t block = 256;
#pragma omp parallel for
    for (int64_t first = 0; first < width; first += block) {
        const int64_t columns = width - first < block ? width - first : block;
        Floats sum[block / LANES] = {};
        for (int64_t i = 0; i < rows; ++i) {
            const T *gi = g + i * g_row + first, *yi = y + i * y_row + first;
            T* oi = out + i * out_row + first;
            for_each_vector(columns, [&](int64_t j, auto at) {
                const Floats grad = at.take(gi + j);
                sum[j / LANES] += grad * at.take(yi + j);
                at.put(oi + j, grad * at.take(scale + first + j));
            });
        }
        for_each_vector(columns, [&](int64_t j, auto at) { at.put(sums + first + j, sum[j / LANES]); });
    }
}

// Logits become their gradient, softmax - one-hot, in place; loss[i] = -log softmax[target].
// A logit is softcap tanh(multiplier product / softcap), or multiplier product without a softcap.
template <bool CAPPED, typename T>
void cross_entropy(T* logits, int64_t logits_row, const int64_t* target, float* loss, int64_t rows, int64_t width,
                   float multiplier, float softcap, int64_t wants_gradient) {
    const float inner = CAPPED ? multiplier / softcap : multiplier;
    const auto cap = [=](Floats scaled) { return CAPPED ? softcap * fast_tanh(scaled) : scaled; };
#pragma omp parallel for
    for (int64_t i = 0; i < rows; ++i) {
        T* row = logits + i * logits_row;
        const Floats hit = broadcast(load(row + target[i]));
        const float at_target = cap(hit * inner)[0];
        Floats most = broadcast(-INFINITY), sums = {};
        for_each_vector(width, [&](int64_t j, auto at) { most = larger(at.take(row + j, load(row)) * inner, most); });
        const Floats largest = cap(broadcast(largest_of(most)));
        for_each_vector(
            width, [&](int64_t j, auto at) { sums += at.only(fast_exp(cap(at.take(row + j) * inner) - largest)); });
        const float normalizer = largest[0] + std::log(sum_of(sums));
        // Computed from the sum, so that a NaN in the logits, which the comparisons above drop, still reaches the loss.
        loss[i] = normalizer - at_target;
        if (!wants_gradient) continue;
        const auto gradient = [=](Floats product, float one) {
            const Floats value = cap(product * inner), t = CAPPED ? value / softcap : Floats{};
            return (fast_exp(value - normalizer) - one) * (1.0f - t * t) * multiplier;
        };
        const float d_hit = gradient(hit, 1.0f)[0];
        for_each_vector(width, [&](int64_t j, auto at) { at.put(row + j, gradient(at.take(row + j), 0.0f)); });
        store(row + target[i], d_hit);
    }
}

}  // namespace

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
           (const void* gate, int64_t gate_row, const void* up, int64_t up_row, void* out, int64_t out_row, int64_t rows,
            int64_t width, int64_t kind),
           if (kind == 0) gated<T, 0>((const T*)gate, gate_row, (const T*)up, up_row, (T*)out, out_row, rows, width);
           else gated<T, 1>((const T*)gate, gate_row, (const T*)up, up_row, (T*)out, out_row, rows, width))

FOR_DTYPES(lamina_gated_backward,
           (void* gate, int64_t gate_row, void* up, int64_t up_row, void* d, int64_t d_row, int64_t rows, int64_t width,
            int64_t kind),
           if (kind == 0) gated_backward<T, 0>((T*)gate, gate_row, (T*)up, up_row, (T*)d, d_row, rows, width);
           else gated_backward<T, 1>((T*)gate, gate_row, (T*)up, up_row, (T*)d, d_row, rows, width))

FOR_DTYPES(lamina_rotary,
           (void* x, int64_t x_row, const void* cosine, int64_t cosine_row, const void* sine, int64_t sine_row,
            int64_t tokens, int64_t heads, int64_t head_size, int64_t rotated, float direction),
           rotary((T*)x, x_row, (const T*)cosine, cosine_row, (const T*)sine, sine_row, tokens, heads, head_size, rotated,
                  direction))

FOR_DTYPES(lamina_scale_columns, (void* y, int64_t y_row, const float* scale, int64_t rows, int64_t width),
           scale_columns((T*)y, y_row, scale, rows, width))

FOR_DTYPES(lamina_scale_columns_backward,
           (const void* g, int64_t g_row, const void* y, int64_t y_row, const float* scale, void* out, int64_t out_row,
            float* sums, int64_t rows, int64_t width),
           scale_columns_backward((const T*)g, g_row, (const T*)y, y_row, scale, (T*)out, out_row, sums, rows, width))

FOR_DTYPES(lamina_cross_entropy,
           (void* logits, int64_t logits_row, const int64_t* target, float* loss, int64_t rows, int64_t width,
            float multiplier, float softcap, int64_t wants_gradient),
           const auto run = softcap > 0.0f ? cross_entropy<true, T> : cross_entropy<false, T>;
           run((T*)logits, logits_row, target, loss, rows, width, multiplier, softcap, wants_gradient))
