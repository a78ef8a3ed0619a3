// A sparse layer: who goes to which expert, and each row through its own, in one parallel region over all experts.
//
// A row's sums are made as in a dense layer, in one order, and its experts are added in the order in which it chose them: its bits do not
// depend on the rows beside it.
#include <algorithm>
#include <cmath>
#include <vector>

#include "epilogue.hpp"
#include "operand.hpp"
#include "pool.hpp"

namespace tripod {
namespace {

constexpr int64_t kRowsOfWaiting = 8;  // a product of few rows waits for its weights as long as one of so many computes
constexpr int64_t kMostRows = 252;     // that `linear_units` takes

}  // namespace

// Filled by Python (experts.py), field by field in this order: keep the two alike.
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

namespace {

// The assignments of rows to experts, in the order of the experts.
struct Assignments {
    std::vector<int64_t> starts;  // [E + 1]
    std::vector<int64_t> rows;    // [A]: of each
    std::vector<int64_t> places;  // [rows, k]: where each choice of a row went

    Assignments(const int64_t* expert_ids, int64_t num_rows, int64_t top_k, int64_t num_experts)
        : starts(num_experts + 1), rows(num_rows * top_k), places(num_rows * top_k) {
        for (int64_t i = 0; i < num_rows * top_k; ++i) ++starts[expert_ids[i] + 1];
        for (int64_t expert = 0; expert < num_experts; ++expert) starts[expert + 1] += starts[expert];
        std::vector<int64_t> next(starts.begin(), starts.end() - 1);
        for (int64_t i = 0; i < num_rows * top_k; ++i) {
            places[i] = next[expert_ids[i]]++;
            rows[places[i]] = i / top_k;
        }
    }

    int64_t count(int64_t expert) const { return starts[expert + 1] - starts[expert]; }
};

class Region {
  public:
    Region(const Experts& experts, const Assignments& assignments, const float* x, int64_t num_rows, int64_t top_k, const float* factors,
           float* out, Carver& carver)
        : experts_(experts), assignments_(assignments), x_(x), num_rows_(num_rows), top_k_(top_k), factors_(factors), out_(out),
          num_assignments_(num_rows * top_k), input_(carver.operand(up(nullptr), num_assignments_)),
          hidden_(carver.operand(down(nullptr), num_assignments_)),
          product_(hidden_.takes_rows() ? nullptr : carver.floats(num_assignments_ * experts.size)),
          multiplier_(experts.experts[0].factor == nullptr ? nullptr : carver.floats(num_assignments_ * experts.size)),
          result_(carver.floats(num_assignments_ * experts.hidden_size)) {}

    void run(int thread, int count) const {
        const Range mine = share(num_assignments_, thread, count);
        for (int64_t i = mine.begin; i < mine.end; ++i) input_.convert(i, x_ + assignments_.rows[i] * experts_.hidden_size);
        barrier();
        for_units(ceil_div(experts_.size, kPanel), thread, count, [&](int64_t expert, int64_t first_row, int64_t rows, Range units) {
            const Expert& own = experts_.experts[expert];
            const Inputs inputs = input_.inputs();
            if (multiplier_ != nullptr) {
                const Output output{nullptr, Activation::kNone, Type::kF32, nullptr, multiplier_, experts_.size, experts_.size, nullptr};
                linear_units(factor(own.factor), inputs, output, first_row, rows, units.begin, units.end);
            }
            const bool is_direct = hidden_.takes_rows();
            const Output output{nullptr,
                                Activation::kSiluMul,
                                is_direct ? static_cast<Type>(experts_.format) : Type::kF32,
                                nullptr,
                                is_direct ? static_cast<void*>(hidden_.memory) : product_,
                                experts_.size,
                                experts_.size,
                                multiplier_};
            linear_units(up(own.up), inputs, output, first_row, rows, units.begin, units.end);
        });
        barrier();
        if (!hidden_.takes_rows()) {
            for (int64_t i = mine.begin; i < mine.end; ++i) hidden_.convert(i, product_ + i * experts_.size);
            barrier();
        }
        for_units(ceil_div(experts_.hidden_size, kPanel), thread, count, [&](int64_t expert, int64_t first_row, int64_t rows, Range units) {
            const Output output{nullptr, Activation::kNone, Type::kF32, nullptr, result_, experts_.hidden_size, experts_.hidden_size, nullptr};
            linear_units(down(experts_.experts[expert].down), hidden_.inputs(), output, first_row, rows, units.begin, units.end);
        });
        barrier();
        const Range own_rows = share(num_rows_, thread, count);
        for (int64_t row = own_rows.begin; row < own_rows.end; ++row) add_up(row);
    }

  private:
    Weights weights(int64_t outputs, int64_t inputs, const void* panels) const {
        return {static_cast<Format>(experts_.format), experts_.group, outputs, inputs, static_cast<const uint8_t*>(panels)};
    }
    int64_t padded(int64_t outputs) const { return ceil_div(outputs, kPanel) * kPanel; }
    Weights up(const void* panels) const { return weights(2 * padded(experts_.size), experts_.hidden_size, panels); }
    Weights factor(const void* panels) const { return weights(padded(experts_.size), experts_.hidden_size, panels); }
    Weights down(const void* panels) const { return weights(padded(experts_.hidden_size), experts_.size, panels); }

    // The share of one thread in the units of all experts that have rows, cut by what they cost: body(expert, first row, rows, units).
    template <class Body>
    void for_units(int64_t units, int thread, int count, Body&& body) const {
        int64_t total = 0;
        for (int64_t expert = 0; expert < experts_.num_experts; ++expert) total += units * cost(expert);
        const Range mine = share(total, thread, count);
        int64_t base = 0;
        for (int64_t expert = 0; expert < experts_.num_experts; ++expert) {
            const int64_t each = cost(expert), rows = assignments_.count(expert);
            if (each == 0) continue;
            // A unit is its whose share its beginning lies in.
            const int64_t begin = std::clamp<int64_t>(ceil_div(std::max<int64_t>(mine.begin - base, 0), each), 0, units);
            const int64_t end = std::clamp<int64_t>(ceil_div(std::max<int64_t>(mine.end - base, 0), each), 0, units);
            base += units * each;
            if (begin >= end) continue;
            const int64_t blocks = ceil_div(rows, kMostRows);
            for (int64_t block = 0; block < blocks; ++block) {
                const Range part = share(rows, static_cast<int>(block), static_cast<int>(blocks));
                body(expert, assignments_.starts[expert] + part.begin, part.end - part.begin, Range{begin, end});
            }
        }
    }

    int64_t cost(int64_t expert) const {
        const int64_t rows = assignments_.count(expert);
        return rows == 0 ? 0 : rows + kRowsOfWaiting;
    }

    void add_up(int64_t row) const {
        float* const to = out_ + row * experts_.hidden_size;
        for (int64_t at = 0; at < experts_.hidden_size; at += kLanes) {
            const int64_t left = experts_.hidden_size - at;
            F16 total = zeros();
            for (int64_t choice = row * top_k_; choice < (row + 1) * top_k_; ++choice)
                total = fma(splat(factors_[choice]), load_row(Type::kF32, result_ + assignments_.places[choice] * experts_.hidden_size, at, left),
                            total);
            store_row(Type::kF32, to, at, left, add(load_row(Type::kF32, to, at, left), total));
        }
    }

    const Experts& experts_;
    const Assignments& assignments_;
    const float* const x_;
    const int64_t num_rows_, top_k_;
    const float* const factors_;
    float* const out_;
    const int64_t num_assignments_;
    const Operand input_, hidden_;
    float* const product_;     // [A, F]: where the hidden operand does not take rows itself
    float* const multiplier_;  // [A, F]: of a double gate
    float* const result_;      // [A, D]
};

// One row's gates, in place of its logits' copy, and its best experts, the first of equals.
void route_row(const Router& router, const float* logits, float* gates, int64_t* expert_ids, float* weights) {
    const int64_t count = router.num_experts;
    if (router.is_sigmoid) {
        for (int64_t i = 0; i < count; ++i) gates[i] = 1.0f / (1.0f + std::exp(-logits[i]));
    } else {
        const float most = *std::max_element(logits, logits + count);
        float total = 0.0f;
        for (int64_t i = 0; i < count; ++i) total += gates[i] = std::exp(logits[i] - most);
        for (int64_t i = 0; i < count; ++i) gates[i] /= total;
    }
    auto* const left = static_cast<float*>(scratch(Scratch::kRow, count * 4));
    for (int64_t i = 0; i < count; ++i) left[i] = gates[i] + (router.bias == nullptr ? 0.0f : router.bias[i]);
    float chosen = 0.0f;
    for (int64_t choice = 0; choice < router.top_k; ++choice) {
        const int64_t best = std::max_element(left, left + count) - left;
        expert_ids[choice] = best;
        chosen += weights[choice] = gates[best];
        left[best] = -__builtin_inff();
    }
    const float factor = (router.is_normalized ? 1.0f / chosen : 1.0f) * router.scale;
    for (int64_t choice = 0; choice < router.top_k; ++choice) weights[choice] *= factor;
}

}  // namespace
}  // namespace tripod

using namespace tripod;

// logits, gates: [rows, E]; expert_ids, weights: [rows, k].
TRIPOD_API void tripod_route(const Router* router, const float* logits, int64_t rows, float* gates, int64_t* expert_ids, float* weights) {
    parallel_for(rows, [&](int64_t begin, int64_t end, int) {
        for (int64_t row = begin; row < end; ++row)
            route_row(*router, logits + row * router->num_experts, gates + row * router->num_experts, expert_ids + row * router->top_k,
                      weights + row * router->top_k);
    });
}

// out [rows, D] += what the experts make of x [rows, D]. expert_ids, weights: [rows, k].
TRIPOD_API void tripod_experts(const Experts* experts, const float* x, int64_t rows, const int64_t* expert_ids, const float* weights,
                               int64_t top_k, float* out) {
    const Assignments assignments(expert_ids, rows, top_k, experts->num_experts);
    Carver measure(nullptr);
    (void)Region(*experts, assignments, x, rows, top_k, weights, out, measure);
    Carver carver(scratch(Scratch::kInput, measure.taken()));
    const Region region(*experts, assignments, x, rows, top_k, weights, out, carver);
    parallel([&](int thread, int count) { region.run(thread, count); });
}
