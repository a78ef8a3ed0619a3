// Between the two products of a gated feed-forward layer as it is trained, float32: one pass over rows, forwards and backwards.
#include <algorithm>

#include "epilogue.hpp"
#include "pool.hpp"

namespace tripod {
namespace {

constexpr int64_t kNumbersOfPiece = 4096;  // of outputs: fewer are not worth another thread

// Filled by Python (gated.py), field by field in this order: keep the two alike.
struct Gates {
    int64_t num_rows, size;  // of outputs
    int32_t is_double;
    const float* first;    // [rows, 2 size]: gate, up; or, of a double gate, [rows, 3 size]: linear gate, gate, up
    const float* factors;  // [rows]
};

struct Row {
    const float *linear, *gate, *up;  // linear: null without a double gate
    int64_t at;                       // of the gate in a row of the first product
};

// Each row on some thread: body(row, which).
template <class Body> void for_gates(const Gates& gates, Body&& body) {
    const int64_t rows_of_piece = std::max<int64_t>(1, kNumbersOfPiece / std::max<int64_t>(1, gates.size));
    parallel_for_of_torch(ceil_div(gates.num_rows, rows_of_piece), [&](int64_t begin, int64_t end, int) {
        const int64_t width = (gates.is_double ? 3 : 2) * gates.size, at = gates.is_double ? gates.size : 0;
        for (int64_t row = begin * rows_of_piece; row < std::min(end * rows_of_piece, gates.num_rows); ++row) {
            const float* const first = gates.first + row * width;
            body(Row{gates.is_double ? first : nullptr, first + at, first + at + gates.size, at}, row);
        }
    });
}

TRIPOD_INLINE F16 read(const float* from, int64_t at, int64_t size) { return load_row(Type::kF32, from, at, size - at); }
TRIPOD_INLINE void write(float* to, int64_t at, int64_t size, F16 x) { store_row(Type::kF32, to, at, size - at, x); }

}  // namespace
}  // namespace tripod

using namespace tripod;

// out [rows, size]: factor * silu(gate) * up, or factor * linear * silu(gate) * up.
TRIPOD_API void tripod_gated(const Gates* gates, float* out) {
    const int64_t size = gates->size;
    for_gates(*gates, [&](const Row& of, int64_t row) {
        const F16 factor = splat(gates->factors[row]);
        for (int64_t i = 0; i < size; i += kLanes) {
            F16 raw = read(of.up, i, size);
            if (of.linear != nullptr) raw = mul(read(of.linear, i, size), raw);
            write(out + row * size, i, size, mul(mul(silu(read(of.gate, i, size)), raw), factor));
        }
    });
}

// hidden [rows, size]: what comes is the gradient of the outputs without their factors; what stays are the outputs of tripod_gated.
// of_first, like first: its gradient. of_factors [rows].
TRIPOD_API void tripod_gated_gradients(const Gates* gates, float* hidden, float* of_first, float* of_factors) {
    const int64_t size = gates->size, width = (gates->is_double ? 3 : 2) * size;
    for_gates(*gates, [&](const Row& of, int64_t row) {
        const F16 factor = splat(gates->factors[row]), one = splat(1.0f);
        float *const own = hidden + row * size, *const linear = of_first + row * width, *const gate = linear + of.at, *const up = gate + size;
        F16 total = zeros();
        for (int64_t i = 0; i < size; i += kLanes) {
            const F16 x = read(of.gate, i, size), u = read(of.up, i, size), of_plain = read(own, i, size);
            const F16 s = sigmoid(x), active = mul(x, s), of_out = mul(of_plain, factor);
            const F16 slope = mul(s, fma(x, sub(one, s), one));  // of silu
            F16 raw = u;
            if (of.linear != nullptr) {
                const F16 l = read(of.linear, i, size), of_raw = mul(of_out, active);
                raw = mul(l, u);
                write(linear, i, size, mul(of_raw, u));
                write(up, i, size, mul(of_raw, l));
            } else {
                write(up, i, size, mul(of_out, active));
            }
            write(gate, i, size, mul(mul(of_out, raw), slope));
            const F16 plain = mul(active, raw);
            total = fma(plain, of_plain, total);
            write(own, i, size, mul(plain, factor));
        }
        of_factors[row] = sum(total);
    });
}
