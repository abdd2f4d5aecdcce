// Matrix products of the fused towers: see cpu.py. Plain C++14 with OpenMP; tower.cpp and resnet.cpp need it before
// them.
//
// Single multiplies float32. Half multiplies bfloat16, two neighbours of the summed axis at a time (a "word" of 32
// bits), and sums in float32; processors with AVX512_BF16 have an instruction for it, others compute the same slowly.
// A sum runs over its axis in one order whatever the batch or the number of threads is, so that a row is the same,
// bit for bit, whatever is computed with it.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#include <omp.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace jclip {

using std::int64_t;

#ifdef __AVX512F__
constexpr int LANES = 16, ROWS = 8, COLUMNS = 3;  // 8 x 3 sums, 3 vectors of weights and a factor fill 32 registers
#else
constexpr int LANES = 8, ROWS = 6, COLUMNS = 2;  // and 16
#endif
constexpr int PANEL = 48;  // columns of weights that lie together; a multiple of COLUMNS * LANES
constexpr int LINE = 64;    // bytes of a cache line
typedef float Lanes __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t Bits __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef float Word __attribute__((may_alias));

struct Single {
    typedef float Number;
    enum { PAIR = 1 };
    static Lanes add_product(Lanes sum, Lanes a, Lanes b) { return sum + a * b; }
    static Number narrow(float x) { return x; }
};

struct Half {
    typedef uint16_t Number;
    enum { PAIR = 2 };
    static Lanes add_product(Lanes sum, Lanes a, Lanes b) {
#ifdef __AVX512BF16__
        return (Lanes)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
        Bits x = (Bits)a, y = (Bits)b;
        sum += (Lanes)(x << 16) * (Lanes)(y << 16);
        return sum + (Lanes)(x & ~0xffff) * (Lanes)(y & ~0xffff);
#endif
    }
    static Number narrow(float x) {  // to the nearest, ties to even
        uint32_t bits;
        std::memcpy(&bits, &x, 4);
        return (Number)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
};

// Memory that begins with a cache line: vectors that straddle two take twice as long to load.
template <class Number>
inline Number* aligned(Number* at) {
    return (Number*)(((uintptr_t)at + LINE - 1) / LINE * LINE);
}

template <class Number>
struct Memory {
    std::vector<Number> kept;
    Number* at_least(int64_t size) {
        size += LINE / sizeof(Number);
        if ((int64_t)kept.size() < size) kept.resize(size);
        return aligned(kept.data());
    }
};

// Numbers of a row of `count`, filled up to whole words.
template <class T>
constexpr int64_t whole(int64_t count) {
    return (count + T::PAIR - 1) / T::PAIR * T::PAIR;
}

// C (M, N*LANES) = A (M, words) B (words, N*LANES), sums kept in registers.
template <class T, int M, int N>
inline void small_block(int64_t words, const Word* a, int64_t lda, const Word* b, int64_t ldb, float* c, int64_t ldc) {
    Lanes sum[M][N];
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) sum[i][j] = Lanes{};
    for (int64_t p = 0; p < words; p++) {
        Lanes row[N];
        for (int j = 0; j < N; j++) row[j] = *(const Lanes*)(b + p * ldb + j * LANES);
        for (int i = 0; i < M; i++) {
            Lanes x = Lanes{} + a[i * lda + p];
            for (int j = 0; j < N; j++) sum[i][j] = T::add_product(sum[i][j], x, row[j]);
        }
    }
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) *(Lanes*)(c + i * ldc + j * LANES) = sum[i][j];
}

template <class T, int M>
inline void small_rows(int64_t n, int64_t words, const Word* a, int64_t lda, const Word* b, int64_t ldb, float* c,
                       int64_t ldc) {
    int64_t j = 0;
    for (; j + COLUMNS * LANES <= n; j += COLUMNS * LANES)
        small_block<T, M, COLUMNS>(words, a, lda, b + j, ldb, c + j, ldc);
    for (; j < n; j += LANES) small_block<T, M, 1>(words, a, lda, b + j, ldb, c + j, ldc);
}

// One thread's product of m <= ROWS rows; n is filled up to a multiple of LANES.
template <class T>
inline void small_product(int m, int64_t n, int64_t words, const Word* a, int64_t lda, const Word* b, int64_t ldb,
                          float* c, int64_t ldc) {
    switch (m) {
        case 8: small_rows<T, 8>(n, words, a, lda, b, ldb, c, ldc); break;
        case 7: small_rows<T, 7>(n, words, a, lda, b, ldb, c, ldc); break;
        case 6: small_rows<T, 6>(n, words, a, lda, b, ldb, c, ldc); break;
        case 5: small_rows<T, 5>(n, words, a, lda, b, ldb, c, ldc); break;
        case 4: small_rows<T, 4>(n, words, a, lda, b, ldb, c, ldc); break;
        case 3: small_rows<T, 3>(n, words, a, lda, b, ldb, c, ldc); break;
        case 2: small_rows<T, 2>(n, words, a, lda, b, ldb, c, ldc); break;
        default: small_rows<T, 1>(n, words, a, lda, b, ldb, c, ldc);
    }
}

inline uint16_t convert(Half, float x) { return Half::narrow(x); }
inline uint16_t convert(Half, uint16_t x) { return x; }
inline float convert(Single, float x) { return x; }

// B (inputs, columns), rows `stride` apart, as words (words, wide): neighbours of the summed axis side by side.
template <class T, class From>
inline void interleave(int64_t inputs, int64_t columns, const From* from, int64_t stride, int64_t wide,
                       typename T::Number* to) {
    for (int64_t k = 0; k < inputs; k += T::PAIR, to += wide * T::PAIR) {
        for (int d = 0; d < T::PAIR; d++) {
            const From* row = from + (k + d) * stride;
            if (k + d < inputs)
                for (int64_t j = 0; j < columns; j++) to[j * T::PAIR + d] = convert(T{}, row[j]);
            else
                for (int64_t j = 0; j < columns; j++) to[j * T::PAIR + d] = 0;
        }
        for (int64_t j = columns * T::PAIR; j < wide * T::PAIR; j++) to[j] = 0;
    }
}

// Weights (inputs, outputs) as panels of PANEL columns, each (words, PANEL).
template <class T>
inline int64_t panel_size(int64_t inputs) {
    return whole<T>(inputs) * PANEL;
}

template <class T>
inline void pack(int64_t inputs, int64_t outputs, const float* from, typename T::Number* to) {
    int64_t panels = (outputs + PANEL - 1) / PANEL;
    to = aligned(to);
#pragma omp parallel for schedule(dynamic)
    for (int64_t panel = 0; panel < panels; panel++)
        interleave<T>(inputs, std::min<int64_t>(PANEL, outputs - panel * PANEL), from + panel * PANEL, outputs, PANEL,
                      to + panel * panel_size<T>(inputs));
}

// A weight as pack() made it.
template <class T>
struct Matrix {
    int64_t inputs, outputs;
    const void* packed;
    const typename T::Number* panel(int64_t number) const {
        return aligned((const typename T::Number*)packed) + number * panel_size<T>(inputs);
    }
};

// Rows `begin` to `end` of A times the panels of `first` to `last`, of which columns [from, to) are wanted:
// put(row, column, count, sums).
template <class T, class Put>
inline void multiply(int64_t begin, int64_t end, const typename T::Number* a, int64_t lda, Matrix<T> b, int64_t first,
                     int64_t last, int64_t from, int64_t to, const Put& put) {
    int64_t words = whole<T>(b.inputs) / T::PAIR, blocks = (end - begin + ROWS - 1) / ROWS;
    alignas(LINE) float tile[ROWS * PANEL];
    for (int64_t block = 0; block < blocks; block++) {  // of equal height, as near as may be
        int64_t row = begin + (end - begin) * block / blocks, below = begin + (end - begin) * (block + 1) / blocks;
        for (int64_t panel = first; panel < last; panel++) {
            int64_t column = std::max(from, panel * PANEL), stop = std::min(to, (panel + 1) * PANEL);
            small_product<T>((int)(below - row), stop - panel * PANEL, words, (const Word*)(a + row * lda),
                             lda / T::PAIR, (const Word*)b.panel(panel), PANEL, tile, PANEL);
            for (int64_t i = row; i < below; i++)
                put(i, column, stop - column, tile + (i - row) * PANEL + column - panel * PANEL);
        }
    }
}

// Columns [from, to) of A (rows, inputs) B, spread over all threads. A's rows are lda apart, whole words.
template <class T, class Put>
inline void product(int64_t rows, const typename T::Number* a, int64_t lda, Matrix<T> b, int64_t from, int64_t to,
                    const Put& put) {
    int64_t first = from / PANEL, panels = (to + PANEL - 1) / PANEL - first, threads = omp_get_max_threads();
    // Half a megabyte of weights stays in the second cache while all rows pass.
    int64_t fit = (1 << 19) / (panel_size<T>(b.inputs) * (int64_t)sizeof(typename T::Number));
    int64_t group = std::max<int64_t>(1, std::min(fit, panels / (2 * threads)));
    int64_t groups = (panels + group - 1) / group;
    int64_t parts = std::max<int64_t>(1, std::min(threads / groups, rows / ROWS));
#pragma omp parallel for collapse(2) schedule(dynamic)
    for (int64_t g = 0; g < groups; g++)
        for (int64_t part = 0; part < parts; part++)
            multiply<T>(rows * part / parts, rows * (part + 1) / parts, a, lda, b, first + g * group,
                        first + std::min(panels, (g + 1) * group), from, to, put);
}

template <class T, class Put>
inline void product(int64_t rows, const typename T::Number* a, int64_t lda, Matrix<T> b, const Put& put) {
    product<T>(rows, a, lda, b, 0, b.outputs, put);
}

// Buffers live on between calls: fresh memory costs as much as some of the arithmetic.
template <class Number>
inline Number* buffer(int which, int64_t size) {
    static Memory<Number> kept[8];
    return kept[which].at_least(size);
}

}  // namespace jclip
