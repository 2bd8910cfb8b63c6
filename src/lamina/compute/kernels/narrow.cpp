// Products that sum over tokens and have few rows (the rank): the gradients of a low-rank path's A and B.
//
//     out (R, N) = factor narrow^T (R, T) wide (T, N)
//
// They are bound by memory bandwidth, so `wide` is read once, sequentially. Each thread takes a range of tokens (with many
// threads, a range of columns too) and keeps its sums in its cache. The threads' sums are added in a fixed order, in float32.

#include "blocks.h"
#include "memory.h"
#include "numbers.h"

#ifdef LAMINA_PAIRS
#include <omp.h>

namespace {

constexpr int64_t TOKENS = 128;  // packed together, in strips of so many columns: 128 KB, in reading order
constexpr int64_t STRIP = 512;
constexpr int64_t PARTS = 8;     // stretches of tokens at most, each of which has sums of its own

// The narrow factor transposed: (R, T) in rows of whole blocks of tokens, zeros where there is none.
void transpose_rows(bf16* to, int64_t to_row, const bf16* narrow, int64_t narrow_row, int64_t tokens, int64_t rank) {
    for (int64_t r = 0; r < rank; ++r) {
        for (int64_t t = 0; t < tokens; ++t) to[r * to_row + t] = narrow[t * narrow_row + r];
        std::memset(to + r * to_row + tokens, 0, sizeof(bf16) * (to_row - tokens));
    }
    const int64_t padded = (rank + 15) / 16 * 16;
    std::memset(to + rank * to_row, 0, sizeof(bf16) * (padded - rank) * to_row);
}

// 32-bit words of a column of `steps` tiles.
inline int64_t column_words(int64_t steps) { return padded_row<bf16>(steps * TILE) / 2; }

// Packs columns of rows into tiles of 16 columns x 32 tokens; a word holds two consecutive tokens.
inline void pack(uint32_t* tiles, const bf16* wide, int64_t row, int64_t tokens, int64_t columns, int64_t steps) {
    alignas(64) static constexpr uint16_t pairs[32] = {0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                                       8,  40, 9,  41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    const __m512i left = _mm512_load_si512(pairs), right = _mm512_add_epi16(left, _mm512_set1_epi16(16));
    for (int64_t t = 0; t < steps * 32; t += 2)
        for (int64_t n = 0; n < columns; n += 32) {
            const __mmask32 there = columns - n < 32 ? (__mmask32{1} << (columns - n)) - 1 : ~__mmask32{0};
            const bf16* from = wide + t * row + n;
            const __m512i first = _mm512_maskz_loadu_epi16(t < tokens ? there : 0, from);
            const __m512i second = _mm512_maskz_loadu_epi16(t + 1 < tokens ? there : 0, from + row);
            uint32_t* to = tiles + n / 16 * column_words(steps) + t * 8;
            _mm512_store_si512(to, _mm512_permutex2var_epi16(first, left, second));
            _mm512_store_si512(to + column_words(steps), _mm512_permutex2var_epi16(first, right, second));
        }
}

template <typename M>
void narrow_product(const bf16* narrow, int64_t narrow_row, const bf16* wide, int64_t wide_row, float* out,
                    int64_t out_row, int64_t out_column, int64_t tokens, int64_t rank, int64_t width, float factor) {
    const int64_t padded_rank = (rank + 15) / 16 * 16, padded_width = (width + 31) / 32 * 32;
    const int64_t chunks = (tokens + TOKENS - 1) / TOKENS;
    const int64_t threads = omp_get_max_threads();
    const int64_t parts = threads < PARTS ? (threads < chunks ? threads : chunks) : (PARTS < chunks ? PARTS : chunks);
    const int64_t teams = threads / parts;  // each takes a range of columns
    Buffer<float> sums(parts * padded_rank * padded_width);
    float* all_sums = sums.data;
#pragma omp parallel
    {
        M::begin();
        Buffer<bf16> transposed(padded_rank * TOKENS);
        Buffer<uint32_t> tiles(STRIP / 16 * column_words(TOKENS / BLOCK));
#pragma omp for schedule(static, 1)
        for (int64_t id = 0; id < parts * teams; ++id) {
            const int64_t part = id % parts, team = id / parts;
            const int64_t begin = chunks * part / parts * TOKENS, end = chunks * (part + 1) / parts * TOKENS;
            const int64_t first = padded_width / 32 * team / teams * 32, last = padded_width / 32 * (team + 1) / teams * 32;
            float* own = all_sums + part * padded_rank * padded_width;
            for (int64_t t = begin; t < end; t += TOKENS) {
                const int64_t here = tokens - t < TOKENS ? tokens - t : TOKENS, steps = (here + 31) / 32;
                transpose_rows(transposed.data, TOKENS, narrow + t * narrow_row, narrow_row, here, rank);
                for (int64_t strip = first; strip < last; strip += STRIP) {
                    const int64_t strip_end = strip + STRIP < last ? strip + STRIP : last;
                    const int64_t columns = (strip_end < width ? strip_end : width) - strip;
                    pack(tiles.data, wide + t * wide_row + strip, wide_row, here, columns, steps);
                    for (int64_t n = strip; n < strip_end; n += 32)
                        for (int64_t r = 0; r < padded_rank; r += 16)
                            M::template multiply<16>(own + r * padded_width + n, padded_width, transposed + r * TOKENS,
                                                     TOKENS, (const bf16*)(tiles + (n - strip) / 16 * column_words(steps)),
                                                     2 * column_words(steps), steps, t > begin);
                }
            }
        }
        M::end();
#pragma omp for
        for (int64_t n = 0; n < padded_width; n += LANES)
            for (int64_t r = 0; r < rank; ++r) {
                Floats sum = take(all_sums + r * padded_width + n);
                for (int64_t p = 1; p < parts; ++p) sum += take(all_sums + (p * padded_rank + r) * padded_width + n);
                sum *= factor;
                for (int64_t c = 0; c < LANES && n + c < width; ++c) out[r * out_row + (n + c) * out_column] = sum[c];
            }
    }
}

}  // namespace

extern "C" void lamina_narrow_product_bfloat16(const void* narrow, int64_t narrow_row, const void* wide, int64_t wide_row,
                                               float* out, int64_t out_row, int64_t out_column, int64_t tokens,
                                               int64_t rank, int64_t width, float factor) {
    auto run = narrow_product<Vectors<bf16>>;
#ifdef LAMINA_TILES
    if (may_use_tiles()) run = narrow_product<Tiles>;
#endif
    run((const bf16*)narrow, narrow_row, (const bf16*)wide, wide_row, out, out_row, out_column, tokens, rank, width, factor);
}
#endif

// Whether the CPU has instructions for bfloat16 products.
extern "C" int64_t lamina_has_pairs() {
#ifdef LAMINA_PAIRS
    return 1;
#else
    return 0;
#endif
}
