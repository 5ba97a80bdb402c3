// The sums of accumulator.py on a CPU: the same bits as its definition.
//
// A task is a panel of 64 columns of the result and up to 128 of its rows, and goes through k chunk by chunk. A chunk of
// b is turned once, [chunk][64], and stays in the first cache while every row of the task meets it:
//
//     exponents   int8, 64 at once: the largest sum of two exponents. Zeros count as -64, which no sum reaches.
//     terms       float32, 16 at once: a b 2^(bits - top) is exact (its significand has at most 24 bits), and
//                 conversion to int32 is the truncation; int32 sums widen to float64 before they could overflow
//     the rest    int32 and float32 where bits + 2 + log2(chunk + 1) <= 24 and no scale enters, else float64
//
// Wider formats and group sums go term by term in float64. Vectors are GCC's and clang's extension, which becomes whatever
// the processor has. Threads share nothing but the counter of tasks.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace {

constexpr int COLUMNS = 64, ROWS = 128, LANES = 16, VECTORS = COLUMNS / LANES, HALF = 8;
constexpr int ZERO = -64, NONE = -4096, E_MIN = -126;

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef int8_t Bytes __attribute__((vector_size(64)));
typedef int8_t Bytes16 __attribute__((vector_size(16)));
typedef double Doubles __attribute__((vector_size(64)));
typedef int64_t Longs __attribute__((vector_size(64)));
typedef int32_t Ints8 __attribute__((vector_size(32)));
typedef float Floats8 __attribute__((vector_size(32)));

struct Product {
    const float *a, *b;                  // [m, k], [n, k]
    const float *within_a, *within_b;    // [m, steps], [n, steps], or null
    const float *after_a, *after_b;      // [m, promotions], [n, promotions], or null
    const float *start;                  // [m, n] or null
    float *out;                          // [m, n]
    int64_t m, n, k, steps, promotions;  // promotions: 1 where no scale changes along k
    int32_t lowest_a, lowest_b, bits, chunk, group, result_bits, promote, wide;
};

struct Work {  // of one thread
    std::vector<float> b, c, total;
    std::vector<int8_t> exponents_a, exponents_b;
};

inline Ints largest(Ints x, Ints y) { return x > y ? x : y; }
inline Longs largest(Longs x, Longs y) { return x > y ? x : y; }
inline Longs smallest(Longs x, Longs y) { return x < y ? x : y; }

template <class T, class S> inline T load(const S *from) {
    T made;
    std::memcpy(&made, from, sizeof(T));
    return made;
}

template <class T, class S> inline void store(S *to, T value) { std::memcpy(to, &value, sizeof(T)); }

inline int exponent(float x, int lowest, int zero) {  // of a normal float32
    if (x == 0) return zero;
    int32_t bits;
    std::memcpy(&bits, &x, 4);
    return std::max(((bits >> 23) & 255) - 127, lowest);
}

inline Longs exponents(Doubles x) { return (((Longs)x >> 52) & 2047) - 1023; }
inline Doubles powers(Longs k) { return (Doubles)((smallest(largest(k, Longs{} - 1022), Longs{} + 1023) + 1023) << 52); }
inline Doubles truncated(Doubles x) { return __builtin_convertvector(__builtin_convertvector(x, Longs), Doubles); }

int scale_exponent(float scale) { return scale == 0 ? NONE : (int)std::ilogb(scale); }

// d of c and the sum of the aligned terms, in float64.
inline Doubles finished(Doubles c, Doubles sum, Longs top, const Product &p) {
    Doubles total = (sum + truncated(c * powers(p.bits - top))) * powers(top - p.bits);
    Longs last = largest(exponents(total), Longs{} + E_MIN);
    Doubles d = truncated(total * powers(p.result_bits - last)) * powers(last - p.result_bits);
    return (exponents(c) == 1024) ? c : d;  // what overflowed stays infinite
}

// One chunk of one row: exact terms below 2^24, exponents within [-16, 31].
template <bool NARROW>
void add_chunk(const Product &p, const float *a, const int8_t *ea, const float *b, const int8_t *eb, int count,
               const int32_t *scale, float *c) {
    Bytes most = Bytes{} + (int8_t)(2 * ZERO);
    for (int k = 0; k < count; ++k) {
        Bytes sum = load<Bytes>(eb + k * COLUMNS) + ea[k];
        most = sum > most ? sum : most;
    }
    int8_t kept[COLUMNS];
    store(kept, most);
    Ints top[VECTORS], sums[VECTORS];
    Floats factor[VECTORS];
    for (int v = 0; v < VECTORS; ++v) {
        Ints e = __builtin_convertvector(load<Bytes16>(kept + v * LANES), Ints);
        Ints own = ((load<Ints>(c + v * LANES) >> 23) & 255) - 127;
        if (NARROW) {
            top[v] = largest(largest(e, own), Ints{} - 100);
            factor[v] = (Floats)((p.bits - top[v] + 127) << 23);
        } else {
            Ints es = scale ? load<Ints>(scale + v * LANES) : Ints{};
            top[v] = largest(largest((e < -32) | (es == NONE) ? Ints{} + NONE : e + es, own), Ints{} + E_MIN);
            Ints x = largest(p.bits - top[v] + es, Ints{} - 126);
            factor[v] = (Floats)(((x < 127 ? x : Ints{} + 127) + 127) << 23);
        }
        sums[v] = Ints{};
    }
    const int run = p.bits > 28 ? 1 : 1 << (29 - p.bits);
    Doubles wide[2 * VECTORS] = {};
    for (int first = 0; first < count; first += run) {
        const int last = std::min(first + run, count);
        for (int k = first; k < last; ++k)
            for (int v = 0; v < VECTORS; ++v)
                sums[v] += __builtin_convertvector(load<Floats>(b + k * COLUMNS + v * LANES) * a[k] * factor[v], Ints);
        if (NARROW && last == count) break;
        for (int v = 0; v < VECTORS; ++v) {
            int32_t both[LANES];
            store(both, sums[v]);
            for (int h = 0; h < 2; ++h) wide[2 * v + h] += __builtin_convertvector(load<Ints8>(both + h * HALF), Doubles);
            sums[v] = Ints{};
        }
    }
    for (int v = 0; v < VECTORS; ++v) {
        float *at = c + v * LANES;
        if (NARROW) {
            Ints total = sums[v] + __builtin_convertvector(load<Floats>(at) * factor[v], Ints);
            Floats made = __builtin_convertvector(total, Floats) * (Floats)((top[v] - p.bits + 127) << 23);
            store(at, (Ints)made & (int32_t)(-1u << (23 - p.result_bits)));
            continue;
        }
        int32_t both[LANES];
        store(both, top[v]);
        for (int h = 0; h < 2; ++h) {
            Doubles old = __builtin_convertvector(load<Floats8>(at + h * HALF), Doubles);
            Longs high = __builtin_convertvector(load<Ints8>(both + h * HALF), Longs);
            store(at + h * HALF, __builtin_convertvector(finished(old, wide[2 * v + h], high, p), Floats8));
        }
    }
}

// One chunk of one element, term by term: any format, any bits, group sums.
float add_terms(const Product &p, int64_t i, int64_t j, int64_t start, int64_t stop, float c) {
    const float *a = p.a + i * p.k, *b = p.b + j * p.k;
    const int step = p.group == 1 ? p.chunk : p.group;
    auto lowered = [](float x, int lowest) { return std::max((int)std::ilogb(x), lowest); };
    int top = c == 0 ? E_MIN : lowered(c, E_MIN);
    double sum = 0;
    for (int pass = 0; pass < 2; ++pass) {  // the largest exponent, then the terms
        for (int64_t first = start; first < stop; first += p.group) {
            double value = 0, significand = 1;
            int scale = 0;
            if (p.within_a) {
                const float s = p.within_a[i * p.steps + first / step], t = p.within_b[j * p.steps + first / step];
                if (s == 0 || t == 0) continue;
                scale = std::ilogb(s) + std::ilogb(t);
                significand = std::scalbn((double)s, -std::ilogb(s)) * std::scalbn((double)t, -std::ilogb(t));
            }
            for (int64_t k = first; k < std::min(first + p.group, stop); ++k) value += (double)a[k] * b[k];
            if (p.group == 1 && value == 0) continue;
            int e = p.group == 1 ? lowered(a[first], p.lowest_a) + lowered(b[first], p.lowest_b) + scale : scale;
            if (pass == 0) top = std::max(top, e);
            else sum += std::trunc(std::scalbn(value * significand, p.bits - top + scale));
        }
    }
    if (std::isinf(c)) return c;
    double total = std::scalbn(sum + std::trunc(std::scalbn((double)c, p.bits - top)), top - p.bits);
    if (total == 0) return 0;
    int last = std::max((int)std::ilogb(total), E_MIN);
    return (float)(std::scalbn(std::trunc(std::scalbn(total, p.result_bits - last)), last - p.result_bits) + 0.0);
}

void turn(const Product &p, int64_t j0, int columns, int64_t start, int count, float *b, int8_t *eb) {
    for (int j = 0; j < COLUMNS; ++j)
        for (int k = 0; k < count; ++k) {
            float x = j < columns ? p.b[(j0 + j) * p.k + start + k] : 0.0f;
            b[k * COLUMNS + j] = x;
            eb[k * COLUMNS + j] = (int8_t)exponent(x, p.lowest_b, ZERO);
        }
}

// c into the float32 sum, and c begun anew.
void promote(const Product &p, int64_t i, int64_t j0, int columns, int64_t number, float *c, float *total) {
    const bool scaled = p.promotions > 1;
    for (int j = 0; j < columns; ++j) {
        float scale = 1;
        if (scaled && p.after_a) scale = p.after_a[i * p.promotions + number];
        if (scaled && p.after_b) scale *= p.after_b[(j0 + j) * p.promotions + number];
        total[j] = std::fma(scale, c[j], total[j]);
        c[j] = 0;
    }
}

void run_task(const Product &p, int64_t i0, int64_t j0, Work &work) {
    const int rows = (int)std::min<int64_t>(ROWS, p.m - i0), columns = (int)std::min<int64_t>(COLUMNS, p.n - j0);
    const bool narrow = p.bits + 2 + std::ceil(std::log2(p.chunk + 1)) <= 24 && !p.within_a && !p.start;
    std::fill(work.c.begin(), work.c.end(), 0.0f);
    std::fill(work.total.begin(), work.total.end(), 0.0f);
    for (int i = 0; i < rows && p.start; ++i)
        std::copy_n(p.start + (i0 + i) * p.n + j0, columns, &work.c[i * COLUMNS]);
    for (int64_t start = 0; start < p.k; start += p.chunk) {
        const int count = (int)std::min<int64_t>(p.chunk, p.k - start);
        if (!p.wide) turn(p, j0, columns, start, count, work.b.data(), work.exponents_b.data());
        for (int i = 0; i < rows; ++i) {
            float *c = &work.c[i * COLUMNS];
            if (p.wide) {
                for (int j = 0; j < columns; ++j) c[j] = add_terms(p, i0 + i, j0 + j, start, start + count, c[j]);
            } else {
                const float *a = p.a + (i0 + i) * p.k + start;
                int32_t scale[COLUMNS] = {};
                if (p.within_a)
                    for (int j = 0; j < columns; ++j) {
                        int x = scale_exponent(p.within_a[(i0 + i) * p.steps + start / p.chunk]);
                        int y = scale_exponent(p.within_b[(j0 + j) * p.steps + start / p.chunk]);
                        scale[j] = x == NONE || y == NONE ? NONE : x + y;
                    }
                for (int k = 0; k < count; ++k) work.exponents_a[k] = (int8_t)exponent(a[k], p.lowest_a, ZERO);
                auto add = narrow ? add_chunk<true> : add_chunk<false>;
                add(p, a, work.exponents_a.data(), work.b.data(), work.exponents_b.data(), count,
                    p.within_a ? scale : nullptr, c);
            }
            if (p.promote && ((start + count) % p.promote == 0 || start + count == p.k))
                promote(p, i0 + i, j0, columns, start / p.promote, c, &work.total[i * COLUMNS]);
        }
    }
    for (int i = 0; i < rows; ++i)
        for (int j = 0; j < columns; ++j) {
            float made = (p.promote ? work.total : work.c)[i * COLUMNS + j], scale = 1;
            if (p.promotions == 1 && p.after_a) scale = p.after_a[i0 + i];
            if (p.promotions == 1 && p.after_b) scale *= p.after_b[j0 + j];
            p.out[(i0 + i) * p.n + j0 + j] = made * scale;
        }
}

}  // namespace

extern "C" void altgrad_accumulate(const Product *product, int32_t threads) {
    const Product &p = *product;
    const int64_t panels = (p.n + COLUMNS - 1) / COLUMNS, tasks = panels * ((p.m + ROWS - 1) / ROWS);
    std::atomic<int64_t> next{0};
    auto work_off = [&] {
        Work work;
        work.b.resize((size_t)p.chunk * COLUMNS), work.c.resize(ROWS * COLUMNS), work.total.resize(ROWS * COLUMNS);
        work.exponents_b.resize((size_t)p.chunk * COLUMNS), work.exponents_a.resize(p.chunk);
        for (int64_t t; (t = next++) < tasks;) run_task(p, t / panels * ROWS, t % panels * COLUMNS, work);
    };
    std::vector<std::thread> others;
    for (int t = 1; t < threads && t < tasks; ++t) others.emplace_back(work_off);
    work_off();
    for (auto &each : others) each.join();
}
