// One step of AdamW over `size` numbers, in one pass: see adamw.py.

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace jclip {

using std::int64_t;

constexpr float LEAST = 1.2e-38f;  // about the least normal number

struct Step {
    float b1, b2, rate, debias, decay, eps;
};

inline void adamw(int64_t size, Step p, const float* value, const float* mean, const float* square, const float* gradient,
                  float* new_value, float* new_mean, float* new_square) {
#pragma omp parallel for simd schedule(static) if (size > 20000)
    for (int64_t i = 0; i < size; i++) {
        float g = gradient[i], m = p.b1 * mean[i] + (1 - p.b1) * g, v = p.b2 * square[i] + (1 - p.b2) * g * g;
        new_mean[i] = m;
        new_square[i] = v;
        // -Ofast takes the root by an estimate, which is NaN for a subnormal number; eps hides this least one
        new_value[i] = value[i] * p.decay - p.rate * m / (std::sqrt(std::max(v, LEAST)) * p.debias + p.eps);
    }
}

}  // namespace jclip
