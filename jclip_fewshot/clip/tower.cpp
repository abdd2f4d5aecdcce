// A frozen CLIP tower on the CPU as one operator: see cpu.py. Needs product.cpp before it.
//
// Row-major throughout. B sequences, L tokens, W width, M width inside the MLPs, D feature width. What is multiplied
// is kept as T's numbers (float32 or bfloat16); the residual stream, norms and softmax are float32. A head's width is
// even where T's numbers come in pairs.

namespace jclip {

constexpr int HEAD = 64;  // width of a head of OpenAI's, to which attention.cpp and resnet.cpp keep

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

enum { QUICK_GELU, GELU, GELU_TANH };  // in the order of layers.py's ACTIVATIONS

inline float quick_gelu(float x) { return x / (1.f + fast_exp(-1.702f * x)); }

// The part of a normal distribution that lies beyond |x|, to 1e-7: Abramowitz and Stegun 7.1.26.
inline float tail(float x) {
    float z = std::fabs(x) * 0.707106781f, t = 1.f / (1.f + 0.3275911f * z);
    return 0.5f * t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f)))) *
           fast_exp(-z * z);
}

inline float gelu(float x) { return x > 0 ? x - x * tail(x) : x * tail(x); }

inline float gelu_tanh(float x) { return x / (1.f + fast_exp(-1.595769122f * (x + 0.044715f * x * x * x))); }

// y = norm(x), one row, as T's numbers; moments, where they are asked for: its mean and 1 / sigma.
template <class T>
inline void norm_row(int64_t width, const float* x, const float* weight, const float* shift, typename T::Number* y,
                     float eps, float* moments = nullptr) {
    float sum = 0, square = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; i++) sum += x[i];
    float mean = sum / width;
#pragma omp simd reduction(+ : square)
    for (int64_t i = 0; i < width; i++) square += (x[i] - mean) * (x[i] - mean);
    float scale = 1.f / std::sqrt(square / width + eps);
#pragma omp simd
    for (int64_t i = 0; i < width; i++) y[i] = T::narrow((x[i] - mean) * scale * weight[i] + shift[i]);
    if (moments) moments[0] = mean, moments[1] = scale;
}

template <class T>
inline void norm(int64_t rows, int64_t width, const float* x, const float* const* p, typename T::Number* y, float eps) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) norm_row<T>(width, x + r * width, p[0], p[1], y + r * width, eps);
}

// One head, `head` numbers wide, of one sequence. q: `queries` rows; k, v: `length` rows, all `stride` (q: q_stride) apart; out: rows
// out_stride apart. Query i sees keys up to last[i].
template <class T>
inline void attend(int64_t head, int64_t queries, int64_t length, const typename T::Number* q, int64_t q_stride,
                   const typename T::Number* k, const typename T::Number* v, int64_t stride, const int* last,
                   bool causal, typename T::Number* out, int64_t out_stride, Memory<float>& scratch) {
    const int64_t words = head / T::PAIR, padded = (length + LANES - 1) / LANES * LANES;
    const int64_t wide = (head + LANES - 1) / LANES * LANES;
    const float factor = 1.f / std::sqrt((float)head);
    Word* keys = scratch.at_least((words + 2 * ROWS + wide) * padded + ROWS * wide);
    float *scores = keys + words * padded, *mixed = scores + ROWS * padded;
    auto* chances = (typename T::Number*)(mixed + ROWS * wide);
    auto* values = (typename T::Number*)(mixed + ROWS * wide + ROWS * padded);
    for (int64_t j0 = 0; j0 < padded; j0 += LANES)  // keys (words, padded): transposed, so that a row is a vector
        for (int64_t d = 0; d < words; d++)
            for (int64_t j = j0; j < j0 + LANES; j++)
                keys[d * padded + j] = j < length ? ((const Word*)(k + j * stride))[d] : 0.f;
    interleave<T>(length, head, v, stride, wide, values);
    for (int64_t i0 = 0; i0 < queries; i0 += ROWS) {
        int rows = (int)std::min<int64_t>(ROWS, queries - i0);
        int64_t most = length;
        if (causal) {
            most = 0;
            for (int i = 0; i < rows; i++) most = std::max<int64_t>(most, (last ? last[i0 + i] : i0 + i) + 1);
        }
        small_product<T>(rows, most, words, (const Word*)(q + i0 * q_stride), q_stride / T::PAIR, keys, padded, scores,
                         padded);
        float scale[ROWS];
        for (int i = 0; i < rows; i++) {
            float* row = scores + i * padded;
            typename T::Number* chance = chances + i * padded;
            int64_t seen = causal ? (last ? last[i0 + i] : i0 + i) + 1 : length;
            // Whole vectors: what lies behind the last key is too small to count, and a rest would be computed one by one.
            for (int64_t j = seen; j < padded; j++) row[j] = -1e30f;
            float tops[LANES], sums[LANES] = {}, top = row[0], sum = 0;
            for (int l = 0; l < LANES; l++) tops[l] = row[l];
            for (int64_t j = LANES; j < seen; j += LANES)
#pragma omp simd
                for (int l = 0; l < LANES; l++) tops[l] = std::max(tops[l], row[j + l]);
            for (int l = 0; l < LANES; l++) top = std::max(top, tops[l]);
            for (int64_t j = 0; j < seen; j += LANES)
#pragma omp simd
                for (int l = 0; l < LANES; l++) {
                    float e = fast_exp((row[j + l] - top) * factor);
                    chance[j + l] = T::narrow(e);
                    sums[l] += e;
                }
            for (int l = 0; l < LANES; l++) sum += sums[l];
            for (int64_t j = seen; j < whole<T>(most); j++) chance[j] = 0;
            scale[i] = 1.f / sum;
        }
        small_product<T>(rows, wide, whole<T>(most) / T::PAIR, (const Word*)chances, padded / T::PAIR,
                         (const Word*)values, wide, mixed, wide);
        for (int i = 0; i < rows; i++)
            for (int64_t d = 0; d < head; d++)
                out[(i0 + i) * out_stride + d] = T::narrow(mixed[i * wide + d] * scale[i]);
    }
}

// All heads of `batch` sequences.
template <class T>
inline void attention(int64_t batch, int64_t heads, int64_t head, int64_t queries, int64_t length, const typename T::Number* q,
                      int64_t q_stride, const typename T::Number* k, const typename T::Number* v, int64_t stride,
                      const int* last, bool causal, typename T::Number* out) {
    int64_t width = heads * head;
#pragma omp parallel
    {
        static thread_local Memory<float> scratch;
#pragma omp for collapse(2) schedule(static)
        for (int64_t b = 0; b < batch; b++)
            for (int64_t h = 0; h < heads; h++) {
                int64_t o = h * head;
                attend<T>(head, queries, length, q + b * queries * q_stride + o, q_stride, k + b * length * stride + o,
                          v + b * length * stride + o, stride, last ? last + b : nullptr, causal,
                          out + b * queries * width + o, width, scratch);
            }
    }
}

// What is done with a product's sums: written as numbers or floats, with a bias; added to the residual stream.
template <class T>
struct Write {
    typename T::Number* to;
    int64_t stride, from;  // column `from` of the product is the first of `to`
    const float* bias;
    void operator()(int64_t row, int64_t column, int64_t count, const float* sums) const {
        typename T::Number* y = to + row * stride + column - from;
#pragma omp simd
        for (int64_t i = 0; i < count; i++) y[i] = T::narrow(sums[i] + bias[column + i]);
    }
};

template <class T>
struct WriteActivated {
    typename T::Number* to;
    int64_t width, stride;  // the row behind `width` is filled up with zeros
    const float* bias;
    int activation;
    void operator()(int64_t row, int64_t column, int64_t count, const float* sums) const {
        typename T::Number* y = to + row * stride + column;
        const float* shift = bias + column;
        if (activation == QUICK_GELU)
#pragma omp simd
            for (int64_t i = 0; i < count; i++) y[i] = T::narrow(quick_gelu(sums[i] + shift[i]));
        else if (activation == GELU)
#pragma omp simd
            for (int64_t i = 0; i < count; i++) y[i] = T::narrow(gelu(sums[i] + shift[i]));
        else
#pragma omp simd
            for (int64_t i = 0; i < count; i++) y[i] = T::narrow(gelu_tanh(sums[i] + shift[i]));
        if (column + count == width)
            for (int64_t i = width; i < stride; i++) y[i - column] = 0;
    }
};

struct Add {
    float* to;
    int64_t stride;
    const float* bias;
    void operator()(int64_t row, int64_t column, int64_t count, const float* sums) const {
        float* x = to + row * stride + column;
#pragma omp simd
        for (int64_t i = 0; i < count; i++) x[i] += sums[i] + bias[column + i];
    }
};

enum { FEATURES = -1, UNPROJECTED = -2 };

struct Tower {
    int64_t batch, length, width, heads, hidden, layers, features;  // length: tokens a sequence
    int64_t channels, resolution, patch;                            // patch 0: a text tower
    bool causal, norm_before;                                       // a norm in front of the first block
    int activation;
    float eps;
    int64_t stop;                      // FEATURES, UNPROJECTED, or b: the input of block b
    std::vector<const void*> weights;  // in the order in which run() takes them
    int64_t size_out() const { return stop == FEATURES ? features : stop == UNPROJECTED ? width : length * width; }
    const float* vector(size_t at) const { return (const float*)weights[at]; }
};

// Patches of a few images as rows (channel, y, x), then their embedding, class token and positions.
template <class T>
inline void embed_images(const Tower& t, int64_t batch, const float* images, float* x) {
    int64_t side = t.resolution / t.patch, count = side * side, size = t.channels * t.patch * t.patch, W = t.width,
            stride = whole<T>(size);
    typename T::Number* patches = buffer<typename T::Number>(3, batch * count * stride);
    const float *positions = t.vector(1), *first = t.vector(2);
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t b = 0; b < batch; b++)
        for (int64_t g = 0; g < count; g++) {
            typename T::Number* to = patches + (b * count + g) * stride;
            to[stride - 1] = 0;
            const float* from = images + b * t.channels * t.resolution * t.resolution +
                                (g / side * t.resolution + g % side) * t.patch;
            for (int64_t c = 0; c < t.channels; c++)
                for (int64_t y = 0; y < t.patch; y++, to += t.patch)
                    for (int64_t i = 0; i < t.patch; i++)
                        to[i] = T::narrow(from[(c * t.resolution + y) * t.resolution + i]);
        }
    product<T>(batch * count, patches, stride, Matrix<T>{size, W, t.weights[0]},
               [=](int64_t row, int64_t column, int64_t n, const float* sums) {
                   float* to = x + (row / count * (count + 1) + row % count + 1) * W + column;
                   for (int64_t i = 0; i < n; i++) to[i] = sums[i];
               });
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < batch * t.length; r++) {
        int64_t l = r % t.length;
        float* row = x + r * W;
        for (int64_t i = 0; i < W; i++) row[i] = (l ? row[i] : first[i]) + positions[l * W + i];
        if (t.norm_before) norm_row<Single>(W, row, t.vector(3), t.vector(4), row, t.eps);
    }
}

inline void embed_tokens(const Tower& t, int64_t batch, const int* ids, float* x) {
    const float *embedding = t.vector(0), *positions = t.vector(1);
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < batch * t.length; r++)
        for (int64_t i = 0; i < t.width; i++)
            x[r * t.width + i] = embedding[ids[r] * t.width + i] + positions[r % t.length * t.width + i];
}

// A block's weights, in model.py's order.
template <class T>
struct Block {
    const float* norm1[2];
    Matrix<T> qkv;
    const float* qkv_bias;
    Matrix<T> out;
    const float *out_bias, *norm2[2];
    Matrix<T> fc;
    const float* fc_bias;
    Matrix<T> proj;
    const float* proj_bias;
    int activation;
    float eps;
    Block(const Tower& t, size_t p) : activation(t.activation), eps(t.eps) {
        int64_t W = t.width;
        for (int i = 0; i < 2; i++) norm1[i] = t.vector(p + i), norm2[i] = t.vector(p + 6 + i);
        qkv = {W, 3 * W, t.weights[p + 2]}, out = {W, W, t.weights[p + 4]};
        fc = {W, t.hidden, t.weights[p + 8]}, proj = {t.hidden, W, t.weights[p + 10]};
        qkv_bias = t.vector(p + 3), out_bias = t.vector(p + 5), fc_bias = t.vector(p + 9), proj_bias = t.vector(p + 11);
    }
    // x += the rows' outputs of both halves, once the attention's result is in `mixed`.
    void finish(int64_t rows, int64_t W, typename T::Number* mixed, typename T::Number* hidden, float* x) const {
        product<T>(rows, mixed, W, out, Add{x, W, out_bias});
        norm<T>(rows, W, x, norm2, mixed, eps);
        int64_t M = fc.outputs, stride = whole<T>(M);
        product<T>(rows, mixed, W, fc, WriteActivated<T>{hidden, M, stride, fc_bias, activation});
        product<T>(rows, hidden, stride, proj, Add{x, W, proj_bias});
    }
};

// Features (batch, D) of a few sequences read out at token at[b], or what Tower::stop says.
template <class T>
inline void run(const Tower& t, int64_t batch, const float* images, const int* ids, const int* at, float* out) {
    typedef typename T::Number Number;
    const int64_t L = t.length, W = t.width, head = W / t.heads, rows = batch * L;
    const bool inside = t.stop >= 0;
    float* x = inside ? out : buffer<float>(6, rows * W);
    if (t.patch)
        embed_images<T>(t, batch, images, x);
    else
        embed_tokens(t, batch, ids, x);
    size_t p = t.patch ? (t.norm_before ? 5 : 3) : 2;
    Number *y = buffer<Number>(1, rows * W), *qkv = buffer<Number>(2, rows * 3 * W);
    Number* hidden = buffer<Number>(3, rows * whole<T>(t.hidden));
    for (int64_t layer = 0; layer < (inside ? t.stop : t.layers - 1); layer++, p += 12) {
        Block<T> block(t, p);
        norm<T>(rows, W, x, block.norm1, y, t.eps);
        product<T>(rows, y, W, block.qkv, Write<T>{qkv, 3 * W, 0, block.qkv_bias});
        attention<T>(batch, t.heads, head, L, L, qkv, 3 * W, qkv + W, qkv + 2 * W, 3 * W, nullptr, t.causal, y);
        block.finish(rows, W, y, hidden, x);
    }
    if (inside) return;
    // The last block: keys and values of all tokens, everything else of one token a sequence.
    Block<T> block(t, p);
    norm<T>(rows, W, x, block.norm1, y, t.eps);
    product<T>(rows, y, W, block.qkv, W, 3 * W, Write<T>{qkv, 2 * W, W, block.qkv_bias});
    float* one = buffer<float>(7, batch * W);
    Number *query = buffer<Number>(4, 2 * batch * W), *mixed = query + batch * W;
    for (int64_t b = 0; b < batch; b++) {
        std::memcpy(one + b * W, x + (b * L + at[b]) * W, W * sizeof(float));
        std::memcpy(mixed + b * W, y + (b * L + at[b]) * W, W * sizeof(Number));
    }
    product<T>(batch, mixed, W, block.qkv, 0, W, Write<T>{query, W, 0, block.qkv_bias});
    attention<T>(batch, t.heads, head, 1, L, query, W, qkv, qkv + W, 2 * W, at, t.causal, mixed);
    block.finish(batch, W, mixed, hidden, one);
    const float* readout[2] = {t.vector(p + 12), t.vector(p + 13)};
    if (t.stop == UNPROJECTED) return norm<Single>(batch, W, one, readout, out, t.eps);
    norm<T>(batch, W, one, readout, mixed, t.eps);
    product<T>(batch, mixed, W, Matrix<T>{W, t.features, t.weights[p + 14]},
               [&](int64_t row, int64_t column, int64_t count, const float* sums) {
                   std::memcpy(out + row * t.features + column, sums, count * sizeof(float));
               });
}

// The whole batch, a few sequences at a time, so that what a block works on stays in the cache.
template <class T>
inline void run_all(const Tower& t, int64_t at_once, const float* images, const int* ids, const int* at, float* out) {
    int64_t image = t.channels * t.resolution * t.resolution;
    for (int64_t b = 0; b < t.batch; b += at_once)
        run<T>(t, std::min(at_once, t.batch - b), images ? images + b * image : nullptr,
               ids ? ids + b * t.length : nullptr, at + b, out + b * t.size_out());
}

}  // namespace jclip
