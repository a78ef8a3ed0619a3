// What a sparse layer is, and the half of a fused layer that it makes.
//
// Expert, Experts, Router (experts.py) and Routed (fused_layer.py) are filled by Python, field by field in this order: keep the two alike.
#pragma once

#include "layer.hpp"
#include "operand.hpp"
#include "pool.hpp"

namespace tripod {

struct Expert {
    const void* up;      // gate and up together
    const void* factor;  // what their product is multiplied by; null: nothing
    const void* down;
};

struct Experts {
    int32_t format, group;
    int64_t num_experts, hidden_size, size;
    const Expert* experts;
};

struct Router {
    int64_t num_experts, top_k;
    int32_t is_sigmoid, is_normalized;
    float scale;
    const float* bias;  // [E]: on the choice alone; null: none
};

// A router and the experts that it chooses from.
struct Routed {
    const float* weight;  // [E, D]
    Router router;
    const Experts* experts;
};

// The assignments of rows to experts, in the order of the experts.
struct Assignments {
    int64_t num_experts, num_rows, top_k;
    int64_t* starts;  // [E + 1]
    int64_t* rows;    // [rows k]: of each
    int64_t* places;  // [rows, k]: where each choice of a row went

    Assignments(Carver& carver, int64_t num_experts, int64_t num_rows, int64_t top_k);
    int64_t size() const { return num_rows * top_k; }
    int64_t count(int64_t expert) const { return starts[expert + 1] - starts[expert]; }
    void fill(const int64_t* expert_ids) const;  // [rows, k]
};

// Rows through the experts to which they are assigned, on all threads of a region.
class ExpertRows {
  public:
    ExpertRows(Carver& carver, const Experts& experts, const Assignments& assignments);

    // out [rows, D] += the sum of what a row's experts make of x [rows, D], times factors [rows, k]. The assignments are there, and are read
    // by every thread; so are factors and x.
    void run(const float* x, const float* factors, float* out, int thread, int count) const;

  private:
    Weights weights(int64_t outputs, int64_t inputs, const void* panels) const;
    Weights up(const void* panels) const;
    Weights factor(const void* panels) const;
    Weights down(const void* panels) const;
    template <class Body> void for_units(int64_t units, int thread, int count, Body&& body) const;
    int64_t cost(int64_t expert) const;
    void add_up(int64_t row, const float* factors, float* out) const;

    const Experts& experts_;
    const Assignments& assignments_;
    const Operand input_, hidden_;
    float* const product_;     // [A, F]: where the hidden operand does not take rows itself
    float* const multiplier_;  // [A, F]: of a double gate
    float* const result_;      // [A, D]
};

// The sparse half of a fused layer: x [rows, D] += Experts(Norm(x)).
class SparseHalf {
  public:
    SparseHalf(Carver& carver, const Norm& norm, const Routed& routed, int64_t rows);
    void run(float* x, int thread, int count) const;

  private:
    void route(const float* x, Range rows) const;

    const Norm& norm_;
    const Routed& routed_;
    const int64_t num_rows_;
    float* const normed_;        // [rows, D]
    float* const logits_;        // [rows, E]
    float* const gates_;         // [rows, E]
    float* const factors_;       // [rows, k]
    int64_t* const expert_ids_;  // [rows, k]
    const Assignments assignments_;
    const ExpertRows experts_;
};

}  // namespace tripod
