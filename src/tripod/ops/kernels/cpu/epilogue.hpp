// What happens to finished sums: bias, activation, residual, and the type of the output.
#pragma once

#include "linear.hpp"

namespace tripod {

TRIPOD_INLINE F16 sigmoid(F16 x) { return div(splat(1.0f), add(splat(1.0f), exp(sub(zeros(), x)))); }

TRIPOD_INLINE F16 silu(F16 x) { return mul(x, sigmoid(x)); }

// x times the normal distribution function; erf by Abramowitz & Stegun 7.1.26, absolute error below 1.5e-7.
TRIPOD_INLINE F16 gelu_erf(F16 x) {
    const F16 z = mul(abs(x), splat(0.70710678118654752f));
    const F16 t = div(splat(1.0f), fma(z, splat(0.3275911f), splat(1.0f)));
    F16 p = splat(1.061405429f);
    p = fma(p, t, splat(-1.453152027f));
    p = fma(p, t, splat(1.421413741f));
    p = fma(p, t, splat(-0.284496736f));
    p = fma(p, t, splat(0.254829592f));
    const F16 tail = mul(mul(p, t), exp(mul(sub(zeros(), z), z)));  // 1 - erf(z), for z >= 0
    // x >= 0: x (1 - tail / 2); x < 0: x tail / 2. As max(x, 0) - |x| tail / 2 it is one expression for both.
    return fma(mul(abs(x), splat(-0.5f)), tail, max(x, zeros()));
}

// The approximation with a hyperbolic tangent (Hendrycks & Gimpel 2016): 1/2 (1 + tanh u) is the sigmoid of 2 u.
TRIPOD_INLINE F16 gelu_tanh(F16 x) {
    const F16 twice = mul(mul(x, splat(1.5957691216057308f)), fma(mul(x, x), splat(0.044715f), splat(1.0f)));
    return mul(x, sigmoid(twice));
}

TRIPOD_INLINE F16 activate(Activation activation, F16 x) {
    switch (activation) {
        case Activation::kGeluErf: return gelu_erf(x);
        case Activation::kGeluTanh: return gelu_tanh(x);
        case Activation::kSilu: return silu(x);
        default: return x;
    }
}

// Sixteen columns of a row, or the `columns` that are left of them.
TRIPOD_INLINE F16 load_row(Type type, const void* from, int64_t at, int64_t columns) {
    if (columns >= kLanes)
        return type == Type::kF32 ? load(static_cast<const float*>(from) + at) : load_bf16(static_cast<const uint16_t*>(from) + at);
    float lanes[kLanes] = {};
    for (int64_t i = 0; i < columns; ++i)
        lanes[i] = type == Type::kF32 ? static_cast<const float*>(from)[at + i] : bf16_to_float(static_cast<const uint16_t*>(from)[at + i]);
    return load(lanes);
}
TRIPOD_INLINE void store_row(Type type, void* to, int64_t at, int64_t columns, F16 x) {
    if (columns >= kLanes)
        return type == Type::kF32 ? store(static_cast<float*>(to) + at, x) : store_bf16(static_cast<uint16_t*>(to) + at, x);
    float lanes[kLanes];
    store(lanes, x);
    for (int64_t i = 0; i < columns; ++i) {
        if (type == Type::kF32)
            static_cast<float*>(to)[at + i] = lanes[i];
        else
            static_cast<uint16_t*>(to)[at + i] = float_to_bf16(lanes[i]);
    }
}

}  // namespace tripod
