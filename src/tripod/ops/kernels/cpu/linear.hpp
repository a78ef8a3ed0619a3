// Linear layers over packed weights: what one is, and the pieces that a fused layer is put together from.
//
// y[b, n] = activation(sum over k of x[b, k] w[n, k] + bias[n]) + residual[b, n]
//
// Packed weights are panels of 64 output rows, one after another; within a panel the reader goes straight ahead, 256 bytes a step:
//
//   f32    a step is 1 k:   64 rows x 1 float
//   bf16   a step is 2 k:   64 rows x 2 bf16
//   int8   a step is 4 k:   64 rows x 4 bytes, each weight + 128; before the first step 64 float scales, one a row
//   int4   a step is 8 k:   64 rows x 4 bytes, low nibbles k..k+3, high nibbles k+4..k+7, each weight + 8;
//                           before each group of G k: 64 bf16 scales, one a row
//
//   step 0          step 1
//   [r0 r1 .. r63]  [r0 r1 .. r63]  ...     four vectors of 16 rows; every row's 4 bytes meet the same 4 bytes of activation
//
// Rows beyond N and k beyond K are zero weights. Sums run over k in one order, whatever the batch: a row's result has the same bits
// alone and among thousands.
#pragma once

#include <cstdint>

#include "simd.hpp"

namespace tripod {

constexpr int kPanel = 64;                   // output rows of a panel
constexpr int kVectors = kPanel / kLanes;    // vectors of a step
constexpr int64_t kStepBytes = 4 * kPanel;   // weights of a step

enum class Type : int32_t { kF32 = 0, kBf16 = 1 };  // of rows in memory
enum class Format : int32_t { kF32 = 0, kBf16 = 1, kInt8 = 2, kInt4 = 3 };
enum class Activation : int32_t { kNone = 0, kGeluErf = 1, kGeluTanh = 2, kSilu = 3, kSiluMul = 4 };

inline int64_t bytes_of(Type type) { return type == Type::kF32 ? 4 : 2; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Weights {
    Format format;
    int32_t group;        // int4: k values under one scale, a multiple of 8; else 0
    int64_t num_outputs;  // N
    int64_t num_inputs;   // K
    const uint8_t* panels;

    int64_t k_per_step() const { return format == Format::kInt4 ? 8 : 1 << static_cast<int>(format); }
    int64_t num_groups() const { return format == Format::kInt4 ? ceil_div(num_inputs, group) : 1; }
    int64_t num_steps() const { return format == Format::kInt4 ? num_groups() * group / 8 : ceil_div(num_inputs, k_per_step()); }
    int64_t num_panels() const { return ceil_div(num_outputs, kPanel); }
    int64_t panel_bytes() const {
        const int64_t scales = format == Format::kInt8 ? kPanel * 4 : format == Format::kInt4 ? num_groups() * kPanel * 2 : 0;
        return scales + num_steps() * kStepBytes;
    }
};

// Rows of activations in the form that a format's dot products read. One set serves every layer of the same K, format and group.
struct Inputs {
    const uint8_t* values;   // [rows, stride bytes]: f32, bf16 or int8; k beyond K is zero
    int64_t stride;
    const float* scales;     // int8: [rows]; int4: [rows, num_groups]
    const int32_t* offsets;  // same shape: -128 (int8) or -8 (int4) times the sum of the row's or group's values: takes back the unsigned shift
};

// Memory for converted rows, and where each part lies in it.
struct InputLayout {
    int64_t stride, scales_at, offsets_at, num_bytes;
};
InputLayout input_layout(const Weights& weights, int64_t rows);
Inputs inputs_in(const InputLayout& layout, const void* memory);

// x as whole numbers of -127..127 times the scale that is returned; `offset` becomes `zero_point` times their sum.
float quantize(const float* x, int64_t count, int8_t* to, int32_t zero_point, int32_t* offset);

// Converts one row of K floats into its place.
void convert_row(const Weights& weights, const InputLayout& layout, void* memory, int64_t row, const float* x);

// A row as floats: where it lies if it is of floats, else in the calling thread's Scratch::kRow.
const float* as_floats(Type type, const void* x, int64_t count);

// What happens to a finished sum on its way to memory.
struct Output {
    const float* bias;     // [N] or null
    Activation activation;
    Type type;             // of out and residual
    const void* residual;  // [rows, stride] or null; may be out itself
    void* out;             // [rows, stride]
    int64_t stride;        // elements
    int64_t num_columns;   // N; kSiluMul: half as many, or fewer where the last pair of panels is padded
    const float* factor;   // [rows, stride] or null: kSiluMul's result is multiplied by it
};

// kSiluMul takes panels in pairs: of the weights' rows, 64 of the gate are followed by the same 64 of up, and the output is silu(gate) up.
inline int64_t panels_per_unit(const Output& output) { return output.activation == Activation::kSiluMul ? 2 : 1; }

// Units [begin, end) of the output's columns for rows [first_row, first_row + rows) of the inputs, on the calling thread.
void linear_units(const Weights& weights, const Inputs& inputs, const Output& output, int64_t first_row, int64_t rows, int64_t begin,
                  int64_t end);

// A thread's share of the whole product, on every thread of a region: rows are cut into blocks, blocks into units.
void linear_share(const Weights& weights, const Inputs& inputs, const Output& output, int64_t rows, int thread, int num_threads);

}  // namespace tripod
