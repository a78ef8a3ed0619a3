// Products of few rows, sorted by expert, with the float32 matrix of each where it lies: [experts, outputs, inputs], as it is trained.
//
// Nothing is packed, so that weights may change with every step; no matrix without rows is read or written. A product of few rows waits for
// its matrix, which is therefore read once and straight ahead, whatever is computed with it.
#include <algorithm>
#include <type_traits>

#include "epilogue.hpp"
#include "pool.hpp"
#include "simd.hpp"

namespace tripod {
namespace {

#if defined(__AVX512F__)
constexpr int kTileOutputs = 4, kTileRows = 6;      // accumulators of a tile fill the registers
constexpr int kTogether = 8, kTogetherVectors = 2;  // of a matrix that passes by: rows, and vectors of them
#elif defined(__AVX2__)
constexpr int kTileOutputs = 2, kTileRows = 2;
constexpr int kTogether = 4, kTogetherVectors = 1;
#else
constexpr int kTileOutputs = 2, kTileRows = 1;
constexpr int kTogether = 2, kTogetherVectors = 1;
#endif
constexpr int64_t kBlockOutputs = 16, kBlockInputs = 256;  // of a matrix: a thread's smallest share
constexpr int64_t kRowsOfWaiting = 8;                      // a product of few rows waits for its matrix as long as one of so many computes

// Filled by Python (grouped_linear.py), field by field in this order: keep the two alike.
struct Groups {
    int64_t num_experts, num_outputs, num_inputs;
    const int64_t* counts;  // [experts]: rows of each
};

struct Group {
    int64_t expert, first_row, rows;
    Range units;
};

// Each thread's share of the units of all experts that have rows, cut by what they cost.
template <class Body> void for_groups(const Groups& groups, int64_t units, Body&& body) {
    parallel_of_torch([&](int thread, int count) {
        const auto cost = [&](int64_t expert) { return groups.counts[expert] == 0 ? 0 : groups.counts[expert] + kRowsOfWaiting; };
        int64_t total = 0;
        for (int64_t expert = 0; expert < groups.num_experts; ++expert) total += units * cost(expert);
        const Range mine = share(total, thread, count);
        int64_t base = 0, first_row = 0;
        for (int64_t expert = 0; expert < groups.num_experts; ++expert) {
            const int64_t each = cost(expert), rows = groups.counts[expert];
            if (each > 0) {  // a unit is its whose share its beginning lies in
                const int64_t begin = std::clamp<int64_t>((mine.begin - base + each - 1) / each, 0, units);
                const int64_t end = std::clamp<int64_t>((mine.end - base + each - 1) / each, 0, units);
                if (begin < end) body(Group{expert, first_row, rows, {begin, end}});
            }
            base += units * each;
            first_row += rows;
        }
    });
}

template <int kCount> using Count = std::integral_constant<int, kCount>;

// From begin to end, so many at a time, then one by one: body(first, how many).
template <int kMany, class Body> TRIPOD_INLINE void in_pieces(int64_t begin, int64_t end, Body&& body) {
    for (; begin + kMany <= end; begin += kMany) body(begin, Count<kMany>{});
    for (; begin < end; ++begin) body(begin, Count<1>{});
}

// A row from begin to end, so many vectors at a time, then one by one, then what is left: step(at, how many, read, write).
template <int kMany, class Step> TRIPOD_INLINE void along(int64_t begin, int64_t end, Step&& step) {
    const auto read = [](const float* from) { return load(from); };
    const auto write = [](float* to, F16 x) { store(to, x); };
    for (; begin + kMany * kLanes <= end; begin += kMany * kLanes) step(begin, Count<kMany>{}, read, write);
    for (; begin + kLanes <= end; begin += kLanes) step(begin, Count<1>{}, read, write);
    if (const int64_t left = end - begin; left > 0)
        step(begin, Count<1>{}, [=](const float* from) { return load_row(Type::kF32, from, 0, left); },
             [=](float* to, F16 x) { store_row(Type::kF32, to, 0, left, x); });
}

TRIPOD_INLINE void store_sums(float* to, const F16* x, int count) {
#if defined(__AVX512F__)
    if (count == 4) {  // four at once: a sum alone takes as long as ten products
        const F16 ab = add(_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1]));
        const F16 cd = add(_mm512_unpacklo_ps(x[2], x[3]), _mm512_unpackhi_ps(x[2], x[3]));
        const F16 all = add(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
        const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
        _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
        return;
    }
#endif
    TRIPOD_UNROLL for (int i = 0; i < count; ++i) to[i] = sum(x[i]);
}

// y[row, output] = x[row] . w[output] for a tile of both; each step fetches so many lines of what comes next.
template <int kRows, int kOutputs>
void dots(const float* x, const float* w, int64_t size, float* y, int64_t y_stride, const float* ahead, int lines) {
    F16 sums[kRows][kOutputs];
    TRIPOD_UNROLL for (int row = 0; row < kRows; ++row)
        TRIPOD_UNROLL for (int output = 0; output < kOutputs; ++output) sums[row][output] = zeros();
    along<1>(0, size, [&](int64_t at, auto, auto&& read, auto&&) __attribute__((always_inline)) {
        for (int line = 0; line < lines; ++line, ahead += kLanes) __builtin_prefetch(ahead);
        F16 weights[kOutputs];
        TRIPOD_UNROLL for (int output = 0; output < kOutputs; ++output) weights[output] = read(w + output * size + at);
        TRIPOD_UNROLL for (int row = 0; row < kRows; ++row) {
            const F16 own = read(x + row * size + at);
            TRIPOD_UNROLL for (int output = 0; output < kOutputs; ++output) sums[row][output] = fma(own, weights[output], sums[row][output]);
        }
    });
    TRIPOD_UNROLL for (int row = 0; row < kRows; ++row) store_sums(y + row * y_stride, sums[row], kOutputs);
}

template <int kOutputs>
void dots(int64_t rows, const float* x, const float* w, int64_t size, float* y, int64_t y_stride, const float* ahead, int lines) {
    switch (rows) {
        case 1: return dots<1, kOutputs>(x, w, size, y, y_stride, ahead, lines);
#if defined(__AVX2__)
        case 2: return dots<2, kOutputs>(x, w, size, y, y_stride, ahead, lines);
#endif
#if defined(__AVX512F__)
        case 3: return dots<3, kOutputs>(x, w, size, y, y_stride, ahead, lines);
        case 4: return dots<4, kOutputs>(x, w, size, y, y_stride, ahead, lines);
        case 5: return dots<5, kOutputs>(x, w, size, y, y_stride, ahead, lines);
        case 6: return dots<6, kOutputs>(x, w, size, y, y_stride, ahead, lines);
#endif
    }
}

}  // namespace
}  // namespace tripod

using namespace tripod;

// y [rows, outputs] = x [rows, inputs] times the transpose of each row's matrix.
TRIPOD_API void tripod_grouped_linear(const Groups* groups, const float* x, const float* weights, float* y) {
    const int64_t num_outputs = groups->num_outputs, size = groups->num_inputs;
    for_groups(*groups, ceil_div(num_outputs, kBlockOutputs), [&](const Group& group) {
        const int64_t tiles = ceil_div(group.rows, kTileRows);
        const int64_t sharers = std::min<int64_t>(tiles, kTileOutputs);  // that fetch what comes next
        const int64_t end = std::min(num_outputs, group.units.end * kBlockOutputs);
        in_pieces<kTileOutputs>(group.units.begin * kBlockOutputs, end, [&](int64_t output, auto count) {
            constexpr int kCount = decltype(count)::value;
            const float* const w = weights + (group.expert * num_outputs + output) * size;
            for (int64_t index = 0; index < tiles; ++index) {
                const Range own = share(group.rows, static_cast<int>(index), static_cast<int>(tiles));
                const int64_t first = group.first_row + own.begin;
                dots<kCount>(own.end - own.begin, x + first * size, w, size, y + first * num_outputs + output, num_outputs,
                                  w + (kCount + kCount * index / sharers) * size,
                                  index < sharers ? static_cast<int>(ceil_div(kCount, sharers)) : 0);
            }
        });
    });
}

// of_x [rows, inputs] = of_y [rows, outputs] times each row's matrix, whose rows are added up as they pass by.
TRIPOD_API void tripod_grouped_linear_of_x(const Groups* groups, const float* of_y, const float* weights, float* of_x) {
    const int64_t num_outputs = groups->num_outputs, size = groups->num_inputs;
    for_groups(*groups, ceil_div(size, kBlockInputs), [&](const Group& group) {
        const int64_t begin = group.units.begin * kBlockInputs, end = std::min(size, group.units.end * kBlockInputs);
        const int64_t last_row = group.first_row + group.rows;
        for (int64_t row = group.first_row; row < last_row; ++row) std::fill(of_x + row * size + begin, of_x + row * size + end, 0.0f);
        in_pieces<kTogether>(0, num_outputs, [&](int64_t output, auto count) {
            constexpr int kCount = decltype(count)::value;
            const float* const w = weights + (group.expert * num_outputs + output) * size;
            along<kTogetherVectors>(begin, end, [&](int64_t at, auto width, auto&& read, auto&& write) __attribute__((always_inline)) {
                constexpr int kWidth = decltype(width)::value;
                F16 passing[kCount][kWidth];
                TRIPOD_UNROLL for (int i = 0; i < kCount; ++i) TRIPOD_UNROLL for (int v = 0; v < kWidth; ++v) {
                    passing[i][v] = read(w + i * size + at + v * kLanes);
                    __builtin_prefetch(w + (kCount + i) * size + at + v * kLanes);
                }
                for (int64_t row = group.first_row; row < last_row; ++row) {
                    float* const to = of_x + row * size + at;
                    F16 total[kWidth];
                    TRIPOD_UNROLL for (int v = 0; v < kWidth; ++v) total[v] = read(to + v * kLanes);
                    TRIPOD_UNROLL for (int i = 0; i < kCount; ++i) {
                        const F16 factor = splat(of_y[row * num_outputs + output + i]);
                        TRIPOD_UNROLL for (int v = 0; v < kWidth; ++v) total[v] = fma(factor, passing[i][v], total[v]);
                    }
                    TRIPOD_UNROLL for (int v = 0; v < kWidth; ++v) write(to + v * kLanes, total[v]);
                }
            });
        });
    });
}

// of_weights [experts, outputs, inputs], of experts that have rows: their sum of of_y times x, added to what is there or in its place.
TRIPOD_API void tripod_grouped_linear_of_weights(const Groups* groups, const float* of_y, const float* x, float* of_weights, int32_t adds) {
    const int64_t num_outputs = groups->num_outputs, size = groups->num_inputs;
    for_groups(*groups, ceil_div(num_outputs, kBlockOutputs), [&](const Group& group) {
        const int64_t last_row = group.first_row + group.rows, end = std::min(num_outputs, group.units.end * kBlockOutputs);
        in_pieces<kTileOutputs>(group.units.begin * kBlockOutputs, end, [&](int64_t output, auto count) {
            constexpr int kCount = decltype(count)::value;
            float* const to = of_weights + (group.expert * num_outputs + output) * size;
            along<4>(0, size, [&](int64_t at, auto width, auto&& read, auto&& write) __attribute__((always_inline)) {
                constexpr int kWidth = decltype(width)::value;
                F16 sums[kCount][kWidth];
                TRIPOD_UNROLL for (int i = 0; i < kCount; ++i) TRIPOD_UNROLL for (int v = 0; v < kWidth; ++v)
                    sums[i][v] = adds ? read(to + i * size + at + v * kLanes) : zeros();
                for (int64_t row = group.first_row; row < last_row; ++row) {
                    F16 own[kWidth];
                    TRIPOD_UNROLL for (int v = 0; v < kWidth; ++v) own[v] = read(x + row * size + at + v * kLanes);
                    TRIPOD_UNROLL for (int i = 0; i < kCount; ++i) {
                        const F16 factor = splat(of_y[row * num_outputs + output + i]);
                        TRIPOD_UNROLL for (int v = 0; v < kWidth; ++v) sums[i][v] = fma(factor, own[v], sums[i][v]);
                    }
                }
                TRIPOD_UNROLL for (int i = 0; i < kCount; ++i) TRIPOD_UNROLL for (int v = 0; v < kWidth; ++v)
                    write(to + i * size + at + v * kLanes, sums[i][v]);
            });
        });
    });
}
