// Matrix products of the fused towers: see cpu.py. Plain C++14 with OpenMP; tower.cpp and resnet.cpp need it before
// them.
//
// Single multiplies float32. Half multiplies bfloat16, two neighbours of the summed axis at a time (a "word" of 32
// bits), and sums in float32: by tiles where the processor has Intel's AMX, else by AVX512_BF16; others compute the
// same slowly. A sum runs over its axis in one order and with one rounding a step whatever the batch or the number of
// threads is: a row is the same, bit for bit, whatever is computed with it.

#ifdef __FMA__
#include <immintrin.h>
#endif
#if defined(__AMX_TILE__) && defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>
#define JCLIP_TILES
#endif
// Jittor puts its definitions behind the last #include: it must stand under no condition
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#include <omp.h>

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
typedef uint32_t Pair __attribute__((may_alias));

struct Single {
    typedef float Number;
    enum { PAIR = 1 };
    static Lanes add_product(Lanes sum, Lanes a, Lanes b) {  // said outright: g++ fuses it in some blocks only (Zen)
#if defined(__AVX512F__)
        return (Lanes)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
#elif defined(__FMA__)
        return (Lanes)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
#else
        return sum + a * b;
#endif
    }
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
        sum = Single::add_product(sum, (Lanes)(x << 16), (Lanes)(y << 16));
        return Single::add_product(sum, (Lanes)(x & ~0xffff), (Lanes)(y & ~0xffff));
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
        const From *row = from + k * stride, *next = row + stride;
        Pair* pairs = (Pair*)to;
        if (T::PAIR == 1)
            for (int64_t j = 0; j < columns; j++) to[j] = convert(T{}, row[j]);
        else if (k + 1 < inputs)
            for (int64_t j = 0; j < columns; j++)
                pairs[j] = (uint32_t)convert(T{}, row[j]) | (uint32_t)convert(T{}, next[j]) << 16;
        else
            for (int64_t j = 0; j < columns; j++) pairs[j] = (uint32_t)convert(T{}, row[j]);
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

#ifdef JCLIP_TILES
constexpr int TILE_ROWS = 16, TILE_WORDS = 16;  // of a tile register; its rows of weights are words, too

// Linux hands out the tile registers on request, once for a process.
inline bool have_tiles() {
    constexpr int REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
    static const bool granted = syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
    return granted;
}

// Tiles 0 to 5 hold sums, 6 rows of A: `rows` high. 7 holds weights.
inline void shape_tiles(int rows) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shape;
    std::memset(&shape, 0, sizeof shape);
    shape.palette = 1;
    for (int tile = 0; tile < 8; tile++) shape.bytes[tile] = 4 * TILE_WORDS, shape.rows[tile] = rows;
    shape.rows[7] = TILE_WORDS;
    _tile_loadconfig(&shape);
}

// c (rows, PANEL) = A (rows, words) times a panel: of as many rows as the tiles have, or (DOUBLE) of twice 16.
template <bool DOUBLE>
inline void tile_block(int64_t words, const Word* a, int64_t lda, const Word* panel, float* c) {
    static_assert(PANEL == 3 * TILE_WORDS, "three tiles of weights");
    constexpr int BESIDE = 4 * PANEL;  // bytes from a row of the panel, or of c, to the next
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    for (int64_t p = 0; p < words; p += TILE_WORDS) {
        const Word* b = panel + p * PANEL;
        _tile_loadd(6, a + p, 4 * lda);
        _tile_loadd(7, b, BESIDE);
        _tile_dpbf16ps(0, 6, 7);
        _tile_loadd(7, b + TILE_WORDS, BESIDE);
        _tile_dpbf16ps(1, 6, 7);
        _tile_loadd(7, b + 2 * TILE_WORDS, BESIDE);
        _tile_dpbf16ps(2, 6, 7);
        if (DOUBLE) {
            _tile_loadd(6, a + TILE_ROWS * lda + p, 4 * lda);
            _tile_dpbf16ps(5, 6, 7);
            _tile_loadd(7, b, BESIDE);
            _tile_dpbf16ps(3, 6, 7);
            _tile_loadd(7, b + TILE_WORDS, BESIDE);
            _tile_dpbf16ps(4, 6, 7);
        }
    }
    _tile_stored(0, c, BESIDE);
    _tile_stored(1, c + TILE_WORDS, BESIDE);
    _tile_stored(2, c + 2 * TILE_WORDS, BESIDE);
    if (DOUBLE) {
        c += TILE_ROWS * PANEL;
        _tile_stored(3, c, BESIDE);
        _tile_stored(4, c + TILE_WORDS, BESIDE);
        _tile_stored(5, c + 2 * TILE_WORDS, BESIDE);
    }
}

// As `multiply`, by tiles; false where they do not fit. That hangs on the matrix alone, so that rows stay the same.
template <class Put>
inline bool multiply_by_tiles(int64_t begin, int64_t end, const uint16_t* a, int64_t lda, Matrix<Half> b,
                              int64_t first, int64_t last, int64_t from, int64_t to, const Put& put) {
    int64_t words = whole<Half>(b.inputs) / 2;
    if (words % TILE_WORDS || !have_tiles()) return false;
    alignas(LINE) float sums[2 * TILE_ROWS * PANEL];
    int shaped = 0;
    for (int64_t row = begin, height; row < end; row += height) {
        height = end - row >= 2 * TILE_ROWS ? 2 * TILE_ROWS : std::min<int64_t>(TILE_ROWS, end - row);
        int rows = (int)std::min<int64_t>(TILE_ROWS, height);
        if (rows != shaped) shape_tiles(shaped = rows);
        const Word* x = (const Word*)(a + row * lda);
        for (int64_t panel = first; panel < last; panel++) {
            int64_t column = std::max(from, panel * PANEL), stop = std::min(to, (panel + 1) * PANEL);
            const Word* weights = (const Word*)b.panel(panel);
            if (height > TILE_ROWS)
                tile_block<true>(words, x, lda / 2, weights, sums);
            else
                tile_block<false>(words, x, lda / 2, weights, sums);
            for (int64_t i = 0; i < height; i++)
                put(row + i, column, stop - column, sums + i * PANEL + column - panel * PANEL);
        }
    }
    if (shaped) _tile_release();
    return true;
}
#endif

template <class... Rest>
inline bool multiply_by_tiles(const Rest&...) {  // float32, or no AMX
    return false;
}

// Rows `begin` to `end` of A times the panels of `first` to `last`, of which columns [from, to) are wanted:
// put(row, column, count, sums).
template <class T, class Put>
inline void multiply(int64_t begin, int64_t end, const typename T::Number* a, int64_t lda, Matrix<T> b, int64_t first,
                     int64_t last, int64_t from, int64_t to, const Put& put) {
    if (multiply_by_tiles(begin, end, a, lda, b, first, last, from, to, put)) return;
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
