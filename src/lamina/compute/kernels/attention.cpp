// Causal attention over packed documents, forward and backward.
//
// Scores are computed in blocks of 32 x 32. A thread takes one document and one key head; a row of blocks of scores fits in
// its cache, so softmax needs no running maximum. The backward recomputes the weights, transposed, from the logsumexp of the
// scores (`lse`), so nothing of size length^2 is ever stored.
//
// bfloat16 is multiplied as bfloat16 where the CPU has instructions for it (`blocks.h`), else in float32.

#include <initializer_list>
#include <type_traits>
#include <utility>

#include "blocks.h"
#include "memory.h"
#include "numbers.h"

namespace {

inline int64_t blocks(int64_t length) { return (length + BLOCK - 1) / BLOCK; }

// Transposes 16 x 16 words of 32 bits, each of one or two elements; the row strides are `from_row` and `to_row` elements.
#if defined(__AVX512F__)
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

// Neither pointer has to be aligned: memory is accessed by memcpy alone, which compilers turn into plain loads and stores.
template <typename To, typename From>
inline void transpose(To* to, int64_t to_row, const From* from, int64_t from_row) {
    Words rows[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) std::memcpy(rows + i, from + i * from_row, sizeof(Words));
    exchange_all<8>(rows);
    exchange_all<4>(rows);
    exchange_all<2>(rows);
    exchange_all<1>(rows);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) std::memcpy(to + i * to_row, rows + i, sizeof(Words));
}
#else
template <typename To, typename From>
inline void transpose(To* to, int64_t to_row, const From* from, int64_t from_row) {
    for (int64_t i = 0; i < 16; ++i)
        for (int64_t j = 0; j < 16; ++j)
            std::memcpy(to + j * to_row + i * PER_WORD<To>, from + i * from_row + j * PER_WORD<From>, 4);
}
#endif

// Packs rows k and k + 1 of a tile, 16 columns each.
inline void pack_pair(float* tile, int64_t k, const float* first, const float* second) {
    std::memcpy(tile + k * 16, first, 64);
    std::memcpy(tile + k * 16 + 16, second, 64);
}

inline void pack_pair(bf16* tile, int64_t k, const bf16* first, const bf16* second) {
    auto* words = reinterpret_cast<uint32_t*>(tile) + k / 2 * 16;
#pragma omp simd
    for (int64_t n = 0; n < 16; ++n) words[n] = first[n].bits | static_cast<uint32_t>(second[n].bits) << 16;
}

// Transposes a block of keys: (32, size) -> (size, 32).
inline void transpose_block(float* to, const float* from, int64_t row, int64_t size) {
    for (int64_t r = 0; r < BLOCK; r += 16)
        for (int64_t d = 0; d < size; d += 16)
            transpose(to + d * BLOCK + r, BLOCK, from + r * row + d, row);
}

inline void transpose_block(bf16* to, const bf16* from, int64_t row, int64_t size) {
    uint32_t words[16 * 16];  // two neighbors of a row each
    for (int64_t r = 0; r < BLOCK; r += 16)
        for (int64_t d = 0; d < size; d += 32) {
            transpose(words, 16, from + r * row + d, row);
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

template <int... LANE>
constexpr Ints lane_numbers(std::integer_sequence<int, LANE...>) {
    return Ints{LANE...};
}

// The visible indices [first, end) of a row, tested one vector at a time.
struct Span {
    int64_t first, end;

    bool has_all(int64_t c) const { return c >= first && c + LANES <= end; }
    Floats only(int64_t c, Floats value, float elsewhere) const {
        const Ints place = lane_numbers(EACH_LANE) + static_cast<int32_t>(c);
        return ((place >= static_cast<int32_t>(first)) & (place < static_cast<int32_t>(end))) ? value : broadcast(elsewhere);
    }
};

struct Scores {
    int64_t length, size, window;  // tokens of the document, head size (a multiple of 32), sliding window or 0 for none
    float scale, softcap;          // softcap 0: none

    int64_t first_key_block(int64_t query_block) const {
        const int64_t first = query_block * BLOCK - window + 1;
        return window && first > 0 ? first / BLOCK : 0;
    }
    int64_t last_query_block(int64_t key_block) const {
        const int64_t last = window ? (key_block * BLOCK + BLOCK - 1 + window - 1) / BLOCK : blocks(length) - 1;
        return last < blocks(length) - 1 ? last : blocks(length) - 1;
    }
    // Which queries of a block see a key: the indices [first, end) within the block.
    Span queries_of(int64_t key, int64_t first_query) const {
        const int64_t end = window && key + window < length ? key + window : length;
        return {key - first_query, end - first_query};
    }
};

// Rows of tokens with a stride of `row` elements.
template <typename T>
struct Rows {
    T* data;
    int64_t row;

    T* operator[](int64_t token) const { return data + token * row; }
    Rows from(int64_t token, int64_t element) const { return {data + token * row + element, row}; }
};

// Loads 32 rows of a head as elements of M, with zeros past the end of the document. Returns the rows themselves where no
// conversion is needed, else `scratch`.
template <typename E, typename T>
Rows<const E> load_block(E* scratch, Rows<const T> rows, int64_t first, const Scores& s) {
    if constexpr (std::is_same_v<E, T>)
        if (first + BLOCK <= s.length) return rows.from(first, 0);
    for (int64_t i = 0; i < BLOCK; ++i) {
        if (first + i < s.length) {
            for (int64_t d = 0; d < s.size; d += LANES) put(scratch + i * s.size + d, take(rows[first + i] + d));
        } else {
            std::memset(scratch + i * s.size, 0, sizeof(E) * s.size);
        }
    }
    return {scratch, s.size};
}

// Prefetches the rows of a head: their stride is too large for the CPU's own prefetcher.
template <typename T>
void prefetch(Rows<const T> rows, const Scores& s) {
    constexpr int64_t line = 64 / sizeof(T);
    for (int64_t t = 0; t < s.length; ++t)
        for (int64_t d = 0; d < s.size; d += line) __builtin_prefetch(rows[t] + d);
}

// Packs B with tokens as columns, B[d][token]. Tiles: (token block of 16, d block of 32).
template <typename M>
void pack_columns(typename M::Element* to, Rows<const typename M::Element> rows, const Scores& s) {
    constexpr int64_t words = 16 * PER_WORD<typename M::Element>;  // sixteen, in elements
    for (int64_t t = 0; t < BLOCK; t += 16)
        for (int64_t d = 0; d < s.size; d += words)
            transpose(to + t / 16 * s.size * 16 + d * 16, words, rows[t] + d, rows.row);
}

// Packs B with tokens as the summed dimension, B[token][d], at token block `block`. Tiles: (d block of 16, token block of 32).
template <typename M>
void pack_rows(typename M::Element* to, Rows<const typename M::Element> rows, int64_t block, const Scores& s) {
    for (int64_t d = 0; d < s.size; d += 16) {
        auto* tile = to + ((d / 16) * blocks(s.length) + block) * TILE;
        for (int64_t t = 0; t < BLOCK; t += 2) pack_pair(tile, t, rows[t] + d, rows[t + 1] + d);
    }
}

// Turns a row of scores into weights exp(score - largest), 0 where a score is not `seen`. Returns the largest score.
template <bool CAPPED, typename E>
inline float softmax_row(E* weight, float* score, int64_t begin, Span seen, int64_t width, float* sum_out, const Scores& s) {
    const float inner = CAPPED ? s.scale / s.softcap : s.scale;
    Floats most = broadcast(-INFINITY), sums = {};
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
        if (!seen.has_all(c)) e = seen.only(c, e, 0.0f);  // exactly 0
        sums += e;
        put(weight + c, e);
    }
    *sum_out = sum_of(sums);
    return largest;
}

// The forward of one document and the query heads of one key head.
template <typename M, bool CAPPED, typename T>
void forward(Rows<const T> q, Rows<const T> k, Rows<const T> v, Rows<T> out, float* lse, int64_t lse_head, int64_t heads,
             const Scores& s) {
    using E = typename M::Element;
    constexpr auto multiply = M::template multiply<BLOCK>;
    const int64_t n = blocks(s.length), padded = n * BLOCK, steps = s.size / BLOCK;
    const int64_t w_row = padded_row<E>(padded), s_row = padded_row<float>(padded);
    Buffer<E> keys(padded * s.size), values(padded * s.size), scratch(BLOCK * s.size), weights(BLOCK * w_row);
    Buffer<float> scores(BLOCK * s_row), sums(BLOCK * BLOCK);
    prefetch(k, s);
    prefetch(v, s);
    for (int64_t j = 0; j < n; ++j) {
        pack_columns<M>(keys + j * BLOCK * s.size, load_block(scratch.data, k, j * BLOCK, s), s);
        pack_rows<M>(values.data, load_block(scratch.data, v, j * BLOCK, s), j, s);
    }
    for (int64_t h = 0; h < heads; ++h) {
        prefetch(q.from(0, h * s.size), s);
        for (int64_t i = 0; i < n; ++i) {
            const auto query = load_block(scratch.data, q.from(0, h * s.size), i * BLOCK, s);
            const int64_t first = s.first_key_block(i), width = (i + 1) * BLOCK;
            for (int64_t j = first; j <= i; ++j)
                multiply(scores + j * BLOCK, s_row, query.data, query.row, keys + 2 * j * steps * TILE, steps * TILE, steps,
                         false);
            float inverse[BLOCK];
            for (int64_t r = 0; r < BLOCK; ++r) {
                const int64_t token = i * BLOCK + r, begin = first * BLOCK;
                const int64_t oldest = s.window && token - s.window + 1 > begin ? token - s.window + 1 : begin;
                float sum;
                const float largest = softmax_row<CAPPED>(weights + r * w_row, scores + r * s_row, begin,
                                                     Span{oldest, token + 1}, width, &sum, s);
                inverse[r] = 1.0f / sum;
                if (token < s.length) lse[h * lse_head + token] = largest + std::log(sum);
            }
            for (int64_t d = 0; d < s.size; d += BLOCK) {
                multiply(sums.data, BLOCK, weights + first * BLOCK, w_row, values + (d / 16) * n * TILE + first * TILE,
                         n * TILE, i + 1 - first, false);
                for (int64_t r = 0; r < BLOCK && i * BLOCK + r < s.length; ++r) {
                    T* to = out[i * BLOCK + r] + h * s.size + d;
                    for (int64_t c = 0; c < BLOCK; c += LANES) put(to + c, take(sums + r * BLOCK + c) * inverse[r]);
                }
            }
        }
    }
}

// For 32 scores: weights = exp(score - normalizer) and d scores = weights (d weights - delta); 0 where the query does not see
// the key.
template <bool CAPPED, typename E>
inline void softmax_row_backward(E* weight, E* dscore, const float* product, const float* dweight, const float* normalizer,
                          const float* delta, Span seen, const Scores& s) {
    const float inner = CAPPED ? s.scale / s.softcap : s.scale;
    for (int64_t c = 0; c < BLOCK; c += LANES) {
        Floats score = take(product + c) * inner, slope = broadcast(s.scale);
        if (CAPPED) {
            const Floats t = fast_tanh(score);
            score = s.softcap * t;
            slope *= 1.0f - t * t;
        }
        Floats p = fast_exp(score - take(normalizer + c));
        if (!seen.has_all(c)) p = seen.only(c, p, 0.0f);
        put(weight + c, p);
        put(dscore + c, p * (take(dweight + c) - take(delta + c)) * slope);
    }
}

// Writes the rows of a block that are within the document into rows of `size` elements, or adds to them.
inline void store_or_add(float* to, const float* sums, int64_t rows, int64_t size, bool add) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < BLOCK; c += LANES) {
            float* at = to + r * size + c;
            const Floats sum = take(sums + r * BLOCK + c);
            put(at, add ? take(at) + sum : sum);
        }
}

// The backward of one document, one key head and some of its query heads. Writes their part of dk and dv, float32, in rows of
// `size` elements.
template <typename M, bool CAPPED, typename T>
void backward(Rows<const T> q, Rows<const T> k, Rows<const T> v, Rows<const T> out, Rows<const T> grad, const float* lse,
              int64_t lse_head, Rows<T> dq, float* dk, float* dv, int64_t heads, const Scores& s) {
    using E = typename M::Element;
    constexpr auto multiply = M::template multiply<BLOCK>;
    const int64_t n = blocks(s.length), padded = n * BLOCK, steps = s.size / BLOCK;
    const int64_t w_row = padded_row<E>(padded), t_row = padded_row<float>(padded);
    Buffer<E> q_columns(padded * s.size), g_columns(padded * s.size), q_rows(padded * s.size), g_rows(padded * s.size);
    Buffer<E> key_scratch(BLOCK * s.size), value_scratch(BLOCK * s.size), key_transposed(BLOCK * s.size);
    Buffer<E> weights(BLOCK * w_row), dscores(BLOCK * w_row), dscores_packed(2 * TILE);
    Buffer<float> dq_transposed(s.size * t_row), delta(padded, true), normalizer(padded, true);
    Buffer<float> scores(BLOCK * BLOCK), dweights(BLOCK * BLOCK), sums(BLOCK * BLOCK);
    prefetch(k, s);
    prefetch(v, s);
    for (int64_t h = 0; h < heads; ++h, lse += lse_head) {
        prefetch(q, s);
        prefetch(grad, s);
        prefetch(out, s);
        for (int64_t i = 0; i < n; ++i) {
            const auto queries = load_block(key_scratch.data, q, i * BLOCK, s);
            pack_columns<M>(q_columns + i * BLOCK * s.size, queries, s);
            pack_rows<M>(q_rows.data, queries, i, s);
            const auto grads = load_block(value_scratch.data, grad, i * BLOCK, s);
            pack_columns<M>(g_columns + i * BLOCK * s.size, grads, s);
            pack_rows<M>(g_rows.data, grads, i, s);
        }
        for (int64_t t = 0; t < s.length; ++t) {
            Floats dot = {};
            for (int64_t d = 0; d < s.size; d += LANES) dot += take(out[t] + d) * take(grad[t] + d);
            delta[t] = sum_of(dot);
            normalizer[t] = lse[t];
        }
        std::memset(dq_transposed.data, 0, sizeof(float) * s.size * t_row);
        for (int64_t j = 0; j < n; ++j) {
            const auto key = load_block(key_scratch.data, k, j * BLOCK, s);
            const auto value = load_block(value_scratch.data, v, j * BLOCK, s);
            transpose_block(key_transposed.data, key.data, key.row, s.size);
            const int64_t last = s.last_query_block(j);
            for (int64_t i = j; i <= last; ++i) {
                // Transposed: rows are keys, columns are queries.
                multiply(scores.data, BLOCK, key.data, key.row, q_columns + 2 * i * steps * TILE, steps * TILE, steps,
                         false);
                multiply(dweights.data, BLOCK, value.data, value.row, g_columns + 2 * i * steps * TILE, steps * TILE,
                         steps, false);
                for (int64_t r = 0; r < BLOCK; ++r) {
                    E *weight = weights + r * w_row + i * BLOCK, *dscore = dscores + r * w_row + i * BLOCK;
                    softmax_row_backward<CAPPED>(weight, dscore, scores + r * BLOCK, dweights + r * BLOCK,
                                          normalizer + i * BLOCK, delta + i * BLOCK,
                                          s.queries_of(j * BLOCK + r, i * BLOCK), s);
                    if (r & 1)
                        for (int64_t half = 0; half < 2; ++half)
                            pack_pair(dscores_packed + half * TILE, r - 1, dscore - w_row + half * 16,
                                         dscore + half * 16);
                }
                for (int64_t d = 0; d < s.size; d += BLOCK)
                    multiply(dq_transposed + d * t_row + i * BLOCK, t_row, key_transposed + d * BLOCK, BLOCK,
                             dscores_packed.data, TILE, 1, true);
            }
            const int64_t rows = s.length - j * BLOCK < BLOCK ? s.length - j * BLOCK : BLOCK;
            for (int64_t d = 0; d < s.size; d += BLOCK) {
                const int64_t tiles = (d / 16) * n * TILE + j * TILE, count = last + 1 - j, at = j * BLOCK * s.size + d;
                multiply(sums.data, BLOCK, weights + j * BLOCK, w_row, g_rows + tiles, n * TILE, count, false);
                store_or_add(dv + at, sums.data, rows, s.size, h > 0);
                multiply(sums.data, BLOCK, dscores + j * BLOCK, w_row, q_rows + tiles, n * TILE, count, false);
                store_or_add(dk + at, sums.data, rows, s.size, h > 0);
            }
        }
        float square[16 * 16];
        for (int64_t t = 0; t < s.length; t += 16)
            for (int64_t d = 0; d < s.size; d += 16) {
                transpose(square, 16, dq_transposed + d * t_row + t, t_row);
                for (int64_t r = 0; r < 16 && t + r < s.length; ++r)
                    for (int64_t c = 0; c < 16; c += LANES) put(dq[t + r] + d + c, take(square + r * 16 + c));
            }
        q.data += s.size, out.data += s.size, grad.data += s.size, dq.data += s.size;
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
void forward_all(Rows<const T> q, Rows<const T> k, Rows<const T> v, Rows<T> out, float* lse, int64_t tokens,
                 const Documents& docs, Scores s) {
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
                run(q.from(at, h * s.size), k.from(at, j * s.size), v.from(at, j * s.size), out.from(at, h * s.size),
                    lse + h * tokens + at, tokens, group, s);
            }
        M::end();
    }
}

// The query heads of a key head go to one thread, which keeps their sums in its cache. With few documents each query head may
// go to another thread; then `shares` holds dk and dv of every query head, and is null otherwise. The sums are the same.
template <typename M, typename T>
void backward_all(Rows<const T> q, Rows<const T> k, Rows<const T> v, Rows<const T> out, Rows<const T> grad,
                  const float* lse, Rows<T> dq, Rows<T> dk, Rows<T> dv, float* shares, int64_t tokens,
                  const Documents& docs, Scores s) {
    const int64_t group = docs.heads / docs.key_heads, plane = tokens * s.size;
    const int64_t together = shares ? 1 : group;
    float *dk_shares = shares, *dv_shares = shares ? shares + docs.heads * plane : nullptr;
#pragma omp parallel
    {
        M::begin();
#pragma omp for schedule(dynamic, 1) collapse(2) firstprivate(s)
        for (int64_t document = 0; document < docs.count; ++document)
            for (int64_t h = 0; h < docs.heads; h += together) {
                const int64_t at = docs.begin(document), j = h / group * s.size;
                s.length = docs.lengths[document];
                Buffer<float> sums(shares ? 0 : 2 * s.length * s.size);
                float* dk_sum = shares ? dk_shares + h * plane + at * s.size : sums.data;
                float* dv_sum = shares ? dv_shares + h * plane + at * s.size : sums + s.length * s.size;
                const auto run = s.softcap > 0.0f ? backward<M, true, T> : backward<M, false, T>;
                run(q.from(at, h * s.size), k.from(at, j), v.from(at, j), out.from(at, h * s.size),
                    grad.from(at, h * s.size), lse + h * tokens + at, tokens, dq.from(at, h * s.size), dk_sum, dv_sum,
                    together, s);
                if (shares) continue;
                for (int64_t t = 0; t < s.length; ++t)
                    for (int64_t d = 0; d < s.size; d += LANES) {
                        put(dk[at + t] + j + d, take(dk_sum + t * s.size + d));
                        put(dv[at + t] + j + d, take(dv_sum + t * s.size + d));
                    }
            }
        M::end();
        if (shares) {
#pragma omp for collapse(2)
            for (int64_t t = 0; t < tokens; ++t)
                for (int64_t j = 0; j < docs.key_heads; ++j)
                    for (int64_t d = 0; d < s.size; d += LANES) {
                        const int64_t from = j * group * plane + t * s.size + d;
                        Floats dk_sum = take(dk_shares + from), dv_sum = take(dv_shares + from);
                        for (int64_t g = 1; g < group; ++g) {
                            dk_sum += take(dk_shares + from + g * plane);
                            dv_sum += take(dv_shares + from + g * plane);
                        }
                        put(dk[t] + j * s.size + d, dk_sum);
                        put(dv[t] + j * s.size + d, dv_sum);
                    }
        }
    }
}

#ifdef LAMINA_PAIRS
using Multiplied = bf16;
#else
using Multiplied = float;
#endif

}  // namespace

#define ROWS(T, NAME) \
    Rows<T> { (T*)NAME, NAME##_row }
#define FORWARD(M, T)                                                                                          \
    forward_all<M, T>(ROWS(const T, q), ROWS(const T, k), ROWS(const T, v), ROWS(T, out), lse, tokens,         \
                      Documents{lengths, documents, heads, key_heads}, Scores{0, size, window, scale, softcap})
#define BACKWARD(M, T)                                                                                          \
    backward_all<M, T>(ROWS(const T, q), ROWS(const T, k), ROWS(const T, v), ROWS(const T, out),                \
                       ROWS(const T, grad), lse, ROWS(T, dq), ROWS(T, dk), ROWS(T, dv), shares, tokens,         \
                       Documents{lengths, documents, heads, key_heads}, Scores{0, size, window, scale, softcap})

#define FORWARD_PARAMETERS                                                                                          \
    (const void* q, int64_t q_row, const void* k, int64_t k_row, const void* v, int64_t v_row, void* out,           \
     int64_t out_row, float* lse, const int64_t* lengths, int64_t documents, int64_t tokens, int64_t heads,         \
     int64_t key_heads, int64_t size, int64_t window, float scale, float softcap)
#define BACKWARD_PARAMETERS                                                                                         \
    (const void* q, int64_t q_row, const void* k, int64_t k_row, const void* v, int64_t v_row, const void* out,     \
     int64_t out_row, const void* grad, int64_t grad_row, const float* lse, void* dq, int64_t dq_row, void* dk,     \
     int64_t dk_row, void* dv, int64_t dv_row, float* shares, const int64_t* lengths, int64_t documents,            \
     int64_t tokens, int64_t heads, int64_t key_heads, int64_t size, int64_t window, float scale, float softcap)

extern "C" void lamina_attention_float32 FORWARD_PARAMETERS { FORWARD(Vectors<float>, float); }
extern "C" void lamina_attention_backward_float32 BACKWARD_PARAMETERS { BACKWARD(Vectors<float>, float); }

extern "C" void lamina_attention_bfloat16 FORWARD_PARAMETERS {
#ifdef LAMINA_TILES
    if (may_use_tiles()) return FORWARD(Tiles, bf16);
#endif
    FORWARD(Vectors<Multiplied>, bf16);
}

extern "C" void lamina_attention_backward_bfloat16 BACKWARD_PARAMETERS {
#ifdef LAMINA_TILES
    if (may_use_tiles()) return BACKWARD(Tiles, bf16);
#endif
    BACKWARD(Vectors<Multiplied>, bf16);
}
