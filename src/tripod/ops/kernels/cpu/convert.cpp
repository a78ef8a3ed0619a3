// Rows of activations into the form that a format's dot products read.
#include <algorithm>

#include "epilogue.hpp"
#include "linear.hpp"
#include "pool.hpp"

namespace tripod {
namespace {

constexpr int64_t kAlign = 64;

int64_t aligned(int64_t bytes) { return ceil_div(bytes, kAlign) * kAlign; }

// The largest magnitude; not a number where one of them is not finite, so that rounding to whole numbers cannot hide it.
float largest(const float* x, int64_t count) {
    F16 most = zeros(), poison = zeros();
    for (int64_t i = 0; i < count; i += kLanes) {
        const F16 some = load_row(Type::kF32, x, i, count - i);
        most = max(most, abs(some));
        poison = fma(some, zeros(), poison);
    }
    return max_of(most) + sum(poison);
}

}  // namespace

float quantize(const float* x, int64_t count, int8_t* to, int32_t zero_point, int32_t* offset) {
    const float most = largest(x, count);
    const F16 factor = splat(most > 0.0f ? 127.0f / most : 0.0f);
    I16 total = izeros();
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        const I16 whole = to_int(mul(load(x + i), factor));
        total = iadd(total, whole);
        narrow8(to + i, whole);
    }
    if (i < count) {
        const I16 whole = to_int(mul(load_row(Type::kF32, x, i, count - i), factor));
        total = iadd(total, whole);
        int8_t lanes[kLanes];
        narrow8(lanes, whole);
        std::memcpy(to + i, lanes, static_cast<size_t>(count - i));
    }
    *offset = static_cast<int32_t>(static_cast<uint32_t>(zero_point) * sum(total));  // of what is not finite it is meaningless, as is the row
    return most / 127.0f;
}

InputLayout input_layout(const Weights& weights, int64_t rows) {
    const int64_t bytes_per_step = weights.format == Format::kInt4 ? 8 : 4;
    InputLayout layout{};
    layout.stride = aligned(weights.num_steps() * bytes_per_step);
    layout.scales_at = rows * layout.stride;
    const int64_t scales = weights.format >= Format::kInt8 ? aligned(rows * weights.num_groups() * 4) : 0;
    layout.offsets_at = layout.scales_at + scales;
    layout.num_bytes = layout.offsets_at + scales;
    return layout;
}

Inputs inputs_in(const InputLayout& layout, const void* memory) {
    const auto* base = static_cast<const uint8_t*>(memory);
    const bool is_whole = layout.offsets_at > layout.scales_at;
    return {base, layout.stride, is_whole ? reinterpret_cast<const float*>(base + layout.scales_at) : nullptr,
            is_whole ? reinterpret_cast<const int32_t*>(base + layout.offsets_at) : nullptr};
}

void convert_row(const Weights& weights, const InputLayout& layout, void* memory, int64_t row, const float* x) {
    auto* const base = static_cast<uint8_t*>(memory);
    uint8_t* const to = base + row * layout.stride;
    const int64_t count = weights.num_inputs, num_groups = weights.num_groups();
    auto* const scales = reinterpret_cast<float*>(base + layout.scales_at) + row * num_groups;
    auto* const offsets = reinterpret_cast<int32_t*>(base + layout.offsets_at) + row * num_groups;
    int64_t written = 0;  // bytes
    switch (weights.format) {
        case Format::kF32:
            std::memcpy(to, x, static_cast<size_t>(count * 4));
            written = count * 4;
            break;
        case Format::kBf16:
            for (int64_t i = 0; i < count; i += kLanes)
                store_row(Type::kBf16, to, i, count - i, load_row(Type::kF32, x, i, count - i));
            written = count * 2;
            break;
        case Format::kInt8:
            scales[0] = quantize(x, count, reinterpret_cast<int8_t*>(to), -128, offsets);
            written = count;
            break;
        case Format::kInt4:
            for (int64_t group = 0; group < num_groups; ++group) {
                const int64_t begin = group * weights.group, size = std::min<int64_t>(weights.group, count - begin);
                scales[group] = quantize(x + begin, size, reinterpret_cast<int8_t*>(to) + begin, -8, offsets + group);
            }
            written = count;
            break;
    }
    std::memset(to + written, 0, static_cast<size_t>(layout.stride - written));
}

const float* as_floats(Type type, const void* x, int64_t count) {
    if (type == Type::kF32) return static_cast<const float*>(x);
    auto* const wide = static_cast<float*>(scratch(Scratch::kRow, count * 4));
    for (int64_t i = 0; i < count; i += kLanes) store_row(Type::kF32, wide, i, count - i, load_row(type, x, i, count - i));
    return wide;
}

}  // namespace tripod
