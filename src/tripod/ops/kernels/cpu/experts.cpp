// A sparse layer: who goes to which expert, and each row through its own, in one parallel region over all experts.
//
// A row's sums are made as in a dense layer, in one order, and its experts are added in the order in which it chose them: its bits do not
// depend on the rows beside it.
#include "experts.hpp"

#include <algorithm>
#include <cmath>

#include "epilogue.hpp"
#include "rows.hpp"

namespace tripod {
namespace {

constexpr int64_t kRowsOfWaiting = 8;  // a product of few rows waits for its weights as long as one of so many computes
constexpr int64_t kMostRows = 252;     // that `linear_units` takes
constexpr int kScores = 4;             // of a row at a time

int64_t padded(int64_t outputs) { return ceil_div(outputs, kPanel) * kPanel; }

// out[n] = x . weight[n] for rows of a plain matrix: a panel of 64 rows, as a product has them, would be mostly padding.
void score_row(const float* x, const float* weight, int64_t num_outputs, int64_t size, float* out) {
    for (int64_t first = 0; first < num_outputs; first += kScores) {
        const int64_t count = std::min<int64_t>(kScores, num_outputs - first);
        F16 sums[kScores] = {zeros(), zeros(), zeros(), zeros()};
        for (int64_t at = 0; at < size; at += kLanes) {
            const F16 own = load_lanes(x + at, size - at);
            for (int64_t i = 0; i < count; ++i) sums[i] = fma(own, load_lanes(weight + (first + i) * size + at, size - at), sums[i]);
        }
        for (int64_t i = 0; i < count; ++i) out[first + i] = sum(sums[i]);
    }
}

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

Assignments::Assignments(Carver& carver, int64_t num_experts, int64_t num_rows, int64_t top_k)
    : num_experts(num_experts), num_rows(num_rows), top_k(top_k), starts(carver.numbers(num_experts + 1)),
      rows(carver.numbers(num_rows * top_k)), places(carver.numbers(num_rows * top_k)) {}

void Assignments::fill(const int64_t* expert_ids) const {
    std::fill(starts, starts + num_experts + 1, 0);
    for (int64_t i = 0; i < size(); ++i) ++starts[expert_ids[i] + 1];
    for (int64_t expert = 0; expert < num_experts; ++expert) starts[expert + 1] += starts[expert];
    for (int64_t i = 0; i < size(); ++i) {  // a start serves as the next free place, and so becomes the next expert's
        places[i] = starts[expert_ids[i]]++;
        rows[places[i]] = i / top_k;
    }
    for (int64_t expert = num_experts; expert > 0; --expert) starts[expert] = starts[expert - 1];
    starts[0] = 0;
}

ExpertRows::ExpertRows(Carver& carver, const Experts& experts, const Assignments& assignments)
    : experts_(experts), assignments_(assignments), input_(carver.operand(up(nullptr), assignments.size())),
      hidden_(carver.operand(down(nullptr), assignments.size())),
      product_(hidden_.takes_rows() ? nullptr : carver.floats(assignments.size() * experts.size)),
      multiplier_(experts.experts[0].factor == nullptr ? nullptr : carver.floats(assignments.size() * experts.size)),
      result_(carver.floats(assignments.size() * experts.hidden_size)) {}

void ExpertRows::run(const float* x, const float* factors, float* out, int thread, int count) const {
    const Range mine = share(assignments_.size(), thread, count);
    for (int64_t i = mine.begin; i < mine.end; ++i) input_.convert(i, x + assignments_.rows[i] * experts_.hidden_size);
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
    const Range own_rows = share(assignments_.num_rows, thread, count);
    for (int64_t row = own_rows.begin; row < own_rows.end; ++row) add_up(row, factors, out);
}

Weights ExpertRows::weights(int64_t outputs, int64_t inputs, const void* panels) const {
    return {static_cast<Format>(experts_.format), experts_.group, outputs, inputs, static_cast<const uint8_t*>(panels)};
}

Weights ExpertRows::up(const void* panels) const { return weights(2 * padded(experts_.size), experts_.hidden_size, panels); }
Weights ExpertRows::factor(const void* panels) const { return weights(padded(experts_.size), experts_.hidden_size, panels); }
Weights ExpertRows::down(const void* panels) const { return weights(padded(experts_.hidden_size), experts_.size, panels); }

// The share of one thread in the units of all experts that have rows, cut by what they cost: body(expert, first row, rows, units).
template <class Body> void ExpertRows::for_units(int64_t units, int thread, int count, Body&& body) const {
    int64_t total = 0;
    for (int64_t expert = 0; expert < experts_.num_experts; ++expert) total += units * cost(expert);
    const Range mine = share(total, thread, count);
    int64_t base = 0;
    for (int64_t expert = 0; expert < experts_.num_experts; ++expert) {
        const int64_t each = cost(expert);
        if (each == 0) continue;
        // A unit is its whose share its beginning lies in.
        const int64_t begin = std::clamp<int64_t>(ceil_div(std::max<int64_t>(mine.begin - base, 0), each), 0, units);
        const int64_t end = std::clamp<int64_t>(ceil_div(std::max<int64_t>(mine.end - base, 0), each), 0, units);
        base += units * each;
        if (begin >= end) continue;
        const int64_t rows = assignments_.count(expert), blocks = ceil_div(rows, kMostRows);
        for (int64_t block = 0; block < blocks; ++block) {
            const Range part = share(rows, static_cast<int>(block), static_cast<int>(blocks));
            body(expert, assignments_.starts[expert] + part.begin, part.end - part.begin, Range{begin, end});
        }
    }
}

int64_t ExpertRows::cost(int64_t expert) const {
    const int64_t rows = assignments_.count(expert);
    return rows == 0 ? 0 : rows + kRowsOfWaiting;
}

void ExpertRows::add_up(int64_t row, const float* factors, float* out) const {
    float* const to = out + row * experts_.hidden_size;
    for (int64_t at = 0; at < experts_.hidden_size; at += kLanes) {
        const int64_t left = experts_.hidden_size - at;
        F16 total = zeros();
        for (int64_t choice = row * assignments_.top_k; choice < (row + 1) * assignments_.top_k; ++choice)
            total = fma(splat(factors[choice]), load_row(Type::kF32, result_ + assignments_.places[choice] * experts_.hidden_size, at, left),
                        total);
        store_row(Type::kF32, to, at, left, add(load_row(Type::kF32, to, at, left), total));
    }
}

SparseHalf::SparseHalf(Carver& carver, const Norm& norm, const Routed& routed, int64_t rows)
    : norm_(norm), routed_(routed), num_rows_(rows), normed_(carver.floats(rows * routed.experts->hidden_size)),
      logits_(carver.floats(rows * routed.router.num_experts)), gates_(carver.floats(rows * routed.router.num_experts)),
      factors_(carver.floats(rows * routed.router.top_k)), expert_ids_(carver.numbers(rows * routed.router.top_k)),
      assignments_(carver, routed.router.num_experts, rows, routed.router.top_k), experts_(carver, *routed.experts, assignments_) {}

void SparseHalf::run(float* x, int thread, int count) const {
    route(x, share(num_rows_, thread, count));
    barrier();
    if (thread == 0) assignments_.fill(expert_ids_);
    barrier();
    experts_.run(normed_, factors_, x, thread, count);
}

void SparseHalf::route(const float* x, Range rows) const {
    const int64_t size = routed_.experts->hidden_size, num_experts = routed_.router.num_experts, top_k = routed_.router.top_k;
    for (int64_t row = rows.begin; row < rows.end; ++row) {
        norm_row(norm_, x + row * size, normed_ + row * size, size);
        score_row(normed_ + row * size, routed_.weight, num_experts, size, logits_ + row * num_experts);
        route_row(routed_.router, logits_ + row * num_experts, gates_ + row * num_experts, expert_ids_ + row * top_k,
                  factors_ + row * top_k);
    }
}

}  // namespace tripod

using namespace tripod;

// out [rows, outputs] = x [rows, size] times the transpose of weight [outputs, size].
TRIPOD_API void tripod_score(const float* x, int64_t rows, const float* weight, int64_t num_outputs, int64_t size, float* out) {
    parallel_for(rows, [&](int64_t begin, int64_t end, int) {
        for (int64_t row = begin; row < end; ++row) score_row(x + row * size, weight, num_outputs, size, out + row * num_outputs);
    });
}

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
    Carver measure(nullptr);
    (void)ExpertRows(measure, *experts, Assignments(measure, experts->num_experts, rows, top_k));
    Carver carver(scratch(Scratch::kInput, measure.taken()));
    const Assignments assignments(carver, experts->num_experts, rows, top_k);
    assignments.fill(expert_ids);
    const ExpertRows expert_rows(carver, *experts, assignments);
    parallel([&](int thread, int count) { expert_rows.run(x, weights, out, thread, count); });
}
