// Cross-entropy and its gradient, a row of logits at a time: a row stays in the second-level cache between its three passes.

#include <cmath>
#include <limits>

#include "pool.hpp"
#include "simd.hpp"

namespace tripod {
namespace {

// Floats and bfloat16 under one name.
TRIPOD_INLINE F16 read(const float* from) { return load(from); }
TRIPOD_INLINE F16 read(const uint16_t* from) { return load_bf16(from); }
TRIPOD_INLINE float read_one(const float* from) { return *from; }
TRIPOD_INLINE float read_one(const uint16_t* from) { return bf16_to_float(*from); }
TRIPOD_INLINE void write(float* to, F16 x) { store(to, x); }
TRIPOD_INLINE void write(uint16_t* to, F16 x) { store_bf16(to, x); }
TRIPOD_INLINE void write_one(float* to, float x) { *to = x; }
TRIPOD_INLINE void write_one(uint16_t* to, float x) { *to = float_to_bf16(x); }

template <class Number> float largest_of(const Number* row, int64_t size) {
    F16 best[4] = {splat(-std::numeric_limits<float>::infinity()), splat(-std::numeric_limits<float>::infinity()),
                   splat(-std::numeric_limits<float>::infinity()), splat(-std::numeric_limits<float>::infinity())};
    int64_t i = 0;
    for (; i + 4 * kLanes <= size; i += 4 * kLanes)
        for (int part = 0; part < 4; ++part) best[part] = max(best[part], read(row + i + part * kLanes));
    for (; i + kLanes <= size; i += kLanes) best[0] = max(best[0], read(row + i));
    float largest = max_of(max(max(best[0], best[1]), max(best[2], best[3])));
    for (; i < size; ++i) largest = read_one(row + i) > largest ? read_one(row + i) : largest;
    return largest;
}

// Zero times each logit is added too: exp and max pass over what is not a number, and a loss must not.
template <class Number> float sum_of_exp(const Number* row, int64_t size, float largest) {
    const F16 shift = splat(largest), nothing = zeros();
    F16 total[4] = {zeros(), zeros(), zeros(), zeros()};
    int64_t i = 0;
    for (; i + 4 * kLanes <= size; i += 4 * kLanes)
        for (int part = 0; part < 4; ++part) {
            const F16 x = read(row + i + part * kLanes);
            total[part] = fma(x, nothing, add(total[part], exp(sub(x, shift))));
        }
    for (; i + kLanes <= size; i += kLanes) {
        const F16 x = read(row + i);
        total[0] = fma(x, nothing, add(total[0], exp(sub(x, shift))));
    }
    float result = sum(add(add(total[0], total[1]), add(total[2], total[3])));
    for (; i < size; ++i) result += std::exp(read_one(row + i) - largest);
    return result;
}

template <class Number> void cross_entropy(Number* row, int64_t target, int64_t size, float factor, bool wants_gradient, float* loss) {
    const float largest = largest_of(row, size);
    const float total = sum_of_exp(row, size, largest);
    const float of_target = read_one(row + target);
    *loss = std::log(total) + largest - of_target;
    if (!wants_gradient) return;
    const F16 shift = splat(largest), scale = splat(factor / total);
    int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) write(row + i, mul(exp(sub(read(row + i), shift)), scale));
    for (; i < size; ++i) write_one(row + i, std::exp(read_one(row + i) - largest) * (factor / total));
    write_one(row + target, factor * (std::exp(of_target - largest) / total - 1.0f));
}

}  // namespace
}  // namespace tripod

// logits: [num_rows, size], floats or bfloat16, overwritten by factor * (softmax - one-hot of the target) where the gradient is wanted.
// losses: [num_rows], nats.
TRIPOD_API void tripod_cross_entropy(void* logits, int is_bf16, const int64_t* targets, float* losses, int64_t num_rows, int64_t size,
                                     float factor, int wants_gradient) {
    tripod::parallel_for_of_torch(num_rows, [&](int64_t begin, int64_t end, int) {
        for (int64_t row = begin; row < end; ++row) {
            if (is_bf16)
                tripod::cross_entropy(static_cast<uint16_t*>(logits) + row * size, targets[row], size, factor, wants_gradient, losses + row);
            else
                tripod::cross_entropy(static_cast<float*>(logits) + row * size, targets[row], size, factor, wants_gradient, losses + row);
        }
    });
}

// sums += parts, floats and bfloat16: what a gradient of bfloat16 products adds to a gradient in floats.
TRIPOD_API void tripod_accumulate_bf16(float* sums, const uint16_t* parts, int64_t size) {
    constexpr int64_t kPiece = 4096;
    const int64_t pieces = (size + kPiece - 1) / kPiece;
    tripod::parallel_for_of_torch(pieces, [&](int64_t begin, int64_t end, int) {
        int64_t i = begin * kPiece;
        const int64_t stop = end * kPiece < size ? end * kPiece : size;
        for (; i + tripod::kLanes <= stop; i += tripod::kLanes)
            tripod::store(sums + i, tripod::add(tripod::load(sums + i), tripod::load_bf16(parts + i)));
        for (; i < stop; ++i) sums[i] += tripod::bf16_to_float(parts[i]);
    });
}
