// Sixteen lanes, the same on every level: one AVX-512 register, two AVX2 registers, or four of 128 bits (SSE2, NEON).
//
// Kernels are written once against these names. kTileVectors and kTileRows say how many accumulators a level's registers hold.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#define TRIPOD_INLINE inline __attribute__((always_inline))
#if defined(__clang__)
#define TRIPOD_UNROLL _Pragma("clang loop unroll(full)")
#else
#define TRIPOD_UNROLL _Pragma("GCC unroll 16")  // gcc 12 keeps arrays of vectors on the stack unless every loop over them is unrolled by name
#endif

namespace tripod {

constexpr int kLanes = 16;

#if defined(__AVX512F__)

using F16 = __m512;   // sixteen floats
using I16 = __m512i;  // sixteen int32, or sixteen groups of two bf16 or of four bytes

TRIPOD_INLINE F16 zeros() { return _mm512_setzero_ps(); }
TRIPOD_INLINE F16 splat(float x) { return _mm512_set1_ps(x); }
TRIPOD_INLINE F16 load(const float* from) { return _mm512_loadu_ps(from); }
TRIPOD_INLINE void store(float* to, F16 x) { _mm512_storeu_ps(to, x); }
TRIPOD_INLINE F16 add(F16 a, F16 b) { return _mm512_add_ps(a, b); }
TRIPOD_INLINE F16 sub(F16 a, F16 b) { return _mm512_sub_ps(a, b); }
TRIPOD_INLINE F16 mul(F16 a, F16 b) { return _mm512_mul_ps(a, b); }
TRIPOD_INLINE F16 div(F16 a, F16 b) { return _mm512_div_ps(a, b); }
TRIPOD_INLINE F16 fma(F16 a, F16 b, F16 c) { return _mm512_fmadd_ps(a, b, c); }  // a b + c
TRIPOD_INLINE F16 min(F16 a, F16 b) { return _mm512_min_ps(a, b); }
TRIPOD_INLINE F16 max(F16 a, F16 b) { return _mm512_max_ps(a, b); }
TRIPOD_INLINE F16 round(F16 x) { return _mm512_roundscale_ps(x, 0); }  // to nearest, ties to even
TRIPOD_INLINE F16 abs(F16 x) { return _mm512_abs_ps(x); }

TRIPOD_INLINE I16 izeros() { return _mm512_setzero_si512(); }
TRIPOD_INLINE I16 isplat(int32_t x) { return _mm512_set1_epi32(x); }
TRIPOD_INLINE I16 iload(const void* from) { return _mm512_loadu_si512(from); }
TRIPOD_INLINE void istore(void* to, I16 x) { _mm512_storeu_si512(to, x); }
TRIPOD_INLINE I16 iadd(I16 a, I16 b) { return _mm512_add_epi32(a, b); }
TRIPOD_INLINE I16 iand(I16 a, I16 b) { return _mm512_and_si512(a, b); }
template <int kBits> TRIPOD_INLINE I16 shift_left(I16 x) { return _mm512_slli_epi32(x, kBits); }
template <int kBits> TRIPOD_INLINE I16 shift_right(I16 x) { return _mm512_srli_epi32(x, kBits); }  // zeros come in
TRIPOD_INLINE F16 to_float(I16 x) { return _mm512_cvtepi32_ps(x); }
TRIPOD_INLINE I16 to_int(F16 x) { return _mm512_cvtps_epi32(x); }  // to nearest, ties to even
TRIPOD_INLINE F16 bits_to_float(I16 x) { return _mm512_castsi512_ps(x); }
TRIPOD_INLINE I16 float_to_bits(F16 x) { return _mm512_castps_si512(x); }
TRIPOD_INLINE I16 widen16(const uint16_t* from) { return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))); }
TRIPOD_INLINE I16 widen8(const int8_t* from) { return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))); }
TRIPOD_INLINE void narrow16(uint16_t* to, I16 x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(x)); }
TRIPOD_INLINE void narrow8(int8_t* to, I16 x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(x)); }

#elif defined(__AVX2__)

struct F16 {
    __m256 low, high;
};
struct I16 {
    __m256i low, high;
};

TRIPOD_INLINE F16 zeros() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
TRIPOD_INLINE F16 splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
TRIPOD_INLINE F16 load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
TRIPOD_INLINE void store(float* to, F16 x) {
    _mm256_storeu_ps(to, x.low);
    _mm256_storeu_ps(to + 8, x.high);
}
TRIPOD_INLINE F16 add(F16 a, F16 b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
TRIPOD_INLINE F16 sub(F16 a, F16 b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
TRIPOD_INLINE F16 mul(F16 a, F16 b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
TRIPOD_INLINE F16 div(F16 a, F16 b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
TRIPOD_INLINE F16 fma(F16 a, F16 b, F16 c) { return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)}; }
TRIPOD_INLINE F16 min(F16 a, F16 b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
TRIPOD_INLINE F16 max(F16 a, F16 b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
TRIPOD_INLINE F16 round(F16 x) { return {_mm256_round_ps(x.low, 8), _mm256_round_ps(x.high, 8)}; }
TRIPOD_INLINE F16 abs(F16 x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, x.low), _mm256_andnot_ps(sign, x.high)};
}

TRIPOD_INLINE I16 izeros() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
TRIPOD_INLINE I16 isplat(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
TRIPOD_INLINE I16 iload(const void* from) {
    const auto* half = static_cast<const __m256i*>(from);
    return {_mm256_loadu_si256(half), _mm256_loadu_si256(half + 1)};
}
TRIPOD_INLINE void istore(void* to, I16 x) {
    auto* half = static_cast<__m256i*>(to);
    _mm256_storeu_si256(half, x.low);
    _mm256_storeu_si256(half + 1, x.high);
}
TRIPOD_INLINE I16 iadd(I16 a, I16 b) { return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)}; }
TRIPOD_INLINE I16 iand(I16 a, I16 b) { return {_mm256_and_si256(a.low, b.low), _mm256_and_si256(a.high, b.high)}; }
template <int kBits> TRIPOD_INLINE I16 shift_left(I16 x) { return {_mm256_slli_epi32(x.low, kBits), _mm256_slli_epi32(x.high, kBits)}; }
template <int kBits> TRIPOD_INLINE I16 shift_right(I16 x) { return {_mm256_srli_epi32(x.low, kBits), _mm256_srli_epi32(x.high, kBits)}; }
TRIPOD_INLINE F16 to_float(I16 x) { return {_mm256_cvtepi32_ps(x.low), _mm256_cvtepi32_ps(x.high)}; }
TRIPOD_INLINE I16 to_int(F16 x) { return {_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high)}; }
TRIPOD_INLINE F16 bits_to_float(I16 x) { return {_mm256_castsi256_ps(x.low), _mm256_castsi256_ps(x.high)}; }
TRIPOD_INLINE I16 float_to_bits(F16 x) { return {_mm256_castps_si256(x.low), _mm256_castps_si256(x.high)}; }
TRIPOD_INLINE I16 widen16(const uint16_t* from) {
    const auto* half = reinterpret_cast<const __m128i*>(from);
    return {_mm256_cvtepu16_epi32(_mm_loadu_si128(half)), _mm256_cvtepu16_epi32(_mm_loadu_si128(half + 1))};
}
TRIPOD_INLINE I16 widen8(const int8_t* from) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return {_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8))};
}

#else

// The compiler's own vectors: it knows how to lower them on any processor.
typedef float F4 __attribute__((vector_size(16)));
typedef int32_t I4 __attribute__((vector_size(16)));
typedef uint32_t U4 __attribute__((vector_size(16)));
struct F16 {
    F4 part[4];
};
struct I16 {
    I4 part[4];
};

template <class Vector, class Lanes> TRIPOD_INLINE Vector each(Lanes&& lanes) {
    return {{lanes(0), lanes(1), lanes(2), lanes(3)}};
}
TRIPOD_INLINE F16 splat(float x) {
    const F4 four = {x, x, x, x};
    return {{four, four, four, four}};
}
TRIPOD_INLINE F16 zeros() { return splat(0.0f); }
TRIPOD_INLINE F16 load(const float* from) {
    F16 x;
    std::memcpy(&x, from, sizeof x);
    return x;
}
TRIPOD_INLINE void store(float* to, F16 x) { std::memcpy(to, &x, sizeof x); }
TRIPOD_INLINE F16 add(F16 a, F16 b) { return each<F16>([&](int i) { return a.part[i] + b.part[i]; }); }
TRIPOD_INLINE F16 sub(F16 a, F16 b) { return each<F16>([&](int i) { return a.part[i] - b.part[i]; }); }
TRIPOD_INLINE F16 mul(F16 a, F16 b) { return each<F16>([&](int i) { return a.part[i] * b.part[i]; }); }
TRIPOD_INLINE F16 div(F16 a, F16 b) { return each<F16>([&](int i) { return a.part[i] / b.part[i]; }); }
TRIPOD_INLINE F16 fma(F16 a, F16 b, F16 c) { return each<F16>([&](int i) { return a.part[i] * b.part[i] + c.part[i]; }); }
TRIPOD_INLINE F16 min(F16 a, F16 b) { return each<F16>([&](int i) { return a.part[i] < b.part[i] ? a.part[i] : b.part[i]; }); }
TRIPOD_INLINE F16 max(F16 a, F16 b) { return each<F16>([&](int i) { return a.part[i] > b.part[i] ? a.part[i] : b.part[i]; }); }
TRIPOD_INLINE I16 float_to_bits(F16 x) { return each<I16>([&](int i) { return (I4)x.part[i]; }); }
TRIPOD_INLINE F16 bits_to_float(I16 x) { return each<F16>([&](int i) { return (F4)x.part[i]; }); }
TRIPOD_INLINE F16 abs(F16 x) { return each<F16>([&](int i) { return (F4)((I4)x.part[i] & 0x7fffffff); }); }
TRIPOD_INLINE F16 to_float(I16 x) { return each<F16>([&](int i) { return __builtin_convertvector(x.part[i], F4); }); }
// Adding and taking away 1.5 * 2^23 leaves no bits for a fraction: round to nearest even, for |x| < 2^22 (others are whole already).
TRIPOD_INLINE F16 round(F16 x) {
    return each<F16>([&](int i) {
        volatile F4 shifted = x.part[i] + 12582912.0f;
        const F4 whole = shifted - 12582912.0f;
        const F4 size = (F4)((I4)x.part[i] & 0x7fffffff);
        return size < 4194304.0f ? whole : x.part[i];
    });
}
TRIPOD_INLINE I16 to_int(F16 x) {
    const F16 whole = round(x);
    return each<I16>([&](int i) { return __builtin_convertvector(whole.part[i], I4); });
}
TRIPOD_INLINE I16 isplat(int32_t x) {
    const I4 four = {x, x, x, x};
    return {{four, four, four, four}};
}
TRIPOD_INLINE I16 izeros() { return isplat(0); }
TRIPOD_INLINE I16 iload(const void* from) {
    I16 x;
    std::memcpy(&x, from, sizeof x);
    return x;
}
TRIPOD_INLINE void istore(void* to, I16 x) { std::memcpy(to, &x, sizeof x); }
TRIPOD_INLINE I16 iadd(I16 a, I16 b) { return each<I16>([&](int i) { return (I4)((U4)a.part[i] + (U4)b.part[i]); }); }
TRIPOD_INLINE I16 iand(I16 a, I16 b) { return each<I16>([&](int i) { return a.part[i] & b.part[i]; }); }
template <int kBits> TRIPOD_INLINE I16 shift_left(I16 x) { return each<I16>([&](int i) { return (I4)((U4)x.part[i] << kBits); }); }
template <int kBits> TRIPOD_INLINE I16 shift_right(I16 x) { return each<I16>([&](int i) { return (I4)((U4)x.part[i] >> kBits); }); }
template <class Number> TRIPOD_INLINE I16 widen(const Number* from) {
    int32_t wide[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) wide[lane] = from[lane];
    return iload(wide);
}
TRIPOD_INLINE I16 widen16(const uint16_t* from) { return widen(from); }
TRIPOD_INLINE I16 widen8(const int8_t* from) { return widen(from); }

#endif

#if !defined(__AVX512F__)
TRIPOD_INLINE void narrow16(uint16_t* to, I16 x) {
    int32_t wide[kLanes];
    istore(wide, x);
    for (int lane = 0; lane < kLanes; ++lane) to[lane] = static_cast<uint16_t>(wide[lane]);
}
TRIPOD_INLINE void narrow8(int8_t* to, I16 x) {
    int32_t wide[kLanes];
    istore(wide, x);
    for (int lane = 0; lane < kLanes; ++lane) to[lane] = static_cast<int8_t>(wide[lane]);
}
#endif

// ---- bfloat16: the upper half of a float ----

TRIPOD_INLINE float bf16_to_float(uint16_t x) {
    const uint32_t bits = static_cast<uint32_t>(x) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}
TRIPOD_INLINE uint16_t float_to_bf16(float x) {  // to nearest, ties to even; NaN stays NaN
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
TRIPOD_INLINE F16 load_bf16(const uint16_t* from) { return bits_to_float(shift_left<16>(widen16(from))); }
TRIPOD_INLINE void store_bf16(uint16_t* to, F16 x) {
#if defined(__AVX512BF16__)
    const __m256bh narrow = _mm512_cvtneps_pbh(x);
    std::memcpy(to, &narrow, sizeof narrow);
#else
    float wide[kLanes];
    store(wide, x);
    for (int lane = 0; lane < kLanes; ++lane) to[lane] = float_to_bf16(wide[lane]);
#endif
}
TRIPOD_INLINE void store_bf16(uint16_t* to, F16 first, F16 second) {  // 32 of them
#if defined(__AVX512BF16__)
    const __m512bh narrow = _mm512_cvtne2ps_pbh(second, first);
    std::memcpy(to, &narrow, sizeof narrow);
#else
    store_bf16(to, first);
    store_bf16(to + kLanes, second);
#endif
}

// ---- whole-vector values; the order of the lanes is fixed, so a row's result does not depend on where the row stands ----

#if defined(__AVX512F__)
TRIPOD_INLINE float sum(F16 x) { return _mm512_reduce_add_ps(x); }  // in the order of the loop below
TRIPOD_INLINE uint32_t sum(I16 x) { return static_cast<uint32_t>(_mm512_reduce_add_epi32(x)); }  // beyond 32 bits it begins again at 0
TRIPOD_INLINE float max_of(F16 x) { return _mm512_reduce_max_ps(x); }  // of what is not NaN, or NaN
#else
TRIPOD_INLINE float sum(F16 x) {
    float lanes[kLanes];
    store(lanes, x);
    for (int width = kLanes / 2; width > 0; width /= 2)
        for (int lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
    return lanes[0];
}
TRIPOD_INLINE uint32_t sum(I16 x) {
    uint32_t lanes[kLanes], total = 0;
    istore(lanes, x);
    for (uint32_t lane : lanes) total += lane;
    return total;
}
TRIPOD_INLINE float max_of(F16 x) {
    float lanes[kLanes];
    store(lanes, x);
    float largest = lanes[0];
    for (int lane = 1; lane < kLanes; ++lane) largest = lanes[lane] > largest ? lanes[lane] : largest;
    return largest;
}
#endif

// e^x to about 2 units in the last place: 2^n by the exponent bits, the rest by a polynomial (Cephes expf). Below -87.3 the result is 0.
TRIPOD_INLINE F16 exp(F16 x) {
    const F16 clamped = min(splat(88.37626f), max(splat(-87.33654f), x));  // in this order NaN stays NaN
    const F16 n = round(mul(clamped, splat(1.44269504088896341f)));
    F16 r = fma(n, splat(-0.693359375f), clamped);
    r = fma(n, splat(2.12194440e-4f), r);
    F16 p = splat(1.9875691500e-4f);
    p = fma(p, r, splat(1.3981999507e-3f));
    p = fma(p, r, splat(8.3334519073e-3f));
    p = fma(p, r, splat(4.1665795894e-2f));
    p = fma(p, r, splat(1.6666665459e-1f));
    p = fma(p, r, splat(5.0000001201e-1f));
    const F16 value = add(fma(mul(r, r), p, r), splat(1.0f));
    const F16 scaled = mul(value, bits_to_float(shift_left<23>(iadd(to_int(n), isplat(127)))));
    // max(x, lowest) hides minus infinity and very small arguments: what lies below the clamp is zero.
#if defined(__AVX512F__)
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.33654f), _CMP_NLT_UQ), scaled);
#else
    float in[kLanes], out[kLanes];
    store(in, x);
    store(out, scaled);
    for (int lane = 0; lane < kLanes; ++lane) out[lane] = in[lane] < -87.33654f ? 0.0f : out[lane];
    return load(out);
#endif
}

}  // namespace tripod
