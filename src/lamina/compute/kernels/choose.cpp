// Chooses the next token of each row of logits. A row's choice depends on that row alone, and on one random number.

#include <algorithm>
#include <utility>
#include <vector>

#include "numbers.h"

namespace {

struct Choice {
    float temperature;  // 0: the most probable token
    int64_t top_k;      // 0: all
    float top_p, min_p;
    double uniform;     // in [0, 1)
};

inline bool is_allowed(const int32_t* mask, int64_t token) {
    return !mask || (static_cast<uint32_t>(mask[token / 32]) >> (token % 32) & 1u);
}

// The first of the largest logits that are allowed; -1 if there is none.
int64_t largest_token(const float* logits, const int32_t* mask, int64_t width) {
    int64_t best = -1;
    if (!mask) {
        Floats most = broadcast(-INFINITY);
        int64_t j = 0;
        for (; j + LANES <= width; j += LANES) most = larger(take(logits + j), most);
        float value = largest_of(most);
        for (; j < width; ++j) value = std::max(value, logits[j]);
        if (!(value > -INFINITY)) return -1;
        for (j = 0; j < width && best < 0; ++j)
            if (logits[j] == value) best = j;
        return best;
    }
    for (int64_t j = 0; j < width; ++j)
        if (is_allowed(mask, j) && logits[j] > -INFINITY && (best < 0 || logits[j] > logits[best])) best = j;
    return best;
}

using Weighted = std::pair<float, int32_t>;  // weight, token

inline bool comes_first(const Weighted& a, const Weighted& b) {
    return a.first > b.first || (a.first == b.first && a.second < b.second);
}

// Keeps the fewest of the heaviest whose weights reach the share `top_p` of all.
void keep_nucleus(std::vector<Weighted>* kept, float top_p) {
    double total = 0.0;
    for (const auto& each : *kept) total += each.first;
    const double wanted = top_p * total;
    // Only the heaviest are sorted: those above a bound that together weigh enough.
    std::vector<Weighted> heavy;
    for (const float bound : {1e-2f, 1e-4f, 1e-7f, 0.0f}) {
        heavy.clear();
        double sum = 0.0;
        for (const auto& each : *kept)
            if (each.first >= bound) {
                heavy.push_back(each);
                sum += each.first;
            }
        if (sum >= wanted) break;
    }
    std::sort(heavy.begin(), heavy.end(), comes_first);
    double sum = 0.0;
    size_t count = 0;
    while (count < heavy.size() && (count == 0 || sum < wanted)) sum += heavy[count++].first;
    heavy.resize(count);
    std::sort(heavy.begin(), heavy.end(), [](const Weighted& a, const Weighted& b) { return a.second < b.second; });
    kept->swap(heavy);
}

int64_t choose(const float* logits, const int32_t* mask, int64_t width, const Choice& how) {
    const int64_t best = largest_token(logits, mask, width);
    if (best < 0 || how.temperature == 0.0f) return best;
    // From the largest down, in double precision: near a temperature of 0 that alone is left, at infinity all are alike.
    const double most = logits[best];
    std::vector<Weighted> kept;
    kept.reserve(static_cast<size_t>(width));
    for (int64_t j = 0; j < width; ++j) {
        if (!is_allowed(mask, j) || !(logits[j] > -INFINITY)) continue;
        const double scaled = (static_cast<double>(logits[j]) - most) / how.temperature;
        kept.emplace_back(scaled < -87.0 ? 0.0f : static_cast<float>(std::exp(scaled)), static_cast<int32_t>(j));
    }
    if (how.top_k > 0 && how.top_k < static_cast<int64_t>(kept.size())) {
        std::nth_element(kept.begin(), kept.begin() + (how.top_k - 1), kept.end(), comes_first);
        kept.resize(static_cast<size_t>(how.top_k));
        std::sort(kept.begin(), kept.end(), [](const Weighted& a, const Weighted& b) { return a.second < b.second; });
    }
    if (how.top_p < 1.0f) keep_nucleus(&kept, how.top_p);
    double total = 0.0;
    for (auto& each : kept) {
        if (each.first < how.min_p) each.first = 0.0f;  // the most probable token has a weight of 1
        total += each.first;
    }
    double left = how.uniform * total;
    int64_t last = best;
    for (const auto& each : kept) {
        if (each.first == 0.0f) continue;
        last = each.second;
        left -= each.first;
        if (left < 0.0) break;
    }
    return last;
}

// log of the sum of exp over a row.
double log_normalizer(const float* logits, int64_t width) {
    const int64_t best = largest_token(logits, nullptr, width);
    if (best < 0) return NAN;
    const float most = logits[best];
    double sum = 0.0;
    for_each_vector(width, [&](int64_t j, auto at) {
        sum += sum_of(at.only(fast_exp(at.take(logits + j, -INFINITY) - most)));
    });
    return most + std::log(sum);
}

}  // namespace

// `mask` has a bit for each token that is allowed, or is null. `uniforms` are whole numbers of 53 bits.
extern "C" void lamina_choose_float32(const float* logits, int64_t logits_row, const float* temperatures, const int64_t* top_ks,
                                      const float* top_ps, const float* min_ps, const int64_t* uniforms, const int32_t* mask,
                                      int64_t mask_row, int64_t* tokens, int64_t rows, int64_t width) {
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < rows; ++i) {
        const Choice how{temperatures[i], top_ks[i], top_ps[i], min_ps[i], static_cast<double>(uniforms[i]) * 0x1p-53};
        tokens[i] = choose(logits + i * logits_row, mask ? mask + i * mask_row : nullptr, width, how);
    }
}

extern "C" void lamina_log_normalizer_float32(const float* logits, int64_t logits_row, float* out, int64_t rows,
                                              int64_t width) {
#pragma omp parallel for
    for (int64_t i = 0; i < rows; ++i) out[i] = static_cast<float>(log_normalizer(logits + i * logits_row, width));
}
