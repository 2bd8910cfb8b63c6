// A linear layer whose rows have different adapters: y = o (c (i x) W^T + (i x) A^T B^T + x D^T) + b) + d, each row by its own.

#pragma once

#include "products.h"

namespace {

constexpr int64_t PANELS_AHEAD = 2;    // how far before its turn a panel of weights is fetched
constexpr int64_t ROWS_AT_ONCE = 64;  // of x, which stay in the cache while a panel is computed

// How one adapter acts on one linear layer; null where it does not. All members have 8 bytes.
struct Form {
    const void* A;  // T, (rank, I), the rank filled up to a multiple of OUTPUTS with zeros
    const void* B;  // T, (panels of O, rank, PANEL): scaled and transposed
    int64_t rank;
    const float* columns;  // c, (O,)
    const float* inputs;   // i, (I,)
    const float* outputs;  // o, (O,)
    const void* delta;     // D: T, (O, I)
    const float* added;    // d, (O,)
    const void* weight;    // T, (O, I): in place of W
    const void* bias;      // T, (O,): in place of the layer's own

    bool is_low_rank() const { return rank > 0; }
};

// Rows [begin, end) of a step have one adapter. `forms` is that adapter's form for the layer in question, or null.
struct Span {
    int64_t begin, end;
    const Form* form;
};

// What a thread needs for the rows of a step.
template <typename T>
struct Input {
    const T* x;  // (rows, width), dense
    T* scaled;   // the same, for rows whose inputs are scaled
    int64_t width;
    const T* of(const Span& span) const { return (span.form && span.form->inputs ? scaled : x) + span.begin * width; }
};

// One linear layer of a phase: its weight, the forms of the rows, and where the rank-sized products go.
template <typename T>
struct Adapted {
    const Weight* weight;
    const Span* spans;
    int64_t span_count;
    float* h;       // (rows, h_row)
    int64_t h_row;  // the largest rank of the step

    bool has_forms() const {
        for (int64_t s = 0; s < span_count; ++s)
            if (spans[s].form) return true;
        return false;
    }

    // The rank-sized products of a thread, h = x A^T, shared out by groups of OUTPUTS.
    void narrow(const Input<T>& in, int64_t* seen, int64_t thread, int64_t threads) const {
        const Span* last = nullptr;  // a product waits until the one after it is known, whose rows it fetches
        const T* last_A = nullptr;
        int64_t last_r = 0;
        const auto run = [&](const T* later) {
            if (last)
                dot_rows(last_A, in.width, OUTPUTS, in.of(*last), in.width, last->end - last->begin, in.width,
                         h + last->begin * h_row + last_r, h_row, later);
        };
        for (int64_t s = 0; s < span_count; ++s) {
            const Form* form = spans[s].form;
            if (!form || !form->is_low_rank()) continue;
            for (int64_t r = 0; r < form->rank; r += OUTPUTS)
                if ((*seen)++ % threads == thread) {
                    const T* A = static_cast<const T*>(form->A) + r * in.width;
                    run(A);
                    last = spans + s;
                    last_A = A;
                    last_r = r;
                }
        }
        run(nullptr);
    }

    // One panel of outputs of all rows: sums (rows, PANEL).
    void panel(const Input<T>& in, int64_t first, int64_t count, T* scratch, float* sums) const {
        int64_t row = 0;
        const T* own = weight->panel(first, count, scratch, &row);
        const bool reads_ahead = weight->storage == 0 && first + (PANELS_AHEAD + 1) * PANEL <= weight->rows;
        for (int64_t s = 0; s < span_count;) {  // neighbors that read the same weight and input go together
            const T* x = in.of(spans[s]);
            const Form* form = spans[s].form;
            const T* w = own;
            int64_t w_row = row, end = s + 1;
            if (form && form->weight) {
                w = static_cast<const T*>(form->weight) + first * in.width;
                w_row = in.width;
            } else {
                const bool scaled = form && form->inputs;
                while (end < span_count && !(spans[end].form && (spans[end].form->weight)) &&
                       (spans[end].form && spans[end].form->inputs) == scaled)
                    ++end;
            }
            const int64_t begin = spans[s].begin, rows = spans[end - 1].end - begin;
            for (int64_t m = 0; m < rows; m += ROWS_AT_ONCE)
                for (int64_t n = 0; n < count; n += OUTPUTS)
                    dot_rows(w + n * w_row, w_row, count - n < OUTPUTS ? count - n : OUTPUTS, x + m * in.width, in.width,
                             rows - m < ROWS_AT_ONCE ? rows - m : ROWS_AT_ONCE, in.width, sums + (begin + m) * PANEL + n, PANEL,
                             m == 0 && w == own && reads_ahead ? own + (n + PANELS_AHEAD * PANEL) * row : nullptr);
            s = end;
        }
        for (int64_t s = 0; s < span_count; ++s) finish(in, spans[s], first, count, sums);
    }

   private:
    void finish(const Input<T>& in, const Span& span, int64_t first, int64_t count, float* sums) const {
        const Form* form = span.form;
        const T* bias = static_cast<const T*>(form && form->bias ? form->bias : weight->bias);
        const float *columns = form ? form->columns : nullptr, *outputs = form ? form->outputs : nullptr,
                    *added = form ? form->added : nullptr;
        if (form && form->delta) {
            float more[ROWS * PANEL];
            const T* delta = static_cast<const T*>(form->delta) + first * in.width;
            for (int64_t m = span.begin; m < span.end; m += ROWS) {
                const int64_t rows = span.end - m < ROWS ? span.end - m : ROWS;
                for (int64_t n = 0; n < count; n += OUTPUTS)
                    dot_rows(delta + n * in.width, in.width, count - n < OUTPUTS ? count - n : OUTPUTS,
                             in.of(span) + (m - span.begin) * in.width, in.width, rows, in.width, more + n, PANEL);
                for (int64_t i = 0; i < rows; ++i)
                    for (int64_t n = 0; n < count; ++n) sums[(m + i) * PANEL + n] += more[i * PANEL + n];
            }
        }
        if (!bias && !form) return;
        const T* B = form && form->is_low_rank() ? static_cast<const T*>(form->B) + first * form->rank : nullptr;
        if (B && first + PANEL < weight->rows)  // the next panel's, for which the CPU does not read ahead: there are many
            for (int64_t at = 0; at < form->rank * PANEL; at += 64 / static_cast<int64_t>(sizeof(T)))
                __builtin_prefetch(B + form->rank * PANEL + at, 0, 2);
        for (int64_t m = span.begin; m < span.end; ++m)
            for (int64_t n = 0; n < PANEL; n += LANES) {
                Floats value = take(sums + m * PANEL + n);
                if (B) {  // four sums, so that none waits for the one before
                    Floats path[OUTPUTS] = {};
                    for (int64_t r = 0; r < form->rank; r += OUTPUTS)
#pragma GCC unroll 4
                        for (int i = 0; i < OUTPUTS; ++i)
                            path[i] = multiply_add(broadcast(h[m * h_row + r + i]), take(B + (r + i) * PANEL + n), path[i]);
                    value += (path[0] + path[1]) + (path[2] + path[3]);
                }
                const int64_t at = first + n, left = count - n;
                const auto finished = [&](auto part) {
                    if (columns) value *= part.take(columns + at);
                    if (bias) value += part.take(bias + at);
                    if (outputs) value *= part.take(outputs + at);
                    if (added) value += part.take(added + at);
                    put(sums + m * PANEL + n, value);
                };
                if (left >= LANES)
                    finished(Whole{});
                else if (left > 0)
                    finished(Part{left});
            }
    }
};

inline bool any_scaled(const Span* spans, int64_t count) {
    for (int64_t s = 0; s < count; ++s)
        if (spans[s].form && spans[s].form->inputs) return true;
    return false;
}

// x scaled for the rows whose inputs a form scales.
template <typename T>
inline void scale_inputs(const Input<T>& in, const Span* spans, int64_t count, int64_t thread, int64_t threads) {
    for (int64_t s = 0; s < count; ++s) {
        if (!spans[s].form || !spans[s].form->inputs) continue;
        const float* factors = spans[s].form->inputs;
        for (int64_t m = spans[s].begin; m < spans[s].end; ++m)
            if (m % threads == thread)
                for_each_vector(in.width, [&](int64_t j, auto at) {
                    at.put(in.scaled + m * in.width + j, at.take(in.x + m * in.width + j) * at.take(factors + j));
                });
    }
}

}  // namespace
