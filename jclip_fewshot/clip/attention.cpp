// Attention with what its gradient needs, for training on the CPU: see layers.py. Follows tower.cpp, whose vector
// helpers it uses. Row-major; q (B, Q, W), kv (B, L, 2W), keys first; heads are 64 wide; P (B, H, Q, L).

namespace jclip {

// to (columns, padded) = the transpose of from (rows, columns), times scale; zero behind `rows`.
inline void transposed(int64_t rows, int64_t columns, const float* from, int64_t stride, float scale, float* to,
                       int64_t padded) {
    for (int64_t c = 0; c < columns; c++)
        for (int64_t r = 0; r < padded; r++) to[c * padded + r] = r < rows ? from[r * stride + c] * scale : 0.f;
}

// C (m, n) = A (m, k) B (k, n) by one thread; n is a multiple of LANES.
inline void one_thread(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb,
                       float* c, int64_t ldc) {
    for (int64_t i = 0; i < m; i += ROWS)
        small_product<Single>((int)std::min<int64_t>(ROWS, m - i), n, k, a + i * lda, lda, b, ldb, c + i * ldc, ldc);
}

inline int64_t filled(int64_t length) { return (length + LANES - 1) / LANES * LANES; }

// out (B, Q, W), P: query i of sequence b sees the first seen[b, i] keys.
inline void attend_all(int64_t batch, int64_t heads, int64_t queries, int64_t length, const float* q, const float* kv,
                       const int* seen, float* out, float* probs) {
    int64_t width = heads * HEAD, padded = filled(length);
#pragma omp parallel
    {
        std::vector<float> keys(HEAD * padded), scores(ROWS * padded);
#pragma omp for collapse(2) schedule(static)
        for (int64_t b = 0; b < batch; b++)
            for (int64_t h = 0; h < heads; h++) {
                const float* k = kv + b * length * 2 * width + h * HEAD;
                float* p = probs + (b * heads + h) * queries * length;
                transposed(length, HEAD, k, 2 * width, 0.125f, keys.data(), padded);  // 1 / sqrt(HEAD)
                for (int64_t i0 = 0; i0 < queries; i0 += ROWS) {
                    int rows = (int)std::min<int64_t>(ROWS, queries - i0);
                    int64_t at = (b * queries + i0) * width + h * HEAD;
                    small_product<Single>(rows, padded, HEAD, q + at, width, keys.data(), padded, scores.data(), padded);
                    for (int i = 0; i < rows; i++) {
                        float *row = scores.data() + i * padded, *to = p + (i0 + i) * length;
                        int64_t open = seen[b * queries + i0 + i];
                        float top = row[0], sum = 0;
#pragma omp simd reduction(max : top)
                        for (int64_t j = 0; j < open; j++) top = std::max(top, row[j]);
#pragma omp simd reduction(+ : sum)
                        for (int64_t j = 0; j < open; j++) {
                            to[j] = fast_exp(row[j] - top);
                            sum += to[j];
                        }
                        for (int64_t j = 0; j < open; j++) to[j] /= sum;
                        for (int64_t j = open; j < length; j++) to[j] = 0.f;
                    }
                    small_product<Single>(rows, HEAD, length, p + i0 * length, length, k + width, 2 * width, out + at, width);
                }
            }
    }
}

// Gradients of q and kv from that of out.
inline void attend_back(int64_t batch, int64_t heads, int64_t queries, int64_t length, const float* q, const float* kv,
                        const float* probs, const float* dout, float* dq, float* dkv) {
    int64_t width = heads * HEAD, padded = filled(length), across = filled(queries);
#pragma omp parallel
    {
        std::vector<float> values(HEAD * padded), ds(queries * padded), turned(length * across);
#pragma omp for collapse(2) schedule(static)
        for (int64_t b = 0; b < batch; b++)
            for (int64_t h = 0; h < heads; h++) {
                int64_t at = b * queries * width + h * HEAD, key = b * length * 2 * width + h * HEAD;
                const float* p = probs + (b * heads + h) * queries * length;
                transposed(length, HEAD, kv + key + width, 2 * width, 1.f, values.data(), padded);
                one_thread(queries, padded, HEAD, dout + at, width, values.data(), padded, ds.data(), padded);  // dP
                for (int64_t i = 0; i < queries; i++) {
                    float *row = ds.data() + i * padded, mean = 0;
                    const float* pi = p + i * length;
#pragma omp simd reduction(+ : mean)
                    for (int64_t j = 0; j < length; j++) mean += pi[j] * row[j];
                    for (int64_t j = 0; j < length; j++) row[j] = pi[j] * (row[j] - mean) * 0.125f;
                }
                one_thread(queries, HEAD, length, ds.data(), padded, kv + key, 2 * width, dq + at, width);
                transposed(queries, length, ds.data(), padded, 1.f, turned.data(), across);
                one_thread(length, HEAD, queries, turned.data(), across, q + at, width, dkv + key, 2 * width);
                transposed(queries, length, p, length, 1.f, turned.data(), across);
                one_thread(length, HEAD, queries, turned.data(), across, dout + at, width, dkv + key + width, 2 * width);
            }
    }
}

}  // namespace jclip
