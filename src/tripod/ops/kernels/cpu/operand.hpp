// Rows on their way into a product, and the memory that they lie in.
#pragma once

#include "linear.hpp"

namespace tripod {

// Rows that a product will read, in the form of its format.
struct Operand {
    Weights weights;
    InputLayout layout;
    uint8_t* memory;

    Inputs inputs() const { return inputs_in(layout, memory); }
    void convert(int64_t row, const float* x) const { convert_row(weights, layout, memory, row, x); }

    // Whether the product before may write its rows here itself: they need no scales, and no zeros at their ends.
    bool takes_rows() const {
        return weights.format <= Format::kBf16 && layout.stride == weights.num_inputs * bytes_of(static_cast<Type>(weights.format));
    }
};

// Takes one allocation apart. First with no memory, to learn how much it needs.
class Carver {
  public:
    explicit Carver(void* memory) : memory_(static_cast<uint8_t*>(memory)) {}
    int64_t taken() const { return taken_; }
    uint8_t* take(int64_t num_bytes) {
        uint8_t* const part = memory_ + taken_;
        taken_ += ceil_div(num_bytes, 4096) * 4096;
        return part;
    }
    float* floats(int64_t count) { return reinterpret_cast<float*>(take(count * 4)); }
    int64_t* numbers(int64_t count) { return reinterpret_cast<int64_t*>(take(count * 8)); }
    Operand operand(const Weights& weights, int64_t rows) {
        const InputLayout layout = input_layout(weights, rows);
        return {weights, layout, take(layout.num_bytes)};
    }

  private:
    uint8_t* memory_;
    int64_t taken_ = 0;
};

}  // namespace tripod
