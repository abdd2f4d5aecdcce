// LayerNorm and the activations with their gradients, for training on the CPU: see layers.py. Follows tower.cpp, whose
// norm and exponential it uses. Row-major.

namespace jclip {

// y (rows, width) = (x - mean) / sigma weight + shift; moments (rows, 2): mean and 1 / sigma of each row.
inline void norm_all(int64_t rows, int64_t width, const float* x, const float* weight, const float* shift, float* y,
                     float* moments, float eps) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++)
        norm_row<Single>(width, x + r * width, weight, shift, y + r * width, eps, moments + 2 * r);
}

// Gradients of x, weight and shift from that of y.
inline void norm_back(int64_t rows, int64_t width, const float* x, const float* weight, const float* moments,
                      const float* dy, float* dx, float* dweight, float* dshift) {
    std::vector<float> parts;  // of dweight and dshift, a pair of rows for each thread
#pragma omp parallel
    {
#pragma omp single
        parts.assign(2 * width * omp_get_num_threads(), 0.f);
        float *own_weight = parts.data() + 2 * width * omp_get_thread_num(), *own_shift = own_weight + width;
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            const float *from = x + r * width, *slope = dy + r * width;
            float mean = moments[2 * r], scale = moments[2 * r + 1], sum = 0, along = 0;
#pragma omp simd reduction(+ : sum, along)
            for (int64_t i = 0; i < width; i++) {
                float normal = (from[i] - mean) * scale, inner = slope[i] * weight[i];
                sum += inner;
                along += inner * normal;
            }
            sum /= width;
            along /= width;
            float* to = dx + r * width;
#pragma omp simd
            for (int64_t i = 0; i < width; i++) {
                float normal = (from[i] - mean) * scale;
                to[i] = scale * (slope[i] * weight[i] - sum - normal * along);
                own_weight[i] += slope[i] * normal;
                own_shift[i] += slope[i];
            }
        }
    }
    std::fill(dweight, dweight + width, 0.f);
    std::fill(dshift, dshift + width, 0.f);
    for (size_t begin = 0; begin < parts.size(); begin += 2 * width)
        for (int64_t i = 0; i < width; i++) {
            dweight[i] += parts[begin + i];
            dshift[i] += parts[begin + width + i];
        }
}

template <class F>
inline void each(int64_t count, const float* x, float* y, F f) {
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < count; i++) y[i] = f(i, x[i]);
}

inline void activate_all(int activation, int64_t count, const float* x, float* y) {
    if (activation == QUICK_GELU) return each(count, x, y, [](int64_t, float a) { return quick_gelu(a); });
    if (activation == GELU) return each(count, x, y, [](int64_t, float a) { return gelu(a); });
    each(count, x, y, [](int64_t, float a) { return gelu_tanh(a); });
}

// With s = sigmoid(u): d(x s)/dx = s + x s (1 - s) du/dx.
inline float sigmoid_slope(float x, float u, float du) {
    float s = 1.f / (1.f + fast_exp(-u));
    return s + x * s * (1.f - s) * du;
}

inline void activate_back(int activation, int64_t count, const float* x, const float* dy, float* dx) {
    if (activation == QUICK_GELU)
        return each(count, x, dx, [=](int64_t i, float a) { return dy[i] * sigmoid_slope(a, 1.702f * a, 1.702f); });
    if (activation == GELU)
        return each(count, x, dx, [=](int64_t i, float a) {
            return dy[i] * ((a > 0 ? 1.f - tail(a) : tail(a)) + a * 0.398942280f * fast_exp(-0.5f * a * a));
        });
    each(count, x, dx, [=](int64_t i, float a) {
        float u = 1.595769122f * (a + 0.044715f * a * a * a);
        return dy[i] * sigmoid_slope(a, u, 1.595769122f * (1.f + 0.134145f * a * a));
    });
}

}  // namespace jclip
