// Products x W^T of a few rows of x with a frozen weight, read once.
//
// Each result is summed in one order, whatever the number of rows and whichever rows are beside it: in LANES partial sums
// along the row, added up as `sum_of` does. So a token's numbers do not depend on the batch it is computed in.

#pragma once

#include "blocks.h"
#include "memory.h"
#include "packed.h"

namespace {

inline Floats multiply_add(Floats a, Floats b, Floats sum) {
#if defined(__AVX512F__)
    return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
#elif defined(__FMA__)
    return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
#else
    return sum + a * b;
#endif
}

// Keeps a value that several products use in a register: compilers would load it anew for each of them.
inline Floats in_register(Floats value) {
#if defined(__AVX2__)
    asm("" : "+v"(value));
#endif
    return value;
}

// What a dot product adds up at once: STEP elements of each side.
template <typename T>
struct Dot {
    static constexpr int64_t STEP = LANES;
    using Elements = Floats;
    static Elements load(const T* p) { return in_register(take(p)); }
    static Floats add(Elements a, Elements b, Floats sum) { return multiply_add(a, b, sum); }
};

#ifdef LAMINA_PAIRS
template <>
struct Dot<bf16> {
    static constexpr int64_t STEP = 2 * LANES;
    using Elements = __m512bh;
    static Elements load(const bf16* p) { return (__m512bh)in_register((Floats)_mm512_loadu_ps(p)); }
    static Floats add(Elements a, Elements b, Floats sum) { return (Floats)_mm512_dpbf16_ps((__m512)sum, a, b); }
};
#endif

// The last `count` elements of a row, with zeros after them.
template <typename T>
inline typename Dot<T>::Elements load_part(const T* p, int64_t count) {
    T padded[Dot<T>::STEP] = {};
    std::memcpy(padded, p, sizeof(T) * static_cast<size_t>(count));
    return Dot<T>::load(padded);
}

constexpr int OUTPUTS = 4, ROWS = 4;  // of a tile, whose sums stay in registers
constexpr int64_t PANEL = 16;         // outputs that a thread computes at once

// Adds the lanes of sums up, halving the distance as `sum_of` does: LANES of them at once become one vector.
template <int SPAN, int... LANE>
inline Floats merged(Floats a, Floats b, std::integer_sequence<int, LANE...>) {
    // Both hold LANES / (2 SPAN) rows of 2 SPAN lanes; the result has a's rows and then b's, of SPAN lanes.
    const Floats low = __builtin_shufflevector(a, b, (LANE / SPAN * 2 * SPAN + LANE % SPAN)...);
    const Floats high = __builtin_shufflevector(a, b, (LANE / SPAN * 2 * SPAN + LANE % SPAN + SPAN)...);
    return low + high;
}

template <int SPAN>
inline Floats merged_all(const Floats* sums) {
    if constexpr (SPAN == LANES)
        return *sums;
    else
        return merged<SPAN>(merged_all<2 * SPAN>(sums), merged_all<2 * SPAN>(sums + LANES / (2 * SPAN)), EACH_LANE);
}

// to[m * to_row + n] = x[m] . w[n], for M rows of x and OUTPUTS of w. Meanwhile AHEAD rows are fetched into the second-level
// cache: one line for every step of the sum, since many at once would make the CPU wait for them.
template <int M, int AHEAD, typename T>
inline void dot_tile(const T* const* w, const T* const* ahead, const T* x, int64_t x_row, int64_t columns, float* to,
                     int64_t to_row) {
    using D = Dot<T>;
    Floats sums[M * OUTPUTS] = {};
    int64_t k = 0;
    for (; k + D::STEP <= columns; k += D::STEP) {
        typename D::Elements weights[OUTPUTS];
#pragma GCC unroll 4
        for (int n = 0; n < OUTPUTS; ++n) weights[n] = D::load(w[n] + k);
#pragma GCC unroll 4
        for (int n = 0; n < AHEAD; ++n) __builtin_prefetch(ahead[n] + k, 0, 2);
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) {
            const auto seen = D::load(x + m * x_row + k);
#pragma GCC unroll 4
            for (int n = 0; n < OUTPUTS; ++n) sums[m * OUTPUTS + n] = D::add(weights[n], seen, sums[m * OUTPUTS + n]);
        }
    }
    if (k < columns)
#pragma GCC unroll 4
        for (int n = 0; n < OUTPUTS; ++n) {
            const auto weights = load_part(w[n] + k, columns - k);
#pragma GCC unroll 4
            for (int m = 0; m < M; ++m)
                sums[m * OUTPUTS + n] = D::add(weights, load_part(x + m * x_row + k, columns - k), sums[m * OUTPUTS + n]);
        }
    if constexpr (M * OUTPUTS % LANES == 0) {
        float flat[M * OUTPUTS];
#pragma GCC unroll 4
        for (int i = 0; i < M * OUTPUTS; i += static_cast<int>(LANES)) put(flat + i, merged_all<1>(sums + i));
        for (int m = 0; m < M; ++m) std::memcpy(to + m * to_row, flat + m * OUTPUTS, sizeof(float) * OUTPUTS);
    } else {
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
            for (int n = 0; n < OUTPUTS; ++n) to[m * to_row + n] = sum_of(sums[m * OUTPUTS + n]);
    }
}

// What is read soon after the weight at hand, in pieces; tiles that fetch none of the weight fetch it.
template <typename T>
struct Ahead {
    struct Piece {
        const T *at, *end;
    };
    struct Pieces {
        Piece* first;
        int64_t count, place;
    };
    Pieces lists[2];  // the first list before the second

    // Where the next elements are, or null. What is fetched beyond the end of a piece is not missed.
    const T* next(int64_t elements) {
        for (Pieces& list : lists)
            for (; list.place < list.count; ++list.place) {
                Piece& piece = list.first[list.place];
                if (piece.at >= piece.end) continue;
                const T* at = piece.at;
                piece.at += elements;
                return at;
            }
        return nullptr;
    }
};

// The same for any number of rows of x; `count` outputs, at most OUTPUTS, of rows at a stride. `later` is where as many rows
// are that will be read soon, or null; `others`, with OTHERS, what is read after them.
template <bool OTHERS, typename T>
inline void dot_rows_beside(const T* w, int64_t w_row, int64_t count, const T* x, int64_t x_row, int64_t rows, int64_t columns,
                            float* to, int64_t to_row, const T* later, Ahead<T>* others) {
    const T *each[OUTPUTS], *ahead[OUTPUTS];
    for (int n = 0; n < OUTPUTS; ++n) {
        each[n] = w + (n < count ? n : count - 1) * w_row;
        ahead[n] = later ? later + n * w_row : each[n];
    }
    int64_t m = 0, fetched = later ? 0 : OUTPUTS;
    const int64_t tiles = rows / ROWS;
    for (; m + ROWS <= rows; m += ROWS) {
        const T* other = OTHERS && fetched >= OUTPUTS ? others->next(columns) : nullptr;
        const T* const* next = other ? &other : ahead + fetched;
        if (fetched >= OUTPUTS && !other)
            dot_tile<ROWS, 0>(each, next, x + m * x_row, x_row, columns, to + m * to_row, to_row);
        else if (fetched >= OUTPUTS || tiles >= OUTPUTS)
            dot_tile<ROWS, 1>(each, next, x + m * x_row, x_row, columns, to + m * to_row, to_row), fetched += !other;
        else if (tiles >= OUTPUTS / 2)
            dot_tile<ROWS, 2>(each, next, x + m * x_row, x_row, columns, to + m * to_row, to_row), fetched += 2;
        else
            dot_tile<ROWS, 4>(each, next, x + m * x_row, x_row, columns, to + m * to_row, to_row), fetched += 4;
    }
    x += m * x_row;
    to += m * to_row;
    const bool fetches = fetched < OUTPUTS;
    switch (rows - m) {
        case 3: return (fetches ? dot_tile<3, 4, T> : dot_tile<3, 0, T>)(each, ahead, x, x_row, columns, to, to_row);
        case 2: return (fetches ? dot_tile<2, 4, T> : dot_tile<2, 0, T>)(each, ahead, x, x_row, columns, to, to_row);
        case 1: return (fetches ? dot_tile<1, 4, T> : dot_tile<1, 0, T>)(each, ahead, x, x_row, columns, to, to_row);
        default: return;
    }
}

template <typename T>
inline void dot_rows(const T* w, int64_t w_row, int64_t count, const T* x, int64_t x_row, int64_t rows, int64_t columns,
                     float* to, int64_t to_row, const T* later = nullptr, Ahead<T>* others = nullptr) {
    (others ? dot_rows_beside<true, T> : dot_rows_beside<false, T>)(w, w_row, count, x, x_row, rows, columns, to, to_row, later,
                                                                    others);
}

// A frozen weight (rows, columns) in any storage. All members have 8 bytes, as `decoding/layouts.py` declares them.
struct Weight {
    const void* data;
    int64_t stride;   // elements from row to row, of a dense weight
    int64_t storage;  // 0: dense, 1: 4 bits, 2: 8 bits
    int64_t rows, columns;
    const float* table;
    int64_t blocksize;
    const float* absmax;
    const uint8_t* nested;
    const float *nested_code, *nested_absmax;
    double nested_offset;
    const float* scales;
    double step;
    const void* bias;  // T, or null

    // Rows [first, first + count), dense; those of a packed weight are dequantized into `scratch` (PANEL, columns).
    template <typename T>
    const T* panel(int64_t first, int64_t count, T* scratch, int64_t* row) const {
        if (storage == 0) {
            *row = stride;
            return static_cast<const T*>(data) + first * stride;
        }
        *row = columns;
        if (storage == 1) {
            const FourBits w{static_cast<const uint8_t*>(data), table, blocksize, absmax, nested, nested_code, nested_absmax,
                             static_cast<float>(nested_offset)};
            for (int64_t n = 0; n < count; ++n)
                along_row<T>(w, first + n, columns, [&](int64_t k, Floats even, Floats odd) {
                    put_interleaved(scratch + n * columns + k, even, odd);
                });
        } else {
            const auto* integers = static_cast<const int8_t*>(data) + first * columns;
            for (int64_t n = 0; n < count; ++n)
                for (int64_t k = 0; k < columns; k += LANES)
                    put(scratch + n * columns + k,
                        unpack8<T>(integers + n * columns + k, scales[first + n], static_cast<float>(step)));
        }
        return scratch;
    }
};

// Calls body(first, count) for the panels of `rows` outputs that are a thread's own, of those of all weights in a phase.
// `seen` counts the panels before these.
template <typename Body>
inline void own_panels(int64_t rows, int64_t* seen, int64_t begin, int64_t end, Body body) {
    const int64_t panels = (rows + PANEL - 1) / PANEL, before = *seen;
    *seen += panels;
    for (int64_t p = begin > before ? begin - before : 0; p < panels && before + p < end; ++p)
        body(p * PANEL, rows - p * PANEL < PANEL ? rows - p * PANEL : PANEL);
}

inline int64_t panels_of(int64_t rows) { return (rows + PANEL - 1) / PANEL; }

}  // namespace
