// A frozen ModifiedResNet on the CPU as one operator: see cpu.py. Needs product.cpp and tower.cpp before it.
//
// Activations are rows of channels, one row a pixel (images, y, x, C); so a 1x1 convolution is a matrix
// product as it stands, and a 3x3 one is a product over gathered rows. Weights are (ky, kx, C in; C out). The residual
// stream is float32, what lies inside a block T's numbers.

namespace jclip {

inline float widen(float x) { return x; }
inline float widen(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float wide;
    std::memcpy(&wide, &bits, 4);
    return wide;
}

inline void store(float x, float* to) { *to = x; }
inline void store(float x, uint16_t* to) { *to = Half::narrow(x); }

// y = sums scale + shift (+ added), then perhaps max(y, 0): batch norm's statistics are worked into both.
template <class To>
struct Finish {
    To* to;
    int64_t channels;
    const float *scale, *shift, *added;
    bool relu;
    void operator()(int64_t row, int64_t column, int64_t count, const float* sums) const {
        const float *a = scale + column, *b = shift + column, floor = relu ? 0.f : -3e38f;
        To* y = to + row * channels + column;
        if (added) {
            const float* more = added + row * channels + column;
#pragma omp simd
            for (int64_t i = 0; i < count; i++) store(std::max(sums[i] * a[i] + b[i] + more[i], floor), y + i);
        } else {
#pragma omp simd
            for (int64_t i = 0; i < count; i++) store(std::max(sums[i] * a[i] + b[i], floor), y + i);
        }
    }
};

inline void copy(int64_t count, const float* from, float* to) { std::memcpy(to, from, count * sizeof(float)); }
inline void copy(int64_t count, const uint16_t* from, uint16_t* to) { std::memcpy(to, from, count * 2); }
inline void copy(int64_t count, const float* from, uint16_t* to) {
#pragma omp simd
    for (int64_t i = 0; i < count; i++) to[i] = Half::narrow(from[i]);
}

// Rows of a convolution's product: for each output pixel its one or nine neighbours' channels, zeros outside.
template <class T, class From>
inline void gather(int64_t first, int64_t rows, int64_t side, int64_t stride, int64_t kernel, int64_t channels,
                   const From* x, typename T::Number* to) {
    int64_t out = side / stride, reach = kernel / 2, filled = whole<T>(kernel * kernel * channels);
    for (int64_t r = first; r < first + rows; r++, to += filled) {
        int64_t image = r / (out * out), oy = r / out % out, ox = r % out;
        typename T::Number* at = to;
        to[filled - 1] = 0;
        for (int64_t dy = -reach; dy <= reach; dy++)
            for (int64_t dx = -reach; dx <= reach; dx++, at += channels) {
                int64_t y = oy * stride + dy, x_ = ox * stride + dx;
                if (y < 0 || y >= side || x_ < 0 || x_ >= side)
                    std::memset(at, 0, channels * sizeof(*at));
                else
                    copy(channels, x + ((image * side + y) * side + x_) * channels, at);
            }
    }
}

// The rows of a 1x1 convolution that need no gathering.
inline const float* as_rows(Single, const float* x) { return x; }
inline const uint16_t* as_rows(Half, const uint16_t* x) { return x; }
inline const uint16_t* as_rows(Half, const float*) { return nullptr; }

// Convolution of `images` of side x side pixels; `put` finishes its rows while they are in the cache.
template <class T, class From, class Put>
inline void convolve(int64_t images, int64_t side, int64_t stride, int64_t kernel, Matrix<T> weight, const From* x,
                     const Put& put) {
    typedef typename T::Number Number;
    int64_t out = side / stride, rows = images * out * out, k = weight.inputs, lda = whole<T>(k),
            channels = k / (kernel * kernel), panels = (weight.outputs + PANEL - 1) / PANEL;
    const Number* plain = kernel == 1 ? as_rows(T{}, x) : nullptr;
    // A quarter of a megabyte of gathered rows a tile, and no fewer than make a good product.
    int64_t tile = std::max<int64_t>(96, (1 << 16) / lda);
    if (rows < 8 * tile) {  // few rows, many weights: the weights are shared out among the threads
        if (!plain) {
            Number* gathered = buffer<Number>(4, rows * lda);
#pragma omp parallel for schedule(static)
            for (int64_t r = 0; r < rows; r++)
                gather<T>(r, 1, side, stride, kernel, channels, x, gathered + r * lda);
            plain = gathered;
        }
        return product<T>(rows, plain, lda, weight, put);
    }
    int64_t tiles = (rows + tile - 1) / tile;
#pragma omp parallel
    {
        static thread_local Memory<Number> gathered;
        Number* own = plain ? nullptr : gathered.at_least(tile * lda);
#pragma omp for schedule(dynamic)
        for (int64_t t = 0; t < tiles; t++) {
            int64_t first = t * tile, count = std::min(tile, rows - first);
            if (!plain) gather<T>(first, count, side, stride, kernel, channels, x, own);
            multiply<T>(0, count, plain ? plain + first * lda : own, lda, weight, 0, panels, 0, weight.outputs,
                        [&](int64_t row, int64_t column, int64_t n, const float* sums) {
                            put(first + row, column, n, sums);
                        });
        }
    }
}

// Mean over 2 x 2 pixels.
template <class From, class To>
inline void halve(int64_t images, int64_t side, int64_t channels, const From* x, To* y) {
    int64_t out = side / 2;
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < images * out; r++) {
        const From* from = x + r * 2 * side * channels;
        To* to = y + r * out * channels;
        for (int64_t o = 0; o < out; o++, from += 2 * channels, to += channels) {
            const From* below = from + side * channels;
#pragma omp simd
            for (int64_t i = 0; i < channels; i++)
                store(0.25f * (widen(from[i]) + widen(from[channels + i]) + widen(below[i]) +
                               widen(below[channels + i])), to + i);
        }
    }
}

struct ResNet {
    int64_t resolution, width, features;
    int64_t blocks[4];
    std::vector<const void*> weights;  // in the order in which run() takes them
};

template <class T>
inline void run(const ResNet& net, int64_t batch, const float* images, float* out) {
    typedef typename T::Number Number;
    const void* const* p = net.weights.data();
    int64_t R = net.resolution, W = net.width, side = R / 2;
    // The largest activations are the stem's and the first stage's; narrow nets' images are larger still.
    int64_t most = batch * std::max(side * side * W, R * R * 3);
    float *x = buffer<float>(5, most), *y = buffer<float>(6, most), *shortcut = buffer<float>(7, most);
    Number *a = buffer<Number>(0, most), *b = buffer<Number>(1, most);
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < batch * R; r++)  // channels last
        for (int64_t i = 0; i < R; i++)
            for (int64_t c = 0; c < 3; c++)
                store(images[((r / R * 3 + c) * R + r % R) * R + i], a + (r * R + i) * 3 + c);
    auto conv = [&](int64_t at, int64_t stride, int64_t kernel, int64_t in, int64_t channels, const void* const* w,
                    auto* from, const float* added, bool relu, auto* to) {
        typedef typename std::remove_reference<decltype(*to)>::type To;
        convolve<T>(batch, at, stride, kernel, Matrix<T>{kernel * kernel * in, channels, w[0]}, from,
                    Finish<To>{to, channels, (const float*)w[1], (const float*)w[2], added, relu});
    };
    conv(R, 2, 3, 3, W / 2, p, a, nullptr, true, b);
    conv(side, 1, 3, W / 2, W / 2, p + 3, b, nullptr, true, a);
    conv(side, 1, 3, W / 2, W, p + 6, a, nullptr, true, b);
    p += 9;
    halve(batch, side, W, b, x);
    side /= 2;
    int64_t channels = W;
    for (int stage = 0; stage < 4; stage++)
        for (int64_t block = 0; block < net.blocks[stage]; block++, p += 9) {
            int64_t planes = W << stage;
            bool half = stage && !block;
            conv(side, 1, 1, channels, planes, p, x, nullptr, true, a);
            conv(side, 1, 3, planes, planes, p + 3, a, nullptr, true, b);
            if (half) {
                halve(batch, side, planes, b, a);
                std::swap(a, b);
            }
            const void* const* third = p + 6;
            const float* added = x;
            if (!block) {
                p += 3;
                if (half) {
                    halve(batch, side, channels, x, a);
                    conv(side / 2, 1, 1, channels, 4 * planes, p + 6, a, nullptr, false, shortcut);
                } else {
                    conv(side, 1, 1, channels, 4 * planes, p + 6, x, nullptr, false, shortcut);
                }
                added = shortcut;
            }
            if (half) side /= 2;
            channels = 4 * planes;
            conv(side, 1, 1, planes, channels, third, b, added, true, y);
            std::swap(x, y);
        }
    // Attention pool: one query, the mean.
    int64_t pixels = side * side, L = pixels + 1, C = channels;
    auto linear = [&](size_t at) { return Matrix<T>{C, C, p[at]}; };
    auto vector = [&](size_t at) { return (const float*)p[at]; };
    const float* positions = vector(0);
    Number *tokens = buffer<Number>(2, batch * L * C), *k = buffer<Number>(3, (2 * batch * L + 3 * batch) * C);
    Number *v = k + batch * L * C, *first = v + batch * L * C, *q = first + batch * C, *mixed = q + batch * C;
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < batch; n++) {
        Number* to = tokens + n * L * C;
        const float* from = x + n * pixels * C;
        std::vector<float> mean(C);
        for (int64_t r = 0; r < pixels; r++)
            for (int64_t i = 0; i < C; i++) {
                mean[i] += from[r * C + i];
                to[(r + 1) * C + i] = T::narrow(from[r * C + i] + positions[(r + 1) * C + i]);
            }
        for (int64_t i = 0; i < C; i++) first[n * C + i] = to[i] = T::narrow(mean[i] / pixels + positions[i]);
    }
    product<T>(batch, first, C, linear(1), Write<T>{q, C, 0, vector(2)});
    product<T>(batch * L, tokens, C, linear(3), Write<T>{k, C, 0, vector(4)});
    product<T>(batch * L, tokens, C, linear(5), Write<T>{v, C, 0, vector(6)});
    attention<T>(batch, C / HEAD, HEAD, 1, L, q, C, k, v, C, nullptr, false, mixed);
    product<T>(batch, mixed, C, Matrix<T>{C, net.features, p[7]}, Write<Single>{out, net.features, 0, vector(8)});
}

template <class T>
inline void run_all(const ResNet& net, int64_t batch, int64_t at_once, const float* images, float* out) {
    for (int64_t n = 0; n < batch; n += at_once)
        run<T>(net, std::min(at_once, batch - n), images + n * 3 * net.resolution * net.resolution,
               out + n * net.features);
}

}  // namespace jclip
