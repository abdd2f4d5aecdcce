// LayerNorm and QuickGELU with their gradients, for training on the CPU: see layers.py. Follows tower.cpp, whose
// norm and exponential it uses. Row-major.

namespace jclip {

// y (rows, width) = (x - mean) / sigma weight + shift; moments (rows, 2): mean and 1 / sigma of each row.
inline void norm_all(int64_t rows, int64_t width, const float* x, const float* weight, const float* shift, float* y,
                     float* moments) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++)
        norm_row<Single>(width, x + r * width, weight, shift, y + r * width, moments + 2 * r);
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

inline void gelu_all(int64_t count, const float* x, float* y) {
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < count; i++) y[i] = quick_gelu(x[i]);
}

// dx = dy (s + 1.702 x s (1 - s)), s = sigmoid(1.702 x)
inline void gelu_back(int64_t count, const float* x, const float* dy, float* dx) {
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < count; i++) {
        float s = 1.f / (1.f + fast_exp(-1.702f * x[i]));
        dx[i] = dy[i] * (s + 1.702f * x[i] * s * (1.f - s));
    }
}

}  // namespace jclip
