// Dropout with a counter-based generator: the mask is a function of a key and an element's index, so the backward computes it
// again and no mask is stored.
//
// The elements of a row draw 16 random bits each, in groups of 64. A group is eight blocks of Philox4x32 with seven rounds
// (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011, where seven rounds are the fewest
// that pass BigCrush). A block's counter is (block of the row, row, 0, 0). The first two words of the blocks are the draws of
// 32 elements, the last two words those of the next 32. `plain.py` computes the same in torch.

#include "numbers.h"

namespace {

constexpr int64_t GROUP = 64;
constexpr int ROUNDS = 7;

// Each 64-bit lane holds one 32-bit word of a block; the upper 32 bits are ignored.
typedef uint64_t Blocks __attribute__((vector_size(4 * LAMINA_LANES)));
constexpr int64_t BLOCKS = LANES / 2;

inline Blocks all(uint32_t word) { return Blocks{} + word; }

inline Blocks product(Blocks a, uint32_t factor) {
#if defined(__AVX512F__)
    return (Blocks)_mm512_mul_epu32((__m512i)a, (__m512i)all(factor));
#elif defined(__AVX2__)
    return (Blocks)_mm256_mul_epu32((__m256i)a, (__m256i)all(factor));
#else
    return (a & 0xffffffffu) * factor;
#endif
}

struct RoundKeys {
    uint32_t first[ROUNDS], second[ROUNDS];

    explicit RoundKeys(uint64_t key) {
        for (uint32_t i = 0; i < ROUNDS; ++i) {
            first[i] = static_cast<uint32_t>(key) + i * 0x9e3779b9u;
            second[i] = static_cast<uint32_t>(key >> 32) + i * 0xbb67ae85u;
        }
    }
};

inline void draw_group(int16_t* draws, const RoundKeys& keys, int64_t row, int64_t group) {
    for (int64_t lane = 0; lane < 8; lane += BLOCKS) {
        Blocks a = all(static_cast<uint32_t>(group * 8 + lane)), b = all(static_cast<uint32_t>(row)), c = {}, d = {};
        for (int64_t i = 0; i < BLOCKS; ++i) a[i] += i;
#pragma GCC unroll 7
        for (int i = 0; i < ROUNDS; ++i) {
            const Blocks p = product(a, 0xd2511f53u), q = product(c, 0xcd9e8d57u);
            a = (q >> 32) ^ b ^ keys.first[i];
            b = q;
            c = (p >> 32) ^ d ^ keys.second[i];
            d = p;
        }
        const Blocks left = (a & 0xffffffffu) | b << 32, right = (c & 0xffffffffu) | d << 32;
        std::memcpy(draws + 4 * lane, &left, sizeof left);
        std::memcpy(draws + GROUP / 2 + 4 * lane, &right, sizeof right);
    }
}

// out = x factor where the draw is at least the threshold, and 0 elsewhere; += with ADD.
template <bool ADD, typename T>
void dropped(const T* x, int64_t x_row, T* out, int64_t out_row, int64_t rows, int64_t width, uint64_t key,
             int32_t threshold, float factor) {
    const RoundKeys keys(key);
#pragma omp parallel for
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t first = 0; first < width; first += GROUP) {
            alignas(64) int16_t draws[GROUP];
            draw_group(draws, keys, i, first / GROUP);
            const T* xi = x + i * x_row + first;
            T* oi = out + i * out_row + first;
            for_each_vector(width - first < GROUP ? width - first : GROUP, [&](int64_t j, auto at) {
                Shorts draw;
                std::memcpy(&draw, draws + j, sizeof draw);
                const Ints stays = __builtin_convertvector(draw, Ints) >= threshold;
                const Floats value = (Floats)((Ints)(at.take(xi + j) * factor) & stays);
                at.put(oi + j, ADD ? at.take(oi + j) + value : value);
            });
        }
}

}  // namespace

FOR_DTYPES(lamina_dropped,
           (const void* x, int64_t x_row, void* out, int64_t out_row, int64_t rows, int64_t width, int64_t key,
            int64_t threshold, float factor),
           dropped<false>((const T*)x, x_row, (T*)out, out_row, rows, width, key, threshold, factor))

FOR_DTYPES(lamina_add_dropped,
           (const void* x, int64_t x_row, void* out, int64_t out_row, int64_t rows, int64_t width, int64_t key,
            int64_t threshold, float factor),
           dropped<true>((const T*)x, x_row, (T*)out, out_row, rows, width, key, threshold, factor))
