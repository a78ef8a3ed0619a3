// Transformer layers over the rows of a step, in one parallel region: decodes and chunks of prompts in one ragged batch.
//
// The structures are filled by Python (fused_layer.py), field by field in this order: keep the two alike.
#pragma once

#include <cstdint>

#include "attention.hpp"
#include "linear.hpp"
#include "rows.hpp"

namespace tripod {

struct Dense {
    int32_t format, group;
    int64_t num_outputs, num_inputs;  // of the panels: padded, and of gate and up together
    int64_t num_columns;              // of the result
    const void* panels;
    const float* bias;

    Weights weights() const { return {static_cast<Format>(format), group, num_outputs, num_inputs, static_cast<const uint8_t*>(panels)}; }
};

struct Norm {
    const float* weight;
    const float* bias;  // null: none
    float eps;
    int32_t is_rms;
};

inline void norm_row(const Norm& norm, const float* x, float* out, int64_t size) {
    if (norm.is_rms) rms_norm(x, norm.weight, norm.eps, out, size);
    else layer_norm(x, norm.weight, norm.bias, norm.eps, out, size);
}

struct Routed;

// x = x + Output(Attention(QKV(norm_1 x))), then x = x + Down(activation(Up(norm_2 x))); side by side (both norms of the same x) if is_parallel.
// Without panels of `up` the second half is x + Experts(norm_2 x) if there are any, else there is none.
struct Layer {
    Norm attention_norm, mlp_norm;
    Dense query_key_value, output, up, down;
    int32_t activation, is_parallel;
    int32_t num_heads, num_kv_heads, head_size;
    float scale;
    int64_t window;  // tokens that a row sees; 0: all
    // Where heads lie in a row of the first product: head h begins at `at` + h * stride.
    int64_t query_at, key_at, value_at, query_stride, kv_stride;
    const float* query_norm;  // [head_size]: root mean square norm of each head before it is rotated; null: none
    const float* key_norm;
    float head_norm_eps;
    const Routed* routed;  // null: no experts
};

struct Step {
    int64_t num_rows;
    const float* cos;  // [num_angles, half]: of each position
    const float* sin;
    int64_t num_angles, half;
    const int64_t* slots;      // [num_rows]
    const int64_t* requests;   // [num_rows]
    const int64_t* positions;  // [num_rows]
    const int64_t* block_tables;
    int64_t num_tables, table_width;
    // Rows that go on after a last layer has written the keys and values of all.
    int64_t num_kept;
    const int64_t* kept;  // [num_kept], ascending
    const int64_t* kept_requests;
    const int64_t* kept_positions;
};

}  // namespace tripod
