// Causal attention of documents laid end to end, forward and backward.
//
// Everything is done in blocks of 32 x 32 scores. A thread takes one document and one head; a block row of scores fits
// its cache, so softmax needs no running maximum. The backward makes the weights again, transposed, from the scores'
// normalisers (`lse`), so nothing of size length^2 is ever stored.
//
// Two ways to multiply blocks, behind one interface: AMX tiles for bfloat16 where the CPU has them, else plain loops that
// compilers vectorise, in float32. Both add up in float32.

#include <initializer_list>
#include <type_traits>
#include <utility>

#include "memory.h"
#include "numbers.h"
#include "tiles.h"

namespace {

constexpr int64_t BLOCK = 32;
constexpr int64_t TILE = BLOCK * 16;  // elements of a packed tile: 32 of the summed dimension by 16 columns

inline int64_t blocks(int64_t length) { return (length + BLOCK - 1) / BLOCK; }

// Exchanges the off-diagonal S x S squares of two rows of a 16 x 16 matrix.
template <int S, int... L>
inline void exchange(Words* a, Words* b, std::integer_sequence<int, L...>) {
    const Words low = __builtin_shufflevector(*a, *b, (L & S ? 16 + L - S : L)...);
    const Words high = __builtin_shufflevector(*a, *b, (L & S ? 16 + L : L + S)...);
    *a = low;
    *b = high;
}

template <int S>
inline void exchange_all(Words* rows) {
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i)
        if (!(i & S)) exchange<S>(rows + i, rows + i + S, std::make_integer_sequence<int, 16>());
}

// 16 x 16 words of 32 bits, rows `from_row` and `to_row` apart.
inline void transpose(uint32_t* to, int64_t to_row, const uint32_t* from, int64_t from_row) {
    typedef Words Unaligned __attribute__((aligned(2), may_alias));
    Words rows[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) rows[i] = *(const Unaligned*)(from + i * from_row);
    exchange_all<8>(rows);
    exchange_all<4>(rows);
    exchange_all<2>(rows);
    exchange_all<1>(rows);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) *(Unaligned*)(to + i * to_row) = rows[i];
}

inline uint32_t pair(bf16 low, bf16 high) { return low.bits | static_cast<uint32_t>(high.bits) << 16; }

// Operands of a block product: A lies in rows; B is packed in tiles, tile (column block of 16, summed block of 32).
struct Loops {
    using Element = float;

    static void begin() {}
    static void end() {}

    static constexpr int64_t WORD = 1;  // elements in 32 bits

    // Two rows of B, k and k + 1, 16 columns.
    static void pack_pair(float* tile, int64_t k, const float* first, const float* second) {
        std::memcpy(tile + k * 16, first, 64);
        std::memcpy(tile + k * 16 + 16, second, 64);
    }

    // The rows of a block of keys become columns: (32, size) -> (size, 32).
    static void turn(float* to, const float* from, int64_t row, int64_t size) {
        for (int64_t r = 0; r < BLOCK; r += 16)
            for (int64_t d = 0; d < size; d += 16)
                transpose((uint32_t*)(to + d * BLOCK + r), BLOCK, (const uint32_t*)(from + r * row + d), row);
    }

    // C (32, 32) = A (32, 32 steps) B, or += with `add`. B: two columns of tiles, `column` elements apart.
    static void multiply(float* C, int64_t c_row, const float* A, int64_t a_row, const float* B, int64_t column,
                         int64_t steps, bool add) {
        for (int64_t half = 0; half < 2; ++half)
            for (int64_t m = 0; m < BLOCK; m += 8) {
                float sum[8][16];
                for (int64_t i = 0; i < 8; ++i)
                    for (int64_t n = 0; n < 16; ++n) sum[i][n] = add ? C[(m + i) * c_row + half * 16 + n] : 0.0f;
                const float* b = B + half * column;
                for (int64_t k = 0; k < steps * BLOCK; ++k)
                    for (int64_t i = 0; i < 8; ++i) {
                        const float a = A[(m + i) * a_row + k];
#pragma omp simd
                        for (int64_t n = 0; n < 16; ++n) sum[i][n] += a * b[k * 16 + n];
                    }
                for (int64_t i = 0; i < 8; ++i)
                    for (int64_t n = 0; n < 16; ++n) C[(m + i) * c_row + half * 16 + n] = sum[i][n];
            }
    }
};

#ifdef LAMINA_TILES
struct Tiles {
    using Element = bf16;

    static void begin() { begin_tiles(); }
    static void end() { _tile_release(); }

    static constexpr int64_t WORD = 2;

    static void pack_pair(bf16* tile, int64_t k, const bf16* first, const bf16* second) {
        auto* words = reinterpret_cast<uint32_t*>(tile) + k / 2 * 16;
#pragma omp simd
        for (int64_t n = 0; n < 16; ++n) words[n] = pair(first[n], second[n]);
    }

    static void turn(bf16* to, const bf16* from, int64_t row, int64_t size) {
        uint32_t words[16 * 16];  // of two neighbours in a row each
        for (int64_t r = 0; r < BLOCK; r += 16)
            for (int64_t d = 0; d < size; d += 32) {
                transpose(words, 16, (const uint32_t*)(from + r * row + d), row / 2);
                for (int64_t w = 0; w < 16; ++w) {
                    bf16* even = to + (d + 2 * w) * BLOCK + r;
#pragma omp simd
                    for (int64_t n = 0; n < 16; ++n) {
                        even[n].bits = static_cast<uint16_t>(words[w * 16 + n]);
                        even[BLOCK + n].bits = static_cast<uint16_t>(words[w * 16 + n] >> 16);
                    }
                }
            }
    }

    static void multiply(float* C, int64_t c_row, const bf16* A, int64_t a_row, const bf16* B, int64_t column,
                         int64_t steps, bool add) {
        asm volatile("" ::: "memory");  // the tile loads do not tell the compiler that they read
        const size_t c = static_cast<size_t>(c_row) * 4, a = static_cast<size_t>(a_row) * 2;
        if (add) {
            _tile_loadd(0, C, c);
            _tile_loadd(1, C + 16, c);
            _tile_loadd(2, C + 16 * c_row, c);
            _tile_loadd(3, C + 16 * c_row + 16, c);
        } else {
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
        }
        for (int64_t k = 0; k < steps; ++k) {
            _tile_loadd(4, A + k * BLOCK, a);
            _tile_loadd(6, B + k * TILE, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, B + k * TILE + column, 64);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(5, A + k * BLOCK + 16 * a_row, a);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, C, c);
        _tile_stored(1, C + 16, c);
        _tile_stored(2, C + 16 * c_row, c);
        _tile_stored(3, C + 16 * c_row + 16, c);
    }
};
#endif

// Places [first, end) of a row, sixteen of which are looked at together.
struct Span {
    int64_t first, end;

    bool has_all(int64_t c) const { return c >= first && c + LANES <= end; }
    Floats only(int64_t c, Floats value, float elsewhere) const {
        const Ints place = Ints{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + static_cast<int32_t>(c);
        return ((place >= static_cast<int32_t>(first)) & (place < static_cast<int32_t>(end))) ? value : splat(elsewhere);
    }
};

struct Scores {
    int64_t length, size, window;  // tokens of the document, head size (a multiple of 32), tokens seen or 0 for all
    float scale, softcap;          // softcap 0: none

    int64_t first_key_block(int64_t query_block) const {
        const int64_t first = query_block * BLOCK - window + 1;
        return window && first > 0 ? first / BLOCK : 0;
    }
    int64_t last_query_block(int64_t key_block) const {
        const int64_t last = window ? (key_block * BLOCK + BLOCK - 1 + window - 1) / BLOCK : blocks(length) - 1;
        return last < blocks(length) - 1 ? last : blocks(length) - 1;
    }
    // Which queries of a block see a key: places [first, end) in it.
    Span queries_of(int64_t key, int64_t first_query) const {
        const int64_t end = window && key + window < length ? key + window : length;
        return {key - first_query, end - first_query};
    }
};

// A block of a head's rows, `row` apart, as elements of M and without what lies beyond the document: in place if it can be.
template <typename E>
struct Rows {
    const E* data;
    int64_t row;
};

template <typename E, typename T>
Rows<E> take_rows(E* scratch, const T* from, int64_t row, int64_t first, const Scores& s) {
    if constexpr (std::is_same_v<E, T>)
        if (first + BLOCK <= s.length) return {from + first * row, row};
    for (int64_t i = 0; i < BLOCK; ++i) {
        if (first + i < s.length) {
            for (int64_t d = 0; d < s.size; d += LANES) put(scratch + i * s.size + d, take(from + (first + i) * row + d));
        } else {
            std::memset(scratch + i * s.size, 0, sizeof(E) * s.size);
        }
    }
    return {scratch, s.size};
}

// Asks for a head's rows at once: they lie so far apart that the CPU does not see the pattern by itself.
template <typename T>
void fetch(const T* rows, int64_t row, const Scores& s) {
    constexpr int64_t line = 64 / sizeof(T);
    for (int64_t t = 0; t < s.length; ++t)
        for (int64_t d = 0; d < s.size; d += line) __builtin_prefetch(rows + t * row + d);
}

// B with tokens as columns: B[d][token]. Tiles: (token block of 16, d block of 32).
template <typename M>
void pack_columns(typename M::Element* to, Rows<typename M::Element> rows, const Scores& s) {
    for (int64_t t = 0; t < BLOCK; t += 16)
        for (int64_t d = 0; d < s.size; d += 16 * M::WORD)
            transpose((uint32_t*)(to + t / 16 * s.size * 16 + d * 16), 16, (const uint32_t*)(rows.data + t * rows.row + d),
                      rows.row / M::WORD);
}

// B with tokens as the summed dimension: B[token][d]. Tiles: (d block of 16, token block of 32), this is block `block`.
template <typename M>
void pack_rows(typename M::Element* to, Rows<typename M::Element> rows, int64_t block, const Scores& s) {
    for (int64_t d = 0; d < s.size; d += 16) {
        auto* tile = to + ((d / 16) * blocks(s.length) + block) * TILE;
        for (int64_t t = 0; t < BLOCK; t += 2) M::pack_pair(tile, t, rows.data + t * rows.row + d, rows.data + (t + 1) * rows.row + d);
    }
}

// A row of scores, of which some are seen, into weights exp(score - largest): returns the largest.
template <bool CAPPED, typename E>
inline float soften(E* weight, float* score, int64_t begin, Span seen, int64_t width, float* sum_out, const Scores& s) {
    const float inner = CAPPED ? s.scale / s.softcap : s.scale;
    Floats most = splat(-INFINITY), sums = {};
    for (int64_t c = begin; c < width; c += LANES) {
        Floats value = take(score + c) * inner;
        if (CAPPED) value = s.softcap * fast_tanh(value);
        if (!seen.has_all(c)) value = seen.only(c, value, -INFINITY);
        put(score + c, value);
        most = larger(value, most);
    }
    const float largest = largest_of(most);
    for (int64_t c = begin; c < width; c += LANES) {
        Floats e = fast_exp(take(score + c) - largest);
        if (!seen.has_all(c)) e = seen.only(c, e, 0.0f);  // exactly nothing
        sums += e;
        put(weight + c, e);
    }
    *sum_out = sum_of(sums);
    return largest;
}

// One document and the query heads of one key head.
template <typename M, bool CAPPED, typename T>
void forward(const T* q, int64_t q_row, const T* k, const T* v, int64_t kv_row, T* out, int64_t out_row, float* lse,
             int64_t lse_head, int64_t heads, const Scores& s) {
    using E = typename M::Element;
    const int64_t n = blocks(s.length), padded = n * BLOCK, steps = s.size / BLOCK;
    Buffer<E> keys(padded * s.size), values(padded * s.size), scratch(BLOCK * s.size), weights(BLOCK * padded);
    Buffer<float> scores(BLOCK * padded), sums(BLOCK * BLOCK);
    fetch(k, kv_row, s);
    fetch(v, kv_row, s);
    for (int64_t j = 0; j < n; ++j) {
        pack_columns<M>(keys + j * BLOCK * s.size, take_rows(scratch.data, k, kv_row, j * BLOCK, s), s);
        pack_rows<M>(values.data, take_rows(scratch.data, v, kv_row, j * BLOCK, s), j, s);
    }
    for (int64_t h = 0; h < heads; ++h) {
        fetch(q + h * s.size, q_row, s);
        for (int64_t i = 0; i < n; ++i) {
            const auto query = take_rows(scratch.data, q + h * s.size, q_row, i * BLOCK, s);
            const int64_t first = s.first_key_block(i), width = (i + 1) * BLOCK;
            for (int64_t j = first; j <= i; ++j)
                M::multiply(scores + j * BLOCK, padded, query.data, query.row, keys + 2 * j * steps * TILE, steps * TILE,
                            steps, false);
            float inverse[BLOCK];
            for (int64_t r = 0; r < BLOCK; ++r) {
                const int64_t token = i * BLOCK + r, begin = first * BLOCK;
                const int64_t oldest = s.window && token - s.window + 1 > begin ? token - s.window + 1 : begin;
                float sum;
                const float largest = soften<CAPPED>(weights + r * padded, scores + r * padded, begin,
                                                     Span{oldest, token + 1}, width, &sum, s);
                inverse[r] = 1.0f / sum;
                if (token < s.length) lse[h * lse_head + token] = largest + std::log(sum);
            }
            for (int64_t d = 0; d < s.size; d += BLOCK) {
                M::multiply(sums.data, BLOCK, weights + first * BLOCK, padded, values + (d / 16) * n * TILE + first * TILE,
                            n * TILE, i + 1 - first, false);
                for (int64_t r = 0; r < BLOCK && i * BLOCK + r < s.length; ++r) {
                    T* to = out + (i * BLOCK + r) * out_row + h * s.size + d;
                    for (int64_t c = 0; c < BLOCK; c += LANES) put(to + c, take(sums + r * BLOCK + c) * inverse[r]);
                }
            }
        }
    }
}

// A row of 32 scores: weights = exp(score - normaliser), d scores = weights (d weights - delta), where a query sees the key.
template <bool CAPPED, typename E>
inline void differentiate(E* weight, E* dscore, const float* product, const float* dweight, const float* normaliser,
                          const float* delta, Span seen, const Scores& s) {
    const float inner = CAPPED ? s.scale / s.softcap : s.scale;
    for (int64_t c = 0; c < BLOCK; c += LANES) {
        Floats score = take(product + c) * inner, slope = splat(s.scale);
        if (CAPPED) {
            const Floats t = fast_tanh(score);
            score = s.softcap * t;
            slope *= 1.0f - t * t;
        }
        Floats p = fast_exp(score - take(normaliser + c));
        if (!seen.has_all(c)) p = seen.only(c, p, 0.0f);
        put(weight + c, p);
        put(dscore + c, p * (take(dweight + c) - take(delta + c)) * slope);
    }
}

// Rows of a block that lie within the document, into rows of `size`, or added to what is there.
inline void collect(float* to, const float* sums, int64_t rows, int64_t size, bool add) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < BLOCK; c += LANES) {
            float* at = to + r * size + c;
            const Floats sum = take(sums + r * BLOCK + c);
            put(at, add ? take(at) + sum : sum);
        }
}

// One document, one key head, and some of its query heads. dk and dv get their share, float32, rows of `size`.
template <typename M, bool CAPPED, typename T>
void backward(const T* q, int64_t q_row, const T* k, const T* v, int64_t kv_row, const T* out, int64_t out_row,
              const T* grad, int64_t grad_row, const float* lse, int64_t lse_head, T* dq, int64_t d_row, float* dk,
              float* dv, int64_t heads, const Scores& s) {
    using E = typename M::Element;
    const int64_t n = blocks(s.length), padded = n * BLOCK, steps = s.size / BLOCK;
    Buffer<E> q_columns(padded * s.size), g_columns(padded * s.size), q_rows(padded * s.size), g_rows(padded * s.size);
    Buffer<E> key_scratch(BLOCK * s.size), value_scratch(BLOCK * s.size), key_turned(BLOCK * s.size);
    Buffer<E> weights(BLOCK * padded), dscores(BLOCK * padded), dscores_packed(2 * TILE);
    Buffer<float> dq_turned(s.size * padded), delta(padded, true), normaliser(padded, true);
    Buffer<float> scores(BLOCK * BLOCK), dweights(BLOCK * BLOCK), sums(BLOCK * BLOCK);
    fetch(k, kv_row, s);
    fetch(v, kv_row, s);
    for (int64_t h = 0; h < heads; ++h, q += s.size, out += s.size, grad += s.size, dq += s.size, lse += lse_head) {
        fetch(q, q_row, s);
        fetch(grad, grad_row, s);
        fetch(out, out_row, s);
        for (int64_t i = 0; i < n; ++i) {
            const auto queries = take_rows(key_scratch.data, q, q_row, i * BLOCK, s);
            pack_columns<M>(q_columns + i * BLOCK * s.size, queries, s);
            pack_rows<M>(q_rows.data, queries, i, s);
            const auto grads = take_rows(value_scratch.data, grad, grad_row, i * BLOCK, s);
            pack_columns<M>(g_columns + i * BLOCK * s.size, grads, s);
            pack_rows<M>(g_rows.data, grads, i, s);
        }
        for (int64_t t = 0; t < s.length; ++t) {
            Floats dot = {};
            for (int64_t d = 0; d < s.size; d += LANES) dot += take(out + t * out_row + d) * take(grad + t * grad_row + d);
            delta[t] = sum_of(dot);
            normaliser[t] = lse[t];
        }
        std::memset(dq_turned.data, 0, sizeof(float) * s.size * padded);
        for (int64_t j = 0; j < n; ++j) {
            const auto key = take_rows(key_scratch.data, k, kv_row, j * BLOCK, s);
            const auto value = take_rows(value_scratch.data, v, kv_row, j * BLOCK, s);
            M::turn(key_turned.data, key.data, key.row, s.size);
            const int64_t last = s.last_query_block(j);
            for (int64_t i = j; i <= last; ++i) {
                // Transposed: rows are keys, columns are queries.
                M::multiply(scores.data, BLOCK, key.data, key.row, q_columns + 2 * i * steps * TILE, steps * TILE, steps,
                            false);
                M::multiply(dweights.data, BLOCK, value.data, value.row, g_columns + 2 * i * steps * TILE, steps * TILE,
                            steps, false);
                for (int64_t r = 0; r < BLOCK; ++r) {
                    E *weight = weights + r * padded + i * BLOCK, *dscore = dscores + r * padded + i * BLOCK;
                    differentiate<CAPPED>(weight, dscore, scores + r * BLOCK, dweights + r * BLOCK,
                                          normaliser + i * BLOCK, delta + i * BLOCK,
                                          s.queries_of(j * BLOCK + r, i * BLOCK), s);
                    if (r & 1)
                        for (int64_t half = 0; half < 2; ++half)
                            M::pack_pair(dscores_packed + half * TILE, r - 1, dscore - padded + half * 16,
                                         dscore + half * 16);
                }
                for (int64_t d = 0; d < s.size; d += BLOCK)
                    M::multiply(dq_turned + d * padded + i * BLOCK, padded, key_turned + d * BLOCK, BLOCK,
                                dscores_packed.data, TILE, 1, true);
            }
            const int64_t rows = s.length - j * BLOCK < BLOCK ? s.length - j * BLOCK : BLOCK;
            for (int64_t d = 0; d < s.size; d += BLOCK) {
                const int64_t tiles = (d / 16) * n * TILE + j * TILE, count = last + 1 - j, at = j * BLOCK * s.size + d;
                M::multiply(sums.data, BLOCK, weights + j * BLOCK, padded, g_rows + tiles, n * TILE, count, false);
                collect(dv + at, sums.data, rows, s.size, h > 0);
                M::multiply(sums.data, BLOCK, dscores + j * BLOCK, padded, q_rows + tiles, n * TILE, count, false);
                collect(dk + at, sums.data, rows, s.size, h > 0);
            }
        }
        float square[16 * 16];
        for (int64_t t = 0; t < s.length; t += 16)
            for (int64_t d = 0; d < s.size; d += 16) {
                transpose((uint32_t*)square, 16, (const uint32_t*)(dq_turned + d * padded + t), padded);
                for (int64_t r = 0; r < 16 && t + r < s.length; ++r)
                    put(dq + (t + r) * d_row + d, take(square + r * 16));
            }
    }
}

struct Documents {
    const int64_t* lengths;
    int64_t count, heads, key_heads;

    int64_t begin(int64_t document) const {
        int64_t sum = 0;
        for (int64_t i = 0; i < document; ++i) sum += lengths[i];
        return sum;
    }
};

template <typename M, typename T>
void forward_all(const T* q, int64_t q_row, const T* k, const T* v, int64_t kv_row, T* out, int64_t out_row, float* lse,
                 int64_t tokens, const Documents& docs, Scores s) {
    const int64_t group = docs.heads / docs.key_heads;
#pragma omp parallel
    {
        M::begin();
#pragma omp for schedule(dynamic, 1) collapse(2) firstprivate(s)
        for (int64_t document = 0; document < docs.count; ++document)
            for (int64_t j = 0; j < docs.key_heads; ++j) {
                const int64_t at = docs.begin(document), h = j * group;
                s.length = docs.lengths[document];
                const auto run = s.softcap > 0.0f ? forward<M, true, T> : forward<M, false, T>;
                run(q + at * q_row + h * s.size, q_row, k + at * kv_row + j * s.size, v + at * kv_row + j * s.size,
                           kv_row, out + at * out_row + h * s.size, out_row, lse + h * tokens + at, tokens, group, s);
            }
        M::end();
    }
}

// A key head's query heads go to one thread, which keeps their sums in its cache; or, when there are few documents, each to
// any thread. Then `shares` has room for every head's dk and dv; else it is null. The sums are the same.
template <typename M, typename T>
void backward_all(const T* q, int64_t q_row, const T* k, const T* v, int64_t kv_row, const T* out, int64_t out_row,
                  const T* grad, int64_t grad_row, const float* lse, T* dq, T* dk, T* dv, int64_t d_row, float* shares,
                  int64_t tokens, const Documents& docs, Scores s) {
    const int64_t group = docs.heads / docs.key_heads, plane = tokens * s.size;
    const int64_t together = shares ? 1 : group;
    float *dk_shares = shares, *dv_shares = shares ? shares + docs.heads * plane : nullptr;
#pragma omp parallel
    {
        M::begin();
#pragma omp for schedule(dynamic, 1) collapse(2) firstprivate(s)
        for (int64_t document = 0; document < docs.count; ++document)
            for (int64_t h = 0; h < docs.heads; h += together) {
                const int64_t at = docs.begin(document), kv = at * kv_row + h / group * s.size;
                s.length = docs.lengths[document];
                Buffer<float> sums(shares ? 0 : 2 * s.length * s.size);
                float* dk_sum = shares ? dk_shares + h * plane + at * s.size : sums.data;
                float* dv_sum = shares ? dv_shares + h * plane + at * s.size : sums + s.length * s.size;
                const auto run = s.softcap > 0.0f ? backward<M, true, T> : backward<M, false, T>;
                run(q + at * q_row + h * s.size, q_row, k + kv, v + kv, kv_row, out + at * out_row + h * s.size, out_row,
                    grad + at * grad_row + h * s.size, grad_row, lse + h * tokens + at, tokens,
                    dq + at * d_row + h * s.size, d_row, dk_sum, dv_sum, together, s);
                if (shares) continue;
                const int64_t to = at * d_row + h / group * s.size;
                for (int64_t t = 0; t < s.length; ++t)
                    for (int64_t d = 0; d < s.size; d += LANES) {
                        put(dk + to + t * d_row + d, take(dk_sum + t * s.size + d));
                        put(dv + to + t * d_row + d, take(dv_sum + t * s.size + d));
                    }
            }
        M::end();
        if (shares) {
#pragma omp for collapse(2)
            for (int64_t t = 0; t < tokens; ++t)
                for (int64_t j = 0; j < docs.key_heads; ++j)
                    for (int64_t d = 0; d < s.size; d += LANES) {
                        const int64_t from = j * group * plane + t * s.size + d, to = t * d_row + j * s.size + d;
                        Floats dk_sum = take(dk_shares + from), dv_sum = take(dv_shares + from);
                        for (int64_t g = 1; g < group; ++g) {
                            dk_sum += take(dk_shares + from + g * plane);
                            dv_sum += take(dv_shares + from + g * plane);
                        }
                        put(dk + to, dk_sum);
                        put(dv + to, dv_sum);
                    }
        }
    }
}

}  // namespace

#define FORWARD(M, T)                                                                                              \
    forward_all<M>((const T*)q, q_row, (const T*)k, (const T*)v, kv_row, (T*)out, out_row, lse, tokens,            \
                   Documents{lengths, documents, heads, key_heads}, Scores{0, size, window, scale, softcap})
#define BACKWARD(M, T)                                                                                             \
    backward_all<M>((const T*)q, q_row, (const T*)k, (const T*)v, kv_row, (const T*)out, out_row, (const T*)grad,  \
                    grad_row, lse, (T*)dq, (T*)dk, (T*)dv, d_row, shares, tokens,                                  \
                    Documents{lengths, documents, heads, key_heads}, Scores{0, size, window, scale, softcap})

#define FORWARD_PARAMETERS                                                                                       \
    (const void* q, int64_t q_row, const void* k, const void* v, int64_t kv_row, void* out, int64_t out_row,    \
     float* lse, const int64_t* lengths, int64_t documents, int64_t tokens, int64_t heads, int64_t key_heads,   \
     int64_t size, int64_t window, float scale, float softcap)
#define BACKWARD_PARAMETERS                                                                                      \
    (const void* q, int64_t q_row, const void* k, const void* v, int64_t kv_row, const void* out,               \
     int64_t out_row, const void* grad, int64_t grad_row, const float* lse, void* dq, void* dk, void* dv,       \
     int64_t d_row, float* shares, const int64_t* lengths, int64_t documents, int64_t tokens, int64_t heads,    \
     int64_t key_heads, int64_t size, int64_t window, float scale, float softcap)

extern "C" void lamina_attention_float32 FORWARD_PARAMETERS { FORWARD(Loops, float); }
extern "C" void lamina_attention_backward_float32 BACKWARD_PARAMETERS { BACKWARD(Loops, float); }

extern "C" void lamina_attention_bfloat16 FORWARD_PARAMETERS {
#ifdef LAMINA_TILES
    if (may_use_tiles()) return FORWARD(Tiles, bf16);
#endif
    FORWARD(Loops, bf16);
}

extern "C" void lamina_attention_backward_bfloat16 BACKWARD_PARAMETERS {
#ifdef LAMINA_TILES
    if (may_use_tiles()) return BACKWARD(Tiles, bf16);
#endif
    BACKWARD(Loops, bf16);
}
