// Attention of one token over keys and values in blocks of a cache.
//
// A block holds BLOCK_TOKENS tokens of each key head. Its keys are stored with the tokens side by side (and with neighboring
// elements in pairs where the CPU multiplies pairs), so that the scores of a block need no sums across a register; its values
// are stored row by row. Blocks are visited in the order of positions, whoever else is in the batch.

#pragma once

#include "products.h"

namespace {

constexpr int64_t BLOCK_TOKENS = 16;

#ifdef LAMINA_PAIRS
constexpr bool KEYS_IN_PAIRS = true;
#else
constexpr bool KEYS_IN_PAIRS = false;
#endif

// Where element d of the key in `slot` is within a block of one head.
template <typename T>
inline int64_t key_place(int64_t d, int64_t slot) {
    constexpr bool pairs = KEYS_IN_PAIRS && sizeof(T) == 2;
    return pairs ? (d / 2 * BLOCK_TOKENS + slot) * 2 + d % 2 : d * BLOCK_TOKENS + slot;
}

template <typename T>
inline void put_key(T* block, const T* key, int64_t slot, int64_t size) {
    for (int64_t d = 0; d < size; ++d) block[key_place<T>(d, slot)] = key[d];
}

// Reads memory ahead, while what was read before is computed with.
inline void read_ahead(const void* from, int64_t bytes) {
    const char* p = static_cast<const char*>(from);
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(p + at);
}

// How many blocks ahead: fewer come too late from memory, and more push each other out of the first-level cache.
constexpr int64_t BLOCKS_AHEAD = 3;

// The cache of one sequence and one key head.
template <typename T>
struct Cached {
    const T *keys, *values;
    const int32_t* blocks;
    int64_t key_heads, head, size;

    int64_t at(int64_t block) const { return (blocks[block] * key_heads + head) * BLOCK_TOKENS * size; }
    void fetch(const T* from, int64_t block) const {
        read_ahead(from + at(block), BLOCK_TOKENS * size * static_cast<int64_t>(sizeof(T)));
    }
};

struct AttentionCall {
    int64_t first, end;  // the positions that are seen
    float scale, softcap;
};

// Scores of HEADS queries, `size` elements apart, with the keys of a block; to[h * to_row + token].
template <int HEADS, typename T>
inline void block_scores(const T* queries, const T* keys, int64_t size, float* to, int64_t to_row) {
#ifdef LAMINA_PAIRS
    if constexpr (sizeof(T) == 2) {
        Floats even[HEADS] = {}, odd[HEADS] = {};
        int64_t d = 0;
        for (; d + 4 <= size; d += 4)
#pragma GCC unroll 4
            for (int h = 0; h < HEADS; ++h) {
                even[h] = multiply_add(queries + h * size + d, keys + d * BLOCK_TOKENS, even[h]);
                odd[h] = multiply_add(queries + h * size + d + 2, keys + (d + 2) * BLOCK_TOKENS, odd[h]);
            }
        if (d < size)
            for (int h = 0; h < HEADS; ++h) even[h] = multiply_add(queries + h * size + d, keys + d * BLOCK_TOKENS, even[h]);
        for (int h = 0; h < HEADS; ++h) put(to + h * to_row, even[h] + odd[h]);
        return;
    }
#endif
    for (int64_t lane = 0; lane < BLOCK_TOKENS; lane += LANES) {
        Floats even[HEADS] = {}, odd[HEADS] = {};
        for (int64_t d = 0; d + 2 <= size; d += 2) {
            const Floats first = take(keys + d * BLOCK_TOKENS + lane), second = take(keys + (d + 1) * BLOCK_TOKENS + lane);
#pragma GCC unroll 4
            for (int h = 0; h < HEADS; ++h) {
                even[h] = multiply_add(broadcast(load(queries + h * size + d)), first, even[h]);
                odd[h] = multiply_add(broadcast(load(queries + h * size + d + 1)), second, odd[h]);
            }
        }
        for (int h = 0; h < HEADS; ++h) put(to + h * to_row + lane, even[h] + odd[h]);
    }
}

// Turns scores into weights exp(score - largest), 0 beyond what is seen. Returns 1 / their sum.
inline float weigh(float* scores, int64_t width, int64_t start, const AttentionCall& call) {
    const float inner = call.softcap != 0.0f ? call.scale / call.softcap : call.scale;
    const auto hidden = [&](int64_t c) { return start + c < call.first || start + c + LANES > call.end; };
    const auto only_seen = [&](int64_t c, Floats value, float elsewhere) {
        for (int64_t lane = 0; lane < LANES; ++lane)
            if (start + c + lane < call.first || start + c + lane >= call.end) value[lane] = elsewhere;
        return value;
    };
    Floats most = broadcast(-INFINITY), total = {};
    for (int64_t c = 0; c < width; c += LANES) {
        Floats value = take(scores + c) * inner;
        if (call.softcap != 0.0f) value = call.softcap * fast_tanh(value);
        if (hidden(c)) value = only_seen(c, value, -INFINITY);
        put(scores + c, value);
        most = larger(value, most);
    }
    const float largest = largest_of(most);
    for (int64_t c = 0; c < width; c += LANES) {
        Floats e = fast_exp(take(scores + c) - largest);
        if (hidden(c)) e = only_seen(c, e, 0.0f);  // exactly 0
        put(scores + c, e);
        total += e;
    }
    return 1.0f / sum_of(total);
}

// VECTORS vectors from element `d` of the outputs of HEADS queries: the values of all blocks times their weights.
template <int HEADS, int VECTORS, typename T>
inline void gather_values(const Cached<T>& cached, const float* weights, int64_t row, const AttentionCall& call, int64_t d,
                          const float* inverses, T* out) {
    const int64_t first = call.first / BLOCK_TOKENS, size = cached.size;
    Floats sums[HEADS * VECTORS] = {};
    for (int64_t b = first; b * BLOCK_TOKENS < call.end; ++b) {
        const T* values = cached.values + cached.at(b) + d;
        const int64_t left = call.end - b * BLOCK_TOKENS, seen = left < BLOCK_TOKENS ? left : BLOCK_TOKENS;
        if (left > BLOCKS_AHEAD * BLOCK_TOKENS) cached.fetch(cached.values, b + BLOCKS_AHEAD);
        const float* own = weights + (b - first) * BLOCK_TOKENS;
        for (int64_t t = 0; t < seen; ++t)
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) {
                const Floats value = take(values + t * size + v * LANES);
#pragma GCC unroll 4
                for (int h = 0; h < HEADS; ++h)
                    sums[h * VECTORS + v] = multiply_add(broadcast(own[h * row + t]), value, sums[h * VECTORS + v]);
            }
    }
    for (int h = 0; h < HEADS; ++h)
        for (int v = 0; v < VECTORS; ++v) put(out + h * size + d + v * LANES, sums[h * VECTORS + v] * inverses[h]);
}

// The elements from `d` that are no whole vector.
template <typename T>
inline void gather_rest(const Cached<T>& cached, const float* weights, const AttentionCall& call, int64_t d, float inverse,
                        T* out) {
    const int64_t first = call.first / BLOCK_TOKENS;
    for (; d < cached.size; ++d) {
        float sum = 0.0f;
        for (int64_t place = first * BLOCK_TOKENS; place < call.end; ++place)
            sum = std::fma(weights[place - first * BLOCK_TOKENS],
                           load(cached.values + cached.at(place / BLOCK_TOKENS) + place % BLOCK_TOKENS * cached.size + d), sum);
        store(out + d, sum * inverse);
    }
}

template <int HEADS, typename T>
void attend_heads(const Cached<T>& cached, const T* queries, const AttentionCall& call, float* scores, T* out) {
    const int64_t size = cached.size, first = call.first / BLOCK_TOKENS, last = (call.end + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
    const int64_t width = (last - first) * BLOCK_TOKENS;
    const int64_t begun = std::min(last, first + BLOCKS_AHEAD);
    for (int64_t b = first; b < begun; ++b) cached.fetch(cached.keys, b);
    for (int64_t b = first; b < last; ++b) {
        if (b + BLOCKS_AHEAD < last) cached.fetch(cached.keys, b + BLOCKS_AHEAD);
        block_scores<HEADS>(queries, cached.keys + cached.at(b), size, scores + (b - first) * BLOCK_TOKENS, width);
    }
    for (int64_t b = first; b < begun; ++b) cached.fetch(cached.values, b);
    float inverses[HEADS];
    for (int h = 0; h < HEADS; ++h) inverses[h] = weigh(scores + h * width, width, first * BLOCK_TOKENS, call);
    int64_t d = 0;
    for (; d + 4 * LANES <= size; d += 4 * LANES) gather_values<HEADS, 4>(cached, scores, width, call, d, inverses, out);
    for (; d + LANES <= size; d += LANES) gather_values<HEADS, 1>(cached, scores, width, call, d, inverses, out);
    for (int h = 0; h < HEADS; ++h) gather_rest(cached, scores + h * width, call, d, inverses[h], out + h * size);
}

// out (group, size) = softmax(scale q k) v for the `group` query heads of a key head. The head size is even.
template <typename T>
void attend_cached(const Cached<T>& cached, const T* queries, int64_t group, const AttentionCall& call, T* out) {
    const int64_t blocks = (call.end + BLOCK_TOKENS - 1) / BLOCK_TOKENS - call.first / BLOCK_TOKENS;
    Buffer<float> scores(4 * blocks * BLOCK_TOKENS);
    for (int64_t g = 0; g < group; g += 4) {
        const T* own = queries + g * cached.size;
        T* to = out + g * cached.size;
        switch (group - g) {
            case 1: attend_heads<1>(cached, own, call, scores.data, to); break;
            case 2: attend_heads<2>(cached, own, call, scores.data, to); break;
            case 3: attend_heads<3>(cached, own, call, scores.data, to); break;
            default: attend_heads<4>(cached, own, call, scores.data, to); break;
        }
    }
}

}  // namespace
