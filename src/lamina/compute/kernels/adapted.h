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

// What a linear layer reads.
template <typename T>
struct Input {
    const T* x;       // (rows, width), dense
    const T* scaled;  // the same, for rows whose inputs are scaled
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

    // Some rank-sized products: rows [first, last) of A for the rows of x of one span. `later` is the A of the products after.
    void narrow(const Input<T>& in, const Span& span, int64_t first, int64_t last, const T* later) const {
        const T* A = static_cast<const T*>(span.form->A);
        for (int64_t r = first; r < last; r += OUTPUTS)
            dot_rows(A + r * in.width, in.width, OUTPUTS, in.of(span), in.width, span.end - span.begin, in.width,
                     h + span.begin * h_row + r, h_row, r + OUTPUTS < last ? A + (r + OUTPUTS) * in.width : later);
    }

    // One panel of outputs of all rows: sums (rows, PANEL). Tiles that fetch none of the weight fetch what `ahead` has.
    void panel(const Input<T>& in, int64_t first, int64_t count, T* scratch, float* sums, Ahead<T>* ahead) const {
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
                while (end < span_count && !(spans[end].form && spans[end].form->weight) &&
                       in.of(spans[end]) == x + (spans[end].begin - spans[s].begin) * in.width)
                    ++end;
            }
            const int64_t begin = spans[s].begin, rows = spans[end - 1].end - begin;
            for (int64_t m = 0; m < rows; m += ROWS_AT_ONCE)
                for (int64_t n = 0; n < count; n += OUTPUTS)
                    dot_rows(w + n * w_row, w_row, count - n < OUTPUTS ? count - n : OUTPUTS, x + m * in.width, in.width,
                             rows - m < ROWS_AT_ONCE ? rows - m : ROWS_AT_ONCE, in.width, sums + (begin + m) * PANEL + n, PANEL,
                             m == 0 && w == own && reads_ahead ? own + (n + PANELS_AHEAD * PANEL) * row : nullptr, ahead);
            s = end;
        }
        for (int64_t s = 0; s < span_count; ++s) finish(in, spans[s], first, count, sums, ahead == nullptr);
    }

    int64_t rank(int64_t span) const {
        const Form* form = spans[span].form;
        return form && form->is_low_rank() ? form->rank : 0;
    }

   private:
    void finish(const Input<T>& in, const Span& span, int64_t first, int64_t count, float* sums, bool fetches) const {
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
        if (fetches && B && first + PANEL < weight->rows)  // the next panel's: the CPU does not read ahead for so many
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

// Shares out the rank-sized products of several linear layers: calls body(linear, span, first, last) for the rows of A that are
// a thread's own, a multiple of OUTPUTS, in order. A share is next to each other in memory, so that it can be fetched ahead.
template <typename T, typename Body>
inline void own_ranks(const Adapted<T>* linears, int64_t count, int64_t thread, int64_t threads, Body body) {
    const auto cost = [](const Span& span) { return span.end - span.begin + ROWS; };  // of OUTPUTS rows of A
    int64_t all = 0;
    for (int64_t l = 0; l < count; ++l)
        for (int64_t s = 0; s < linears[l].span_count; ++s) all += linears[l].rank(s) / OUTPUTS * cost(linears[l].spans[s]);
    const int64_t begin = all * thread / threads, end = all * (thread + 1) / threads;
    int64_t seen = 0;
    for (int64_t l = 0; l < count; ++l)
        for (int64_t s = 0; s < linears[l].span_count; ++s) {
            const Span& span = linears[l].spans[s];
            const int64_t each = cost(span), groups = linears[l].rank(s) / OUTPUTS;
            // A group is the thread's in whose share it begins.
            const auto before = [&](int64_t place) {
                return place <= seen ? 0 : std::min(groups, (place - seen + each - 1) / each);
            };
            if (before(begin) < before(end)) body(linears[l], span, before(begin) * OUTPUTS, before(end) * OUTPUTS);
            seen += groups * each;
        }
}

// A copy of x, scaled for the rows whose inputs a form scales; with `all`, the other rows are in it as they are.
template <typename T>
inline void scale_inputs(const T* x, T* scaled, int64_t width, const Span* spans, int64_t count, bool all, int64_t thread,
                         int64_t threads) {
    for (int64_t s = 0; s < count; ++s) {
        const float* factors = spans[s].form ? spans[s].form->inputs : nullptr;
        if (!factors && !all) continue;
        for (int64_t m = spans[s].begin; m < spans[s].end; ++m) {
            if (m % threads != thread) continue;
            const T* from = x + m * width;
            T* to = scaled + m * width;
            if (factors)
                for_each_vector(width, [&](int64_t j, auto at) { at.put(to + j, at.take(from + j) * at.take(factors + j)); });
            else
                std::memcpy(to, from, sizeof(T) * width);
        }
    }
}

}  // namespace
