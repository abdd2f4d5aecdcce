// A frozen CLIP tower on the CPU as one operator: see cpu.py. Plain C++14 with OpenMP and oneDNN's sgemm.
//
// Row-major throughout. B sequences, L tokens, W width, D feature width; heads are 64 wide.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

extern "C" int dnnl_sgemm(char, char, int64_t, int64_t, int64_t, float, const float*, int64_t, const float*,
                          int64_t, float, float*, int64_t);

namespace jclip {

using std::int64_t;

constexpr int HEAD = 64;
#ifdef __AVX512F__
constexpr int LANES = 16, COLUMNS = 4;  // 6 x 4 sums fill the 32 registers
#else
constexpr int LANES = 8, COLUMNS = 2;
#endif
constexpr int ROWS = 6;
typedef float Lanes __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

// C (m, n) = A (m, k) B (k, n) + beta C, spread over all threads.
inline void product(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb,
                    float beta, float* c, int64_t ldc) {
    dnnl_sgemm('N', 'N', m, n, k, 1.f, a, lda, b, ldb, beta, c, ldc);
}

// A few rows of C (M, N*LANES) = A (M, k) B (k, N*LANES), sums kept in registers.
template <int M, int N>
inline void small_block(int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
                        int64_t ldc) {
    Lanes sum[M][N];
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) sum[i][j] = Lanes{};
    for (int64_t p = 0; p < k; p++) {
        Lanes row[N];
        for (int j = 0; j < N; j++) row[j] = *(const Lanes*)(b + p * ldb + j * LANES);
        for (int i = 0; i < M; i++) {
            float x = a[i * lda + p];
            for (int j = 0; j < N; j++) sum[i][j] += row[j] * x;
        }
    }
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) *(Lanes*)(c + i * ldc + j * LANES) = sum[i][j];
}

template <int M>
inline void small_rows(int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb,
                       float* c, int64_t ldc) {
    int64_t j = 0;
    for (; j + COLUMNS * LANES <= n; j += COLUMNS * LANES)
        small_block<M, COLUMNS>(k, a, lda, b + j, ldb, c + j, ldc);
    for (; j < n; j += LANES) small_block<M, 1>(k, a, lda, b + j, ldb, c + j, ldc);
}

// One thread's product of m <= ROWS rows; n is a multiple of LANES.
inline void small_product(int m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
                          int64_t ldb, float* c, int64_t ldc) {
    switch (m) {
        case 6: small_rows<6>(n, k, a, lda, b, ldb, c, ldc); break;
        case 5: small_rows<5>(n, k, a, lda, b, ldb, c, ldc); break;
        case 4: small_rows<4>(n, k, a, lda, b, ldb, c, ldc); break;
        case 3: small_rows<3>(n, k, a, lda, b, ldb, c, ldc); break;
        case 2: small_rows<2>(n, k, a, lda, b, ldb, c, ldc); break;
        default: small_rows<1>(n, k, a, lda, b, ldb, c, ldc);
    }
}

// e^x to about 1e-7, written so that the compiler turns a loop of it into vector code.
inline float fast_exp(float x) {
    float y = std::min(std::max(x, -87.f), 88.f) * 1.44269504f;
    int n = (int)(y + (y < 0 ? -0.5f : 0.5f));
    float f = (y - (float)n) * 0.693147181f;
    float p =
        1.f + f * (1.f + f * (0.5f + f * (0.166666667f +
                                          f * (0.0416666667f + f * (0.00833333333f + f * 0.00138888889f)))));
    int32_t bits = (n + 127) << 23;
    float power;
    std::memcpy(&power, &bits, 4);
    return p * power;
}

// y = norm(x), one row; where bias is given it is added to x first, and stays there.
inline void norm_row(int64_t width, float* x, const float* bias, const float* weight, const float* shift,
                     float* y) {
    float sum = 0;
    if (bias) {
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < width; i++) {
            x[i] += bias[i];
            sum += x[i];
        }
    } else {
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < width; i++) sum += x[i];
    }
    float mean = sum / width, square = 0;
#pragma omp simd reduction(+ : square)
    for (int64_t i = 0; i < width; i++) square += (x[i] - mean) * (x[i] - mean);
    float scale = 1.f / std::sqrt(square / width + 1e-5f);
#pragma omp simd
    for (int64_t i = 0; i < width; i++) y[i] = (x[i] - mean) * scale * weight[i] + shift[i];
}

inline void norm(int64_t rows, int64_t width, float* x, const float* bias, const float* const* p, float* y) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) norm_row(width, x + r * width, bias, p[0], p[1], y + r * width);
}

// x = (x + bias) sigmoid(1.702 (x + bias))
inline void quick_gelu(int64_t rows, int64_t width, float* x, const float* bias) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        float* row = x + r * width;
#pragma omp simd
        for (int64_t i = 0; i < width; i++) {
            float v = row[i] + bias[i];
            row[i] = v / (1.f + fast_exp(-1.702f * v));
        }
    }
}

// One head of one sequence. q: `queries` rows; k, v: `length` rows, all `stride` (q: q_stride) apart and
// still without their bias; out: rows out_stride apart. Query i sees keys up to last[i].
inline void attend(int64_t queries, int64_t length, const float* q, int64_t q_stride, const float* k,
                   const float* v, int64_t stride, const float* q_bias, const float* k_bias,
                   const float* v_bias, const int* last, bool causal, float* out, int64_t out_stride,
                   std::vector<float>& scratch) {
    int64_t padded = (length + LANES - 1) / LANES * LANES;
    scratch.resize(HEAD * padded + ROWS * (padded + 2 * HEAD));
    float *keys = scratch.data(), *scores = keys + HEAD * padded, *query = scores + ROWS * padded;
    float* mixed = query + ROWS * HEAD;
    for (int64_t j0 = 0; j0 < padded;
         j0 += LANES)  // keys (HEAD, padded): transposed, so that a row of them is a vector
        for (int d = 0; d < HEAD; d++)
            for (int64_t j = j0; j < j0 + LANES; j++)
                keys[d * padded + j] = j < length ? k[j * stride + d] + k_bias[d] : 0.f;
    for (int64_t i0 = 0; i0 < queries; i0 += ROWS) {
        int rows = (int)std::min<int64_t>(ROWS, queries - i0);
        for (int i = 0; i < rows; i++)
            for (int d = 0; d < HEAD; d++)
                query[i * HEAD + d] = (q[(i0 + i) * q_stride + d] + q_bias[d]) * 0.125f;  // 1 / sqrt(HEAD)
        int64_t most = length;
        if (causal) {
            most = 0;
            for (int i = 0; i < rows; i++) most = std::max<int64_t>(most, (last ? last[i0 + i] : i0 + i) + 1);
        }
        int64_t wide = (most + LANES - 1) / LANES * LANES;
        small_product(rows, wide, HEAD, query, HEAD, keys, padded, scores, padded);
        float scale[ROWS];
        for (int i = 0; i < rows; i++) {
            float* row = scores + i * padded;
            int64_t seen = causal ? (last ? last[i0 + i] : i0 + i) + 1 : length;
            float top = row[0], sum = 0;
#pragma omp simd reduction(max : top)
            for (int64_t j = 0; j < seen; j++) top = std::max(top, row[j]);
#pragma omp simd reduction(+ : sum)
            for (int64_t j = 0; j < seen; j++) {
                row[j] = fast_exp(row[j] - top);
                sum += row[j];
            }
            for (int64_t j = seen; j < most; j++) row[j] = 0.f;
            scale[i] = 1.f / sum;
        }
        small_product(rows, HEAD, most, scores, padded, v, stride, mixed, HEAD);
        for (int i = 0; i < rows; i++)
            for (int d = 0; d < HEAD; d++)
                out[(i0 + i) * out_stride + d] = mixed[i * HEAD + d] * scale[i] + v_bias[d];
    }
}

// All heads of `batch` sequences.
inline void attention(int64_t batch, int64_t heads, int64_t queries, int64_t length, const float* q,
                      int64_t q_stride, const float* k, const float* v, int64_t stride, const float* bias,
                      const int* last, bool causal, float* out) {
    int64_t width = heads * HEAD;
#pragma omp parallel
    {
        std::vector<float> scratch;
#pragma omp for collapse(2) schedule(static)
        for (int64_t b = 0; b < batch; b++)
            for (int64_t h = 0; h < heads; h++) {
                int64_t o = h * HEAD;
                attend(queries, length, q + b * queries * q_stride + o, q_stride, k + b * length * stride + o,
                       v + b * length * stride + o, stride, bias + o, bias + width + o, bias + 2 * width + o,
                       last ? last + b : nullptr, causal, out + b * queries * width + o, width, scratch);
            }
    }
}

struct Tower {
    int64_t batch, length, width, heads, layers, features;  // length: tokens a sequence
    int64_t channels, resolution, patch;                    // patch 0: a text tower
    bool causal;
    std::vector<const float*> weights;  // in the order in which run() takes them
};

// Buffers live on between calls: fresh memory costs as much as some of the arithmetic.
inline float* buffer(int which, int64_t size) {
    static std::vector<float> kept[5];
    if ((int64_t)kept[which].size() < size) kept[which].resize(size);
    return kept[which].data();
}

// Patches of a few images as rows (channel, y, x), then their embedding, class token and positions.
inline void embed_images(const Tower& t, int64_t batch, const float* images, const float* const* p, float* x,
                         float* patches, float* product_out) {
    int64_t side = t.resolution / t.patch, count = side * side, size = t.channels * t.patch * t.patch,
            W = t.width;
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t b = 0; b < batch; b++)
        for (int64_t g = 0; g < count; g++) {
            float* to = patches + (b * count + g) * size;
            const float* from = images + b * t.channels * t.resolution * t.resolution +
                                (g / side * t.resolution + g % side) * t.patch;
            for (int64_t c = 0; c < t.channels; c++)
                for (int64_t y = 0; y < t.patch; y++, to += t.patch)
                    std::memcpy(to, from + (c * t.resolution + y) * t.resolution, t.patch * sizeof(float));
        }
    product(batch * count, W, size, patches, size, p[0], W, 0.f, product_out, W);
    const float *positions = p[1], *first = p[2];
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < batch * t.length; r++) {
        int64_t b = r / t.length, l = r % t.length;
        const float* from = l ? product_out + (b * count + l - 1) * W : first;
        for (int64_t i = 0; i < W; i++) x[r * W + i] = from[i] + positions[l * W + i];
        norm_row(W, x + r * W, nullptr, p[3], p[4], x + r * W);
    }
}

inline void embed_tokens(const Tower& t, int64_t batch, const int* ids, const float* const* p, float* x) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < batch * t.length; r++)
        for (int64_t i = 0; i < t.width; i++)
            x[r * t.width + i] = p[0][ids[r] * t.width + i] + p[1][r % t.length * t.width + i];
}

// Features (batch, D) of a few sequences read out at token at[b].
inline void run(const Tower& t, int64_t batch, const float* images, const int* ids, const int* at,
                float* out) {
    const int64_t L = t.length, W = t.width, rows = batch * L;
    const float* const* p = t.weights.data();
    int64_t patch_size = t.channels * t.patch * t.patch;
    float *x = buffer(0, rows * W), *y = buffer(1, rows * W), *qkv = buffer(2, rows * 3 * W);
    float* hidden = buffer(3, rows * std::max(4 * W, patch_size));
    if (t.patch) {
        embed_images(t, batch, images, p, x, hidden, y);
        p += 5;
    } else {
        embed_tokens(t, batch, ids, p, x);
        p += 2;
    }
    const float* bias = nullptr;  // of the product that was added to x last
    for (int64_t layer = 0; layer + 1 < t.layers; layer++, p += 12) {
        norm(rows, W, x, bias, p, y);
        product(rows, 3 * W, W, y, W, p[2], 3 * W, 0.f, qkv, 3 * W);
        attention(batch, t.heads, L, L, qkv, 3 * W, qkv + W, qkv + 2 * W, 3 * W, p[3], nullptr, t.causal, y);
        product(rows, W, W, y, W, p[4], W, 1.f, x, W);
        norm(rows, W, x, p[5], p + 6, y);
        product(rows, 4 * W, W, y, W, p[8], 4 * W, 0.f, hidden, 4 * W);
        quick_gelu(rows, 4 * W, hidden, p[9]);
        product(rows, W, 4 * W, hidden, 4 * W, p[10], W, 1.f, x, W);
        bias = p[11];
    }
    // The last block: keys and values of all tokens, everything else of one token a sequence.
    norm(rows, W, x, bias, p, y);
    product(rows, 2 * W, W, y, W, p[2] + W, 3 * W, 0.f, qkv, 2 * W);
    float *one = buffer(4, batch * 3 * W), *query = one + batch * W, *mixed = query + batch * W;
    for (int64_t b = 0; b < batch; b++) {
        std::memcpy(one + b * W, x + (b * L + at[b]) * W, W * sizeof(float));
        std::memcpy(mixed + b * W, y + (b * L + at[b]) * W, W * sizeof(float));
    }
    product(batch, W, W, mixed, W, p[2], 3 * W, 0.f, query, W);
    attention(batch, t.heads, 1, L, query, W, qkv, qkv + W, 2 * W, p[3], at, t.causal, mixed);
    product(batch, W, W, mixed, W, p[4], W, 1.f, one, W);
    norm(batch, W, one, p[5], p + 6, mixed);
    product(batch, 4 * W, W, mixed, W, p[8], 4 * W, 0.f, hidden, 4 * W);
    quick_gelu(batch, 4 * W, hidden, p[9]);
    product(batch, W, 4 * W, hidden, 4 * W, p[10], W, 1.f, one, W);
    norm(batch, W, one, p[11], p + 12, mixed);
    product(batch, t.features, W, mixed, W, p[14], t.features, 0.f, out, t.features);
}

// The whole batch, a few sequences at a time, so that what a block works on stays in the cache.
inline void run_all(const Tower& t, int64_t at_once, const float* images, const int* ids, const int* at,
                    float* out) {
    int64_t image = t.channels * t.resolution * t.resolution;
    for (int64_t b = 0; b < t.batch; b += at_once)
        run(t, std::min(at_once, t.batch - b), images ? images + b * image : nullptr,
            ids ? ids + b * t.length : nullptr, at + b, out + b * t.features);
}

}  // namespace jclip
