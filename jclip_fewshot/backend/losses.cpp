// Softmax losses of the rows of z (N, K), each with its gradient by z, in one pass over a row: see losses.py. Row-major.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace jclip {

using std::int64_t;

// to (K,) = exp(scale (row - its maximum)); returns their sum and, in top, the maximum.
inline float powers(int64_t K, float scale, const float* row, float* to, float& top) {
    float highest = row[0], sum = 0;
#pragma omp simd reduction(max : highest)
    for (int64_t k = 0; k < K; k++) highest = std::max(highest, row[k]);
#pragma omp simd reduction(+ : sum)
    for (int64_t k = 0; k < K; k++) {
        to[k] = std::exp(scale * (row[k] - highest));
        sum += to[k];
    }
    top = highest;
    return sum;
}

// losses (N,) = -log softmax(scale z)[label]; errors (N, K) = scale (softmax(scale z) - one-hot label).
inline void label_losses(int64_t N, int64_t K, float scale, const float* z, const int* labels, float* losses,
                         float* errors) {
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < N; n++) {
        const float* row = z + n * K;
        float *to = errors + n * K, top, sum = powers(K, scale, row, to, top);
        for (int64_t k = 0; k < K; k++) to[k] *= scale / sum;
        to[labels[n]] -= scale;
        losses[n] = std::log(sum) - scale * (row[labels[n]] - top);
    }
}

// losses (N,) = KL(softmax(target) || softmax(z)); errors (N, K) = softmax(z) - softmax(target).
inline void divergences(int64_t N, int64_t K, const float* target, const float* z, float* losses, float* errors) {
#pragma omp parallel
    {
        std::vector<float> wanted(K);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < N; n++) {
            const float *row = z + n * K, *goal = target + n * K;
            float *to = errors + n * K, *p = wanted.data(), top, goal_top;
            float sum = powers(K, 1, row, to, top), goal_sum = powers(K, 1, goal, p, goal_top), total = 0;
#pragma omp simd reduction(+ : total)
            for (int64_t k = 0; k < K; k++) {
                total += p[k] * (goal[k] - goal_top - row[k] + top);
                to[k] = to[k] / sum - p[k] / goal_sum;
            }
            losses[n] = total / goal_sum - std::log(goal_sum) + std::log(sum);
        }
    }
}

}  // namespace jclip
