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

// The cache of one sequence and one key head.
template <typename T>
struct Cached {
    const T *keys, *values;
    const int32_t* blocks;
    int64_t key_heads, head, size;

    int64_t at(int64_t block) const { return (blocks[block] * key_heads + head) * BLOCK_TOKENS * size; }
};

struct AttentionCall {
    int64_t first, end;  // the positions that are seen
    float scale, softcap;
};

// Scores of one query with the keys of a block.
template <typename T>
inline void block_scores(const T* query, const T* keys, int64_t size, float* scores) {
#ifdef LAMINA_PAIRS
    if constexpr (sizeof(T) == 2) {
        Floats even = {}, odd = {};
        int64_t d = 0;
        for (; d + 4 <= size; d += 4) {
            even = multiply_add(query + d, keys + d * BLOCK_TOKENS, even);
            odd = multiply_add(query + d + 2, keys + (d + 2) * BLOCK_TOKENS, odd);
        }
        if (d < size) even = multiply_add(query + d, keys + d * BLOCK_TOKENS, even);
        put(scores, even + odd);
        return;
    }
#endif
    for (int64_t lane = 0; lane < BLOCK_TOKENS; lane += LANES) {
        Floats even = {}, odd = {};
        for (int64_t d = 0; d + 2 <= size; d += 2) {
            even = multiply_add(broadcast(load(query + d)), take(keys + d * BLOCK_TOKENS + lane), even);
            odd = multiply_add(broadcast(load(query + d + 1)), take(keys + (d + 1) * BLOCK_TOKENS + lane), odd);
        }
        put(scores + lane, even + odd);
    }
}

// out (group, size) = softmax(scale q k) v for the `group` query heads of a key head. The head size is even.
template <typename T>
void attend_cached(const Cached<T>& cached, const T* queries, int64_t group, const AttentionCall& call, T* out) {
    const int64_t size = cached.size, first = call.first / BLOCK_TOKENS, last = (call.end + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
    const int64_t width = (last - first) * BLOCK_TOKENS;
    const float inner = call.softcap != 0.0f ? call.scale / call.softcap : call.scale;
    Buffer<float> scores(group * width), sums(group * ((size + LANES - 1) / LANES) * LANES, true);
    Buffer<float> inverses(group);
    for (int64_t b = first; b < last; ++b) {
        const T* keys = cached.keys + cached.at(b);
        if (b + 1 < last) __builtin_prefetch(cached.keys + cached.at(b + 1));
        for (int64_t g = 0; g < group; ++g) block_scores(queries + g * size, keys, size, scores + g * width + (b - first) * BLOCK_TOKENS);
    }
    for (int64_t g = 0; g < group; ++g) {
        float* own = scores + g * width;
        Floats most = broadcast(-INFINITY), total = {};
        for (int64_t c = 0; c < width; c += LANES) {
            Floats value = take(own + c) * inner;
            if (call.softcap != 0.0f) value = call.softcap * fast_tanh(value);
            const int64_t place = first * BLOCK_TOKENS + c;
            if (place < call.first || place + LANES > call.end)
                for (int64_t lane = 0; lane < LANES; ++lane)
                    if (place + lane < call.first || place + lane >= call.end) value[lane] = -INFINITY;
            put(own + c, value);
            most = larger(value, most);
        }
        const float largest = largest_of(most);
        for (int64_t c = 0; c < width; c += LANES) {
            Floats e = fast_exp(take(own + c) - largest);
            const int64_t place = first * BLOCK_TOKENS + c;
            if (place < call.first || place + LANES > call.end)
                for (int64_t lane = 0; lane < LANES; ++lane)
                    if (place + lane < call.first || place + lane >= call.end) e[lane] = 0.0f;  // exactly 0
            put(own + c, e);
            total += e;
        }
        inverses[g] = 1.0f / sum_of(total);
    }
    const int64_t padded = (size + LANES - 1) / LANES * LANES;
    for (int64_t b = first; b < last; ++b) {
        const T* values = cached.values + cached.at(b);
        if (b + 1 < last) __builtin_prefetch(cached.values + cached.at(b + 1));
        const int64_t begin = b * BLOCK_TOKENS, seen = call.end - begin < BLOCK_TOKENS ? call.end - begin : BLOCK_TOKENS;
        for (int64_t g = 0; g < group; ++g) {
            const float* weights = scores + g * width + (b - first) * BLOCK_TOKENS;
            for_each_vector(size, [&](int64_t d, auto at) {
                Floats sum = take(sums + g * padded + d);
                for (int64_t t = 0; t < seen; ++t) sum = multiply_add(broadcast(weights[t]), at.take(values + t * size + d), sum);
                put(sums + g * padded + d, sum);
            });
        }
    }
    for (int64_t g = 0; g < group; ++g)
        for_each_vector(size, [&](int64_t d, auto at) { at.put(out + g * size + d, take(sums + g * padded + d) * inverses[g]); });
}

}  // namespace
