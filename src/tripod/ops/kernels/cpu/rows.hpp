// Operations on one row, on the calling thread: norms, sums, rotation, look-up, argmax. Rows are of float or of bfloat16 (uint16_t);
// the arithmetic between is in float, in an order that the length of the row alone decides.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "simd.hpp"

namespace tripod {

// The next sixteen numbers of a row, or the `count` that are left of it and then `fill`.
TRIPOD_INLINE F16 load_lanes(const float* from, int64_t count, float fill = 0.0f) {
    if (count >= kLanes) return load(from);
    float lanes[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = lane < count ? from[lane] : fill;
    return load(lanes);
}
TRIPOD_INLINE F16 load_lanes(const uint16_t* from, int64_t count, float fill = 0.0f) {
    if (count >= kLanes) return load_bf16(from);
    float lanes[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = lane < count ? bf16_to_float(from[lane]) : fill;
    return load(lanes);
}
TRIPOD_INLINE void store_lanes(float* to, F16 x, int64_t count) {
    if (count >= kLanes) return store(to, x);
    float lanes[kLanes];
    store(lanes, x);
    std::memcpy(to, lanes, sizeof(float) * static_cast<size_t>(count));
}
TRIPOD_INLINE void store_lanes(uint16_t* to, F16 x, int64_t count) {
    if (count >= kLanes) return store_bf16(to, x);
    uint16_t lanes[kLanes];
    store_bf16(lanes, x);
    std::memcpy(to, lanes, sizeof(uint16_t) * static_cast<size_t>(count));
}

// out = (x - mean) / sqrt(variance + eps) * weight + bias; bias may be null. out may be x.
template <class In, class Out>
void layer_norm(const In* x, const float* weight, const float* bias, float eps, Out* out, int64_t size) {
    F16 total = zeros(), squares = zeros();
    for (int64_t i = 0; i < size; i += kLanes) total = add(total, load_lanes(x + i, size - i));
    const float mean = sum(total) / static_cast<float>(size);
    for (int64_t i = 0; i < size; i += kLanes) {
        const F16 centred = sub(load_lanes(x + i, size - i, mean), splat(mean));
        squares = fma(centred, centred, squares);
    }
    const F16 scale = splat(1.0f / std::sqrt(sum(squares) / static_cast<float>(size) + eps));
    for (int64_t i = 0; i < size; i += kLanes) {
        const int64_t count = size - i;
        const F16 unit = mul(sub(load_lanes(x + i, count), splat(mean)), scale);
        const F16 shift = bias == nullptr ? zeros() : load_lanes(bias + i, count);
        store_lanes(out + i, fma(unit, load_lanes(weight + i, count), shift), count);
    }
}

// out = x / sqrt(mean of squares + eps) * weight. out may be x.
template <class In, class Out>
void rms_norm(const In* x, const float* weight, float eps, Out* out, int64_t size) {
    F16 squares = zeros();
    for (int64_t i = 0; i < size; i += kLanes) {
        const F16 part = load_lanes(x + i, size - i);
        squares = fma(part, part, squares);
    }
    const F16 scale = splat(1.0f / std::sqrt(sum(squares) / static_cast<float>(size) + eps));
    for (int64_t i = 0; i < size; i += kLanes) {
        const int64_t count = size - i;
        store_lanes(out + i, mul(mul(load_lanes(x + i, count), scale), load_lanes(weight + i, count)), count);
    }
}

// out = a + b. out may be either.
template <class A, class B, class Out>
void add_rows(const A* a, const B* b, Out* out, int64_t size) {
    for (int64_t i = 0; i < size; i += kLanes)
        store_lanes(out + i, add(load_lanes(a + i, size - i), load_lanes(b + i, size - i)), size - i);
}

template <class From, class To>
void convert(const From* from, To* to, int64_t size) {
    for (int64_t i = 0; i < size; i += kLanes) store_lanes(to + i, load_lanes(from + i, size - i), size - i);
}

// Turn numbers i and i + half of one head by the angle of its token; what lies beyond 2 half is copied. out may be x.
template <class Number>
void rotate(const Number* x, const float* cos, const float* sin, Number* out, int64_t half, int64_t size) {
    for (int64_t i = 0; i < half; i += kLanes) {
        const int64_t count = half - i;
        const F16 first = load_lanes(x + i, count), second = load_lanes(x + half + i, count);
        const F16 c = load_lanes(cos + i, count), s = load_lanes(sin + i, count);
        store_lanes(out + i, sub(mul(first, c), mul(second, s)), count);
        store_lanes(out + half + i, add(mul(second, c), mul(first, s)), count);
    }
    if (out != x && size > 2 * half) std::memcpy(out + 2 * half, x + 2 * half, sizeof(Number) * static_cast<size_t>(size - 2 * half));
}

// The place of the largest number, the first of equals; NaN counts as the largest, as in torch.
struct Largest {
    float value;
    int64_t at;
};

// Looks on through `size` more numbers, the first of which is at place `first`. `best` is what was found so far.
template <class Number>
Largest argmax(const Number* x, int64_t size, Largest best, int64_t first) {
    constexpr int64_t kPiece = 1024;
    for (int64_t begin = 0; begin < size && best.value == best.value; begin += kPiece) {
        const int64_t end = std::min(begin + kPiece, size);
        F16 top = splat(-__builtin_inff()), zero_times = zeros();
        for (int64_t i = begin; i < end; i += kLanes) {
            const F16 part = load_lanes(x + i, end - i, -__builtin_inff());
            top = max(top, part);
            zero_times = fma(part, zeros(), zero_times);  // NaN where a number is NaN or infinite
        }
        const float flag = sum(zero_times);
        if (!(max_of(top) > best.value) && flag == flag) continue;
        for (int64_t i = begin; i < end; ++i) {
            float number;
            if constexpr (sizeof(Number) == 4) number = x[i];
            else number = bf16_to_float(x[i]);
            if (number != number) return {number, first + i};
            if (number > best.value) best = {number, first + i};
        }
    }
    return best;
}

// What the threads found in their parts of a row, which follow one another: found is [thread][row], and -1 is no place.
inline Largest largest_of_threads(const Largest* found, int64_t num_rows, int num_threads, int64_t row) {
    Largest best = found[row];
    for (int other = 1; other < num_threads && best.value == best.value; ++other) {
        const Largest& next = found[other * num_rows + row];
        if (next.at >= 0 && (best.at < 0 || !(next.value <= best.value))) best = next;
    }
    return best;
}

}  // namespace tripod
