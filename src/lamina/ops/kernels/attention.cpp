// Causal attention of documents laid end to end, forward and backward.
//
// Everything is done in blocks of 32 x 32 scores. A thread takes one document and one head; a block row of scores fits
// its cache, so softmax needs no running maximum. The backward makes the weights again, transposed, from the scores'
// normalisers (`lse`), so nothing of size length^2 is ever stored.
//
// Two ways to multiply blocks, behind one interface: AMX tiles for bfloat16 where the CPU has them, else plain loops that
// compilers vectorise, in float32. Both add up in float32.

#include <cstdlib>
#include <initializer_list>
#include <type_traits>
#include <utility>
#include <vector>

#include "numbers.h"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

constexpr int64_t BLOCK = 32;
constexpr int64_t LANES = 16;
constexpr int64_t TILE = BLOCK * 16;  // elements of a packed tile: 32 of the summed dimension by 16 columns

inline int64_t blocks(int64_t length) { return (length + BLOCK - 1) / BLOCK; }

// Memory that a thread keeps for its next document: fresh pages would cost more than the arithmetic.
struct Shelf {
    std::vector<void*> free[64];
    ~Shelf() {
        for (auto& blocks : free)
            for (void* block : blocks) std::free(block);
    }
};
thread_local Shelf shelf;

template <typename T>
struct Buffer {
    T* data;
    int power = 6;  // of two, in bytes

    explicit Buffer(int64_t count, bool zeroed = false) {
        const size_t bytes = sizeof(T) * static_cast<size_t>(count);
        while ((size_t{1} << power) < bytes) ++power;
        auto& blocks = shelf.free[power];
        if (blocks.empty()) blocks.push_back(std::aligned_alloc(64, size_t{1} << power));
        data = static_cast<T*>(blocks.back());
        blocks.pop_back();
        if (zeroed) std::memset(data, 0, bytes);
    }
    ~Buffer() { shelf.free[power].push_back(data); }
    Buffer(const Buffer&) = delete;
    T* operator+(int64_t offset) const { return data + offset; }
    T& operator[](int64_t index) const { return data[index]; }
};

typedef uint32_t Lanes __attribute__((vector_size(64)));

// Exchanges the off-diagonal S x S squares of two rows of a 16 x 16 matrix.
template <int S, int... L>
inline void exchange(Lanes* a, Lanes* b, std::integer_sequence<int, L...>) {
    const Lanes low = __builtin_shufflevector(*a, *b, (L & S ? 16 + L - S : L)...);
    const Lanes high = __builtin_shufflevector(*a, *b, (L & S ? 16 + L : L + S)...);
    *a = low;
    *b = high;
}

template <int S>
inline void exchange_all(Lanes* rows) {
    for (int i = 0; i < 16; ++i)
        if (!(i & S)) exchange<S>(rows + i, rows + i + S, std::make_integer_sequence<int, 16>());
}

// 16 x 16 words of 32 bits, rows `from_row` and `to_row` apart.
inline void transpose(uint32_t* to, int64_t to_row, const uint32_t* from, int64_t from_row) {
    Lanes rows[16];
    for (int i = 0; i < 16; ++i) std::memcpy(rows + i, from + i * from_row, 64);
    exchange_all<8>(rows);
    exchange_all<4>(rows);
    exchange_all<2>(rows);
    exchange_all<1>(rows);
    for (int i = 0; i < 16; ++i) std::memcpy(to + i * to_row, rows + i, 64);
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

#if defined(__AMX_TILE__) && defined(__AMX_BF16__)
struct Tiles {
    using Element = bf16;

    static void begin() {  // palette 1; eight tiles of 16 rows, 64 bytes each
        alignas(64) static constexpr uint8_t config[64] = {1,  0, 0,  0, 0,  0, 0,  0, 0,  0, 0,  0, 0,  0, 0,  0,
                                                           64, 0, 64, 0, 64, 0, 64, 0, 64, 0, 64, 0, 64, 0, 64, 0,
                                                           0,  0, 0,  0, 0,  0, 0,  0, 0,  0, 0,  0, 0,  0, 0,  0,
                                                           16, 16, 16, 16, 16, 16, 16, 16};
        _tile_loadconfig(config);
    }
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

bool may_use_tiles() {  // the kernel hands out the tiles' state only on request
    static const bool granted = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* XTILEDATA */) == 0;
    return granted;
}
#endif

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
    // Zeroes what the queries of a block that do not see a key have there.
    template <typename E>
    void hide(E* weight, E* dscore, int64_t first_query, int64_t key) const {
        int64_t oldest = key - first_query, end = (window ? key + window : length) - first_query;
        end = end < length - first_query ? end : length - first_query;
        oldest = oldest < 0 ? 0 : (oldest > BLOCK ? BLOCK : oldest);
        end = end < oldest ? oldest : (end > BLOCK ? BLOCK : end);
        for (E* row : {weight, dscore}) {
            std::memset(row, 0, sizeof(E) * oldest);
            std::memset(row + end, 0, sizeof(E) * (BLOCK - end));
        }
    }
    bool all_see(int64_t query_block, int64_t key_block) const {
        return key_block < query_block && (query_block + 1) * BLOCK <= length &&
               (!window || (query_block - key_block + 1) * BLOCK <= window);
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
#pragma omp simd
            for (int64_t d = 0; d < s.size; ++d) store(scratch + i * s.size + d, load(from + (first + i) * row + d));
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

// A row of scores, of which those in [oldest, end) are seen, into weights exp(score - largest): returns the largest.
template <bool CAPPED, typename E>
inline float soften(E* weight, float* score, int64_t begin, int64_t oldest, int64_t end, int64_t width, float* sum_out,
                    const Scores& s) {
    const float inner = CAPPED ? s.scale / s.softcap : s.scale;
    // Whole vectors only, and a lane each for maxima and sums: a loop over single numbers would be several times slower.
    for (int64_t c = begin; c < width; c += LANES)
#pragma omp simd
        for (int64_t n = 0; n < LANES; ++n)
            score[c + n] = CAPPED ? s.softcap * fast_tanh(score[c + n] * inner) : score[c + n] * inner;
    for (int64_t c = begin; c < oldest; ++c) score[c] = -INFINITY;
    for (int64_t c = end; c < width; ++c) score[c] = -INFINITY;
    float maxima[LANES], sums[LANES] = {};
    for (int64_t n = 0; n < LANES; ++n) maxima[n] = -INFINITY;
    for (int64_t c = begin; c < width; c += LANES)
#pragma omp simd
        for (int64_t n = 0; n < LANES; ++n) maxima[n] = score[c + n] > maxima[n] ? score[c + n] : maxima[n];
    float largest = -INFINITY, sum = 0.0f;
    for (int64_t n = 0; n < LANES; ++n) largest = maxima[n] > largest ? maxima[n] : largest;
    for (int64_t c = begin; c < width; c += LANES)
#pragma omp simd
        for (int64_t n = 0; n < LANES; ++n) {
            const float e = fast_exp(score[c + n] - largest);
            sums[n] += e;
            store(weight + c + n, e);
        }
    for (int64_t n = 0; n < LANES; ++n) sum += sums[n];
    std::memset(weight + begin, 0, sizeof(E) * (oldest - begin));  // exactly nothing
    std::memset(weight + end, 0, sizeof(E) * (width - end));
    *sum_out = sum;
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
                const float largest = soften<CAPPED>(weights + r * padded, scores + r * padded, begin, oldest, token + 1,
                                                     width, &sum, s);
                inverse[r] = 1.0f / sum;
                if (token < s.length) lse[h * lse_head + token] = largest + std::log(sum);
            }
            for (int64_t d = 0; d < s.size; d += BLOCK) {
                M::multiply(sums.data, BLOCK, weights + first * BLOCK, padded, values + (d / 16) * n * TILE + first * TILE,
                            n * TILE, i + 1 - first, false);
                for (int64_t r = 0; r < BLOCK && i * BLOCK + r < s.length; ++r) {
                    T* to = out + (i * BLOCK + r) * out_row + h * s.size + d;
#pragma omp simd
                    for (int64_t c = 0; c < BLOCK; ++c) store(to + c, sums[r * BLOCK + c] * inverse[r]);
                }
            }
        }    }
}

// A row of 32 scores: weights = exp(score - normaliser), d scores = weights (d weights - delta).
template <bool CAPPED, typename E>
inline void differentiate(E* weight, E* dscore, const float* product, const float* dweight, const float* normaliser,
                          const float* delta, const Scores& s) {
    const float inner = CAPPED ? s.scale / s.softcap : s.scale;
#pragma omp simd
    for (int64_t c = 0; c < BLOCK; ++c) {
        float score = product[c] * inner, slope = s.scale;
        if (CAPPED) {
            const float t = fast_tanh(score);
            score = s.softcap * t;
            slope *= 1.0f - t * t;
        }
        const float p = fast_exp(score - normaliser[c]);
        store(weight + c, p);
        store(dscore + c, p * (dweight[c] - delta[c]) * slope);
    }
}

// One document and one query head. dk and dv get this head's share, float32, rows of `size`.
template <typename M, bool CAPPED, typename T>
void backward(const T* q, int64_t q_row, const T* k, const T* v, int64_t kv_row, const T* out, int64_t out_row,
              const T* grad, int64_t grad_row, const float* lse, T* dq, int64_t dq_row, float* dk, float* dv,
              const Scores& s) {
    using E = typename M::Element;
    const int64_t n = blocks(s.length), padded = n * BLOCK, steps = s.size / BLOCK;
    Buffer<E> q_columns(padded * s.size), g_columns(padded * s.size), q_rows(padded * s.size), g_rows(padded * s.size);
    Buffer<E> key_scratch(BLOCK * s.size), value_scratch(BLOCK * s.size), key_turned(BLOCK * s.size);
    Buffer<E> weights(BLOCK * padded), dscores(BLOCK * padded), dscores_packed(2 * TILE);
    Buffer<float> dq_turned(s.size * padded, true), delta(padded, true), normaliser(padded, true);
    Buffer<float> scores(BLOCK * BLOCK), dweights(BLOCK * BLOCK), sums(BLOCK * BLOCK);
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
        float dot = 0.0f;
#pragma omp simd reduction(+ : dot)
        for (int64_t d = 0; d < s.size; ++d) dot += load(out + t * out_row + d) * load(grad + t * grad_row + d);
        delta[t] = dot;
        normaliser[t] = lse[t];
    }
    fetch(k, kv_row, s);
    fetch(v, kv_row, s);
    for (int64_t j = 0; j < n; ++j) {
        const auto key = take_rows(key_scratch.data, k, kv_row, j * BLOCK, s);
        const auto value = take_rows(value_scratch.data, v, kv_row, j * BLOCK, s);
        M::turn(key_turned.data, key.data, key.row, s.size);
        const int64_t last = s.last_query_block(j);
        for (int64_t i = j; i <= last; ++i) {
            // Transposed: rows are keys, columns are queries.
            M::multiply(scores.data, BLOCK, key.data, key.row, q_columns + 2 * i * steps * TILE, steps * TILE, steps, false);
            M::multiply(dweights.data, BLOCK, value.data, value.row, g_columns + 2 * i * steps * TILE, steps * TILE, steps,
                        false);
            const bool all = s.all_see(i, j);
            for (int64_t r = 0; r < BLOCK; ++r) {
                E *weight = weights + r * padded + i * BLOCK, *dscore = dscores + r * padded + i * BLOCK;
                differentiate<CAPPED>(weight, dscore, scores + r * BLOCK, dweights + r * BLOCK, normaliser + i * BLOCK,
                                      delta + i * BLOCK, s);
                if (!all) s.hide(weight, dscore, i * BLOCK, j * BLOCK + r);
                if (r & 1)
                    for (int64_t half = 0; half < 2; ++half)
                        M::pack_pair(dscores_packed + half * TILE, r - 1, dscore - padded + half * 16, dscore + half * 16);
            }
            for (int64_t d = 0; d < s.size; d += BLOCK)
                M::multiply(dq_turned + d * padded + i * BLOCK, padded, key_turned + d * BLOCK, BLOCK, dscores_packed.data,
                            TILE, 1, true);
        }
        for (int64_t d = 0; d < s.size; d += BLOCK) {
            const int64_t tiles = (d / 16) * n * TILE + j * TILE, count = last + 1 - j;
            M::multiply(sums.data, BLOCK, weights + j * BLOCK, padded, g_rows + tiles, n * TILE, count, false);
            for (int64_t r = 0; r < BLOCK && j * BLOCK + r < s.length; ++r)
                std::memcpy(dv + (j * BLOCK + r) * s.size + d, sums + r * BLOCK, sizeof(float) * BLOCK);
            M::multiply(sums.data, BLOCK, dscores + j * BLOCK, padded, q_rows + tiles, n * TILE, count, false);
            for (int64_t r = 0; r < BLOCK && j * BLOCK + r < s.length; ++r)
                std::memcpy(dk + (j * BLOCK + r) * s.size + d, sums + r * BLOCK, sizeof(float) * BLOCK);
        }
    }
    float square[16 * 16];
    for (int64_t t = 0; t < s.length; t += 16)
        for (int64_t d = 0; d < s.size; d += 16) {
            transpose((uint32_t*)square, 16, (const uint32_t*)(dq_turned + d * padded + t), padded);
            for (int64_t r = 0; r < 16 && t + r < s.length; ++r)
#pragma omp simd
                for (int64_t c = 0; c < 16; ++c) store(dq + (t + r) * dq_row + d + c, square[r * 16 + c]);
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

template <typename M, typename T>
void backward_all(const T* q, int64_t q_row, const T* k, const T* v, int64_t kv_row, const T* out, int64_t out_row,
                  const T* grad, int64_t grad_row, const float* lse, T* dq, T* dk, T* dv, int64_t d_row, float* shares,
                  int64_t tokens, const Documents& docs, Scores s) {
    const int64_t group = docs.heads / docs.key_heads, plane = tokens * s.size;
    float *dk_shares = shares, *dv_shares = shares + docs.heads * plane;
#pragma omp parallel
    {
        M::begin();
#pragma omp for schedule(dynamic, 1) collapse(2) firstprivate(s)
        for (int64_t document = 0; document < docs.count; ++document)
            for (int64_t h = 0; h < docs.heads; ++h) {
                const int64_t at = docs.begin(document), kv = at * kv_row + h / group * s.size;
                s.length = docs.lengths[document];
                const auto run = s.softcap > 0.0f ? backward<M, true, T> : backward<M, false, T>;
                run(q + at * q_row + h * s.size, q_row, k + kv, v + kv, kv_row, out + at * out_row + h * s.size,
                            out_row, grad + at * grad_row + h * s.size, grad_row, lse + h * tokens + at,
                            dq + at * d_row + h * s.size, d_row, dk_shares + h * plane + at * s.size,
                            dv_shares + h * plane + at * s.size, s);
            }
        M::end();
        // The query heads of a key head, added up in their order.
#pragma omp for collapse(2)
        for (int64_t t = 0; t < tokens; ++t)
            for (int64_t j = 0; j < docs.key_heads; ++j) {
                const int64_t from = j * group * plane + t * s.size, to = t * d_row + j * s.size;
#pragma omp simd
                for (int64_t d = 0; d < s.size; ++d) {
                    float dk_sum = 0.0f, dv_sum = 0.0f;
                    for (int64_t g = 0; g < group; ++g) {
                        dk_sum += dk_shares[from + g * plane + d];
                        dv_sum += dv_shares[from + g * plane + d];
                    }
                    store(dk + to + d, dk_sum);
                    store(dv + to + d, dv_sum);
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
#if defined(__AMX_TILE__) && defined(__AMX_BF16__)
    if (may_use_tiles()) return FORWARD(Tiles, bf16);
#endif
    FORWARD(Loops, bf16);
}

extern "C" void lamina_attention_backward_bfloat16 BACKWARD_PARAMETERS {
#if defined(__AMX_TILE__) && defined(__AMX_BF16__)
    if (may_use_tiles()) return BACKWARD(Tiles, bf16);
#endif
    BACKWARD(Loops, bf16);
}
