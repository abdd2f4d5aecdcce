// A frozen ModifiedResNet on the CPU as one operator: see cpu.py. Needs tower.cpp before it.
//
// Activations are rows of channels, one row a pixel (images, y, x, C); so a 1x1 convolution is a matrix
// product as it stands, and a 3x3 one is a product over gathered rows. Weights are (ky, kx, C in; C out).

namespace jclip {

// Buffers of resnets, beside those of towers.
inline float* space(int which, int64_t size) {
    static std::vector<float> kept[7];
    if ((int64_t)kept[which].size() < size) kept[which].resize(size);
    return kept[which].data();
}

struct Norm {
    const float *scale, *shift;  // of the channels, batch norm's statistics worked in
};

// y = y scale + shift (+ added), then perhaps max(y, 0)
inline void finish(int64_t rows, int64_t channels, float* y, Norm n, const float* added, bool relu) {
    for (int64_t r = 0; r < rows; r++) {
        float* row = y + r * channels;
        const float* more = added ? added + r * channels : nullptr;
        float floor = relu ? 0.f : -3e38f;
        if (more) {
#pragma omp simd
            for (int64_t i = 0; i < channels; i++)
                row[i] = std::max(row[i] * n.scale[i] + n.shift[i] + more[i], floor);
        } else {
#pragma omp simd
            for (int64_t i = 0; i < channels; i++) row[i] = std::max(row[i] * n.scale[i] + n.shift[i], floor);
        }
    }
}

// Rows of a 3x3 convolution's product: for each output pixel its nine neighbours' channels, zeros outside.
inline void gather(int64_t first, int64_t rows, int64_t side, int64_t stride, int64_t channels,
                   const float* x, float* to) {
    int64_t out = side / stride;
    for (int64_t r = first; r < first + rows; r++) {
        int64_t image = r / (out * out), oy = r / out % out, ox = r % out;
        for (int dy = -1; dy <= 1; dy++)
            for (int dx = -1; dx <= 1; dx++, to += channels) {
                int64_t y = oy * stride + dy, x_ = ox * stride + dx;
                if (y < 0 || y >= side || x_ < 0 || x_ >= side)
                    std::memset(to, 0, channels * sizeof(float));
                else
                    std::memcpy(to, x + ((image * side + y) * side + x_) * channels,
                                channels * sizeof(float));
            }
    }
}

// Convolution of `images` of side x side pixels with its batch norm, sum and ReLU while the rows are in the
// cache.
inline void convolve(int64_t images, int64_t side, int64_t stride, int64_t kernel, int64_t inputs,
                     int64_t outputs, const float* x, const float* weight, Norm n, const float* added,
                     bool relu, float* y) {
    int64_t out = side / stride, rows = images * out * out, k = kernel * kernel * inputs;
    // Half a megabyte of gathered rows or results a tile, and no fewer than make a good product.
    int64_t tile =
        std::min(rows, std::max<int64_t>(96, (1 << 17) / std::max(kernel > 1 ? k : inputs, outputs)));
    int64_t tiles = (rows + tile - 1) / tile;
// A few tiles are shared out inside each product, many among the threads.
#pragma omp parallel if (tiles >= 8)
    {
        std::vector<float> gathered(kernel > 1 ? tile * k : 0);
#pragma omp for schedule(dynamic)
        for (int64_t t = 0; t < tiles; t++) {
            int64_t first = t * tile, count = std::min(tile, rows - first);
            const float* a = x + first * inputs;
            if (kernel > 1) {
                gather(first, count, side, stride, inputs, x, gathered.data());
                a = gathered.data();
            }
            product(count, outputs, k, a, k, weight, outputs, 0.f, y + first * outputs, outputs);
            finish(count, outputs, y + first * outputs, n, added ? added + first * outputs : nullptr, relu);
        }
    }
}

// Mean over 2 x 2 pixels.
inline void halve(int64_t images, int64_t side, int64_t channels, const float* x, float* y) {
    int64_t out = side / 2;
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < images * out; r++) {
        const float* from = x + r * 2 * side * channels;
        float* to = y + r * out * channels;
        for (int64_t o = 0; o < out; o++, from += 2 * channels, to += channels) {
            const float* below = from + side * channels;
#pragma omp simd
            for (int64_t i = 0; i < channels; i++)
                to[i] = 0.25f * (from[i] + from[channels + i] + below[i] + below[channels + i]);
        }
    }
}

struct ResNet {
    int64_t resolution, width, features;
    int64_t blocks[4];
    std::vector<const float*> weights;  // in the order in which run() takes them
};

inline void run(const ResNet& net, int64_t batch, const float* images, float* out) {
    const float* const* p = net.weights.data();
    int64_t R = net.resolution, W = net.width, side = R / 2;
    // The largest activations are the stem's and the first stage's; narrow nets' images are larger still.
    int64_t most = batch * std::max(side * side * W, R * R * 3);
    float *x = space(0, most), *y = space(1, most), *a = space(2, most), *b = space(3, most),
          *shortcut = space(4, most);
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < batch * R; r++)  // channels last
        for (int64_t i = 0; i < R; i++)
            for (int64_t c = 0; c < 3; c++)
                a[(r * R + i) * 3 + c] = images[((r / R * 3 + c) * R + r % R) * R + i];
    auto conv = [&](int64_t at, int64_t stride, int64_t kernel, int64_t in, int64_t to, const float* from,
                    const float* added, bool relu, float* target) {
        convolve(batch, at, stride, kernel, in, to, from, p[0], Norm{p[1], p[2]}, added, relu, target);
        p += 3;
    };
    conv(R, 2, 3, 3, W / 2, a, nullptr, true, b);
    conv(side, 1, 3, W / 2, W / 2, b, nullptr, true, a);
    conv(side, 1, 3, W / 2, W, a, nullptr, true, b);
    halve(batch, side, W, b, x);
    side /= 2;
    int64_t channels = W;
    for (int stage = 0; stage < 4; stage++)
        for (int64_t block = 0; block < net.blocks[stage]; block++) {
            int64_t planes = W << stage;
            bool half = stage && !block;
            conv(side, 1, 1, channels, planes, x, nullptr, true, a);
            conv(side, 1, 3, planes, planes, a, nullptr, true, b);
            if (half) {
                halve(batch, side, planes, b, a);
                std::swap(a, b);
            }
            const float* third[3] = {p[0], p[1], p[2]};
            p += 3;
            const float* added = x;
            if (!block) {
                const float* from = x;
                if (half) {
                    halve(batch, side, channels, x, a);
                    from = a;
                }
                conv(half ? side / 2 : side, 1, 1, channels, 4 * planes, from, nullptr, false, shortcut);
                added = shortcut;
            }
            if (half) side /= 2;
            channels = 4 * planes;
            convolve(batch, side, 1, 1, planes, channels, b, third[0], Norm{third[1], third[2]}, added, true,
                     y);
            std::swap(x, y);
        }
    // Attention pool: one query, the mean.
    int64_t pixels = side * side, L = pixels + 1, C = channels, heads = C / HEAD;
    const float *positions = p[0], *q_weight = p[1], *k_weight = p[3], *v_weight = p[5], *c_weight = p[7],
                *c_bias = p[8];
    float* tokens = space(5, batch * L * C);
    float* kv = space(6, 2 * batch * L * C + 3 * batch * C + 3 * C);
    float *k = kv, *v = kv + batch * L * C, *first = v + batch * L * C, *q = first + batch * C,
          *mixed = q + batch * C;
    float* bias = mixed + batch * C;
    for (int i = 0; i < 3; i++) std::memcpy(bias + i * C, p[2 + 2 * i], C * sizeof(float));
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < batch; n++) {
        float *to = tokens + n * L * C, *mean = first + n * C;
        const float* from = x + n * pixels * C;
        std::fill(mean, mean + C, 0.f);
        for (int64_t r = 0; r < pixels; r++)
            for (int64_t i = 0; i < C; i++) {
                mean[i] += from[r * C + i];
                to[(r + 1) * C + i] = from[r * C + i] + positions[(r + 1) * C + i];
            }
        for (int64_t i = 0; i < C; i++) {
            mean[i] = mean[i] / pixels + positions[i];
            to[i] = mean[i];
        }
    }
    product(batch, C, C, first, C, q_weight, C, 0.f, q, C);
    product(batch * L, C, C, tokens, C, k_weight, C, 0.f, k, C);
    product(batch * L, C, C, tokens, C, v_weight, C, 0.f, v, C);
    attention(batch, heads, 1, L, q, C, k, v, C, bias, nullptr, false, mixed);
    product(batch, net.features, C, mixed, C, c_weight, net.features, 0.f, out, net.features);
    for (int64_t n = 0; n < batch; n++)
        for (int64_t i = 0; i < net.features; i++) out[n * net.features + i] += c_bias[i];
}

inline void run_all(const ResNet& net, int64_t batch, int64_t at_once, const float* images, float* out) {
    for (int64_t n = 0; n < batch; n += at_once)
        run(net, std::min(at_once, batch - n), images + n * 3 * net.resolution * net.resolution,
            out + n * net.features);
}

}  // namespace jclip
