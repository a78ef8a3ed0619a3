// The innermost loops: 64 weight rows times a few rows of activations, in registers.
#pragma once

#include "linear.hpp"

namespace tripod {

// A tile is kTileVectors x 16 weight rows by up to kTileRows activations; its sums, a step's weights and one activation fill the registers.
#if defined(__AVX512F__)
constexpr int kTileVectors = 4, kTileRows = 6, kGroupTileRows = 3;  // int4 has two sums for each: whole numbers, and floats
#elif defined(__AVX2__)
constexpr int kTileVectors = 1, kTileRows = 4, kGroupTileRows = 2;
#else
constexpr int kTileVectors = 1, kTileRows = 2, kGroupTileRows = 1;
#endif

constexpr int kStepsPerPrefetch = 4;

// ---- one step of a sum: 16 weight rows, 4 bytes of each, times the same 4 bytes of activation ----

TRIPOD_INLINE F16 dot_bf16(F16 sum, I16 weights, I16 x) {  // two products a lane
#if defined(__AVX512BF16__)
    __m512bh a, b;
    std::memcpy(&a, &weights, sizeof a);
    std::memcpy(&b, &x, sizeof b);
    return _mm512_dpbf16_ps(sum, a, b);
#else
    const I16 upper = isplat(static_cast<int32_t>(0xffff0000u));
    sum = fma(bits_to_float(shift_left<16>(weights)), bits_to_float(shift_left<16>(x)), sum);
    return fma(bits_to_float(iand(weights, upper)), bits_to_float(iand(x, upper)), sum);
#endif
}

TRIPOD_INLINE I16 dot_u8s8(I16 sum, I16 weights, I16 x) {  // four products a lane: unsigned weights, signed activations
#if defined(__AVX512VNNI__)
    // As an intrinsic, gcc 12 moves the sums to the stack and back at every step.
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(weights), "v"(x));
    return sum;
#elif defined(__AVX2__)
    // The one instruction that multiplies bytes saturates at 16 bits; even and odd bytes as 16-bit numbers do not.
    const __m256i even = _mm256_set1_epi16(0xff);
    const __m256i x_even = _mm256_srai_epi16(_mm256_slli_epi16(x.low, 8), 8), x_odd = _mm256_srai_epi16(x.low, 8);  // x.high is the same
    const auto half = [&](__m256i w, __m256i total) {
        total = _mm256_add_epi32(total, _mm256_madd_epi16(_mm256_and_si256(w, even), x_even));
        return _mm256_add_epi32(total, _mm256_madd_epi16(_mm256_srli_epi16(w, 8), x_odd));
    };
    return {half(weights.low, sum.low), half(weights.high, sum.high)};
#else
    uint8_t w[4 * kLanes];
    int8_t v[4];
    int32_t total[kLanes];
    istore(w, weights);
    std::memcpy(v, &x, sizeof v);
    istore(total, sum);
    for (int lane = 0; lane < kLanes; ++lane)
        total[lane] += w[4 * lane] * v[0] + w[4 * lane + 1] * v[1] + w[4 * lane + 2] * v[2] + w[4 * lane + 3] * v[3];
    return iload(total);
#endif
}

struct F32Step {
    using Sum = F16;
    static TRIPOD_INLINE F16 zero() { return zeros(); }
    static TRIPOD_INLINE F16 read(const void* from) { return load(static_cast<const float*>(from)); }
    static TRIPOD_INLINE void write(void* to, F16 sum) { store(static_cast<float*>(to), sum); }
    static TRIPOD_INLINE F16 dot(F16 sum, I16 w, I16 x) { return fma(bits_to_float(w), bits_to_float(x), sum); }
};
struct Bf16Step : F32Step {
    static TRIPOD_INLINE F16 dot(F16 sum, I16 w, I16 x) { return dot_bf16(sum, w, x); }
};
struct Int8Step {
    using Sum = I16;
    static TRIPOD_INLINE I16 zero() { return izeros(); }
    static TRIPOD_INLINE I16 read(const void* from) { return iload(from); }
    static TRIPOD_INLINE void write(void* to, I16 sum) { istore(to, sum); }
    static TRIPOD_INLINE I16 dot(I16 sum, I16 w, I16 x) { return dot_u8s8(sum, w, x); }
};

// ---- tiles ----

struct Tile {
    const uint8_t* weights;  // the first step of this chunk of k
    int64_t steps;           // int4: a whole number of groups
    const uint8_t* x;        // the first row's activations for this chunk
    int64_t x_stride;        // bytes between rows
    uint8_t* sums;           // [rows, 64] of 4 bytes: where sums wait between chunks
    bool is_first;           // of the chunks: sums start at zero, and not at what waits
    const int32_t* offsets;  // int4: of the chunk's first group, rows offset_stride apart; where a group's sum starts
    const float* scales;     // int4: like offsets
    int64_t offset_stride;
    int32_t group;           // int4
    const uint8_t* ahead;    // weights to bring into the second-level cache meanwhile
    int lines;               // of 64 bytes, every kStepsPerPrefetch steps
};

TRIPOD_INLINE int32_t four_bytes(const uint8_t* from) {
    int32_t x;
    std::memcpy(&x, from, sizeof x);
    return x;
}

TRIPOD_INLINE const uint8_t* prefetch(const uint8_t* ahead, int lines) {
    for (int line = 0; line < lines; ++line, ahead += 64) __builtin_prefetch(ahead, 0, 2);
    return ahead;
}

template <class Step, int kRows>
void dense_tile(const Tile& tile) {
    for (int first = 0; first < kVectors; first += kTileVectors) {
        typename Step::Sum sum[kRows][kTileVectors];
        uint8_t* const waiting = tile.sums + first * 64;
        TRIPOD_UNROLL for (int row = 0; row < kRows; ++row)
            TRIPOD_UNROLL for (int v = 0; v < kTileVectors; ++v)
                sum[row][v] = !tile.is_first ? Step::read(waiting + row * kStepBytes + v * 64) : Step::zero();
        const uint8_t* weights = tile.weights + first * 64;
        const uint8_t* x = tile.x;
        const uint8_t* ahead = tile.ahead;
        const auto step = [&]() __attribute__((always_inline)) {
            I16 w[kTileVectors];
            TRIPOD_UNROLL for (int v = 0; v < kTileVectors; ++v) w[v] = iload(weights + v * 64);
            TRIPOD_UNROLL for (int row = 0; row < kRows; ++row) {
                const I16 four = isplat(four_bytes(x + row * tile.x_stride));
                TRIPOD_UNROLL for (int v = 0; v < kTileVectors; ++v) sum[row][v] = Step::dot(sum[row][v], w[v], four);
            }
            weights += kStepBytes;
            x += 4;
        };
        int64_t left = tile.steps;
        for (; left >= kStepsPerPrefetch; left -= kStepsPerPrefetch) {
            ahead = prefetch(ahead, tile.lines);
            TRIPOD_UNROLL for (int i = 0; i < kStepsPerPrefetch; ++i) step();
        }
        for (; left > 0; --left) step();
        TRIPOD_UNROLL for (int row = 0; row < kRows; ++row)
            TRIPOD_UNROLL for (int v = 0; v < kTileVectors; ++v) Step::write(waiting + row * kStepBytes + v * 64, sum[row][v]);
    }
}

template <int kRows>
void group_tile(const Tile& tile) {
    const int64_t steps_per_group = tile.group / 8, num_groups = tile.steps / steps_per_group;
    const I16 nibble = isplat(0x0f0f0f0f);
    for (int first = 0; first < kVectors; first += kTileVectors) {
        F16 sum[kRows][kTileVectors];
        uint8_t* const waiting = tile.sums + first * 64;
        TRIPOD_UNROLL for (int row = 0; row < kRows; ++row)
            TRIPOD_UNROLL for (int v = 0; v < kTileVectors; ++v)
                sum[row][v] = tile.is_first ? zeros() : load(reinterpret_cast<const float*>(waiting + row * kStepBytes + v * 64));
        const uint8_t* weights = tile.weights;
        const uint8_t* x = tile.x;
        const uint8_t* ahead = tile.ahead;
        for (int64_t group = 0; group < num_groups; ++group) {
            const auto* scales = reinterpret_cast<const uint16_t*>(weights) + first * kLanes;
            weights += kPanel * 2;
            I16 whole[kRows][kTileVectors];
            TRIPOD_UNROLL for (int row = 0; row < kRows; ++row) {
                const I16 offset = isplat(tile.offsets[row * tile.offset_stride + group]);
                TRIPOD_UNROLL for (int v = 0; v < kTileVectors; ++v) whole[row][v] = offset;
            }
            const auto step = [&]() __attribute__((always_inline)) {
                I16 low[kTileVectors], high[kTileVectors];
                TRIPOD_UNROLL for (int v = 0; v < kTileVectors; ++v) {
                    const I16 both = iload(weights + (first + v) * 64);
                    low[v] = iand(both, nibble);
                    high[v] = iand(shift_right<4>(both), nibble);
                }
                TRIPOD_UNROLL for (int row = 0; row < kRows; ++row) {
                    const I16 x_low = isplat(four_bytes(x + row * tile.x_stride));
                    TRIPOD_UNROLL for (int v = 0; v < kTileVectors; ++v) whole[row][v] = dot_u8s8(whole[row][v], low[v], x_low);
                }
                TRIPOD_UNROLL for (int row = 0; row < kRows; ++row) {
                    const I16 x_high = isplat(four_bytes(x + row * tile.x_stride + 4));
                    TRIPOD_UNROLL for (int v = 0; v < kTileVectors; ++v) whole[row][v] = dot_u8s8(whole[row][v], high[v], x_high);
                }
                weights += kStepBytes;
                x += 8;
            };
            for (int64_t left = steps_per_group; left > 0; left -= kStepsPerPrefetch) {  // a group is a multiple of 32 k
                ahead = prefetch(ahead, tile.lines);
                TRIPOD_UNROLL for (int i = 0; i < kStepsPerPrefetch; ++i) step();
            }
            TRIPOD_UNROLL for (int v = 0; v < kTileVectors; ++v) {
                const F16 scale = load_bf16(scales + v * kLanes);
                TRIPOD_UNROLL for (int row = 0; row < kRows; ++row) {
                    const F16 both = mul(scale, splat(tile.scales[row * tile.offset_stride + group]));
                    sum[row][v] = fma(to_float(whole[row][v]), both, sum[row][v]);
                }
            }
        }
        TRIPOD_UNROLL for (int row = 0; row < kRows; ++row)
            TRIPOD_UNROLL for (int v = 0; v < kTileVectors; ++v)
                store(reinterpret_cast<float*>(waiting + row * kStepBytes + v * 64), sum[row][v]);
    }
}

}  // namespace tripod
