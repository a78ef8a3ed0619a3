#include "linear.hpp"

#include <algorithm>

#include "epilogue.hpp"
#include "pool.hpp"
#include "rows.hpp"
#include "tiles.hpp"

namespace tripod {
namespace {

constexpr int64_t kBlockRows = 252;       // activations that meet a chunk of weights while it is in the second-level cache
constexpr int64_t kChunkSteps = 384;      // 96 KiB of weights
constexpr int64_t kGroupChunkInputs = 768;  // int4: k values of a chunk
constexpr int64_t kArgmaxPanels = 4;      // of a block of rows, whose products (252 KiB) stay in the second-level cache
constexpr int64_t kAhead = 4096;          // bytes; how far a single tile, which only waits for memory, looks ahead

template <class Step>
void run_dense(int rows, const Tile& tile) {
    switch (rows) {
        case 1: return dense_tile<Step, 1>(tile);
        case 2: return dense_tile<Step, 2>(tile);
#if defined(__AVX2__)
        case 3: return dense_tile<Step, 3>(tile);
        case 4: return dense_tile<Step, 4>(tile);
#endif
#if defined(__AVX512F__)
        case 5: return dense_tile<Step, 5>(tile);
        case 6: return dense_tile<Step, 6>(tile);
#endif
    }
}

void run_tile(Format format, int rows, const Tile& tile) {
    switch (format) {
        case Format::kF32: return run_dense<F32Step>(rows, tile);
        case Format::kBf16: return run_dense<Bf16Step>(rows, tile);
        case Format::kInt8: return run_dense<Int8Step>(rows, tile);
        case Format::kInt4:
            switch (rows) {
                case 1: return group_tile<1>(tile);
#if defined(__AVX2__)
                case 2: return group_tile<2>(tile);
#endif
#if defined(__AVX512F__)
                case 3: return group_tile<3>(tile);
#endif
            }
    }
}

// The sums of one panel for a block of rows, over all of k: sums[row][column], float, or int32 for int8.
//
// k goes in chunks, so that the tiles after the first find their weights in the second-level cache. Meanwhile the next chunk (panels and
// chunks lie in the order of their use) is prefetched, spread over all tiles: the memory is never idle, and never asked for more at once.
void panel_sums(const Weights& weights, const Inputs& inputs, int64_t panel, int64_t first_row, int64_t rows, uint8_t* sums) {
    const bool is_grouped = weights.format == Format::kInt4;
    const int64_t max_tile = is_grouped ? kGroupTileRows : kTileRows;
    const int64_t num_tiles = ceil_div(rows, max_tile);
    const int64_t groups_per_chunk = is_grouped ? std::max<int64_t>(1, kGroupChunkInputs / weights.group) : 1;
    const int64_t chunk_steps = is_grouped ? groups_per_chunk * weights.group / 8 : kChunkSteps;
    const int64_t x_bytes_per_step = is_grouped ? 8 : 4;
    const uint8_t* at = weights.panels + panel * weights.panel_bytes() + (weights.format == Format::kInt8 ? kPanel * 4 : 0);

    Tile tile{};
    tile.x_stride = inputs.stride;
    tile.group = weights.group;
    for (int64_t step = 0; step < weights.num_steps(); step += chunk_steps) {
        tile.steps = std::min(chunk_steps, weights.num_steps() - step);
        tile.weights = at;
        tile.is_first = step == 0;
        const int64_t first_group = is_grouped ? step * 8 / weights.group : 0;
        const int64_t chunk_bytes = tile.steps * kStepBytes + (is_grouped ? tile.steps * 8 / weights.group * kPanel * 2 : 0);
        tile.offset_stride = is_grouped ? weights.num_groups() : 1;
        const int64_t prefetches = std::max<int64_t>(1, tile.steps / kStepsPerPrefetch);
        const int64_t lines = ceil_div(chunk_bytes / 64, prefetches * num_tiles);
        for (int64_t index = 0; index < num_tiles; ++index) {
            const int64_t begin = rows * index / num_tiles, end = rows * (index + 1) / num_tiles, row = first_row + begin;
            tile.x = inputs.values + row * inputs.stride + step * x_bytes_per_step;
            tile.sums = sums + begin * kStepBytes;
            tile.offsets = inputs.offsets == nullptr ? nullptr : inputs.offsets + row * tile.offset_stride + first_group;
            tile.scales = inputs.scales == nullptr ? nullptr : inputs.scales + row * tile.offset_stride + first_group;
            const int64_t ahead = index * prefetches * lines * 64;
            tile.lines = ahead < chunk_bytes ? static_cast<int>(lines) : 0;
            tile.ahead = at + (num_tiles == 1 ? kAhead : chunk_bytes + ahead);
            run_tile(weights.format, static_cast<int>(end - begin), tile);
        }
        at += chunk_bytes;
    }
}

// The finished sums of 16 columns as floats.
TRIPOD_INLINE F16 finished(const Weights& weights, const Inputs& inputs, const uint8_t* panel, const uint8_t* sums, int64_t row, int vector) {
    if (weights.format != Format::kInt8) return load(reinterpret_cast<const float*>(sums) + vector * kLanes);
    const F16 scale = mul(load(reinterpret_cast<const float*>(panel) + vector * kLanes), splat(inputs.scales[row]));
    return mul(to_float(iadd(iload(sums + vector * 64), isplat(inputs.offsets[row]))), scale);
}

template <Activation kActivation>
void finish(const Weights& weights, const Inputs& inputs, const Output& output, int64_t unit, int64_t first_row, int64_t rows,
            const uint8_t* sums) {
    constexpr int kPanels = kActivation == Activation::kSiluMul ? 2 : 1;
    const int64_t first_column = unit * kPanel;
    const uint8_t* const panel = weights.panels + unit * kPanels * weights.panel_bytes();
    const float* const bias = output.bias == nullptr ? nullptr : output.bias + unit * kPanels * kPanel;
    for (int64_t i = 0; i < rows; ++i) {
        const int64_t row = first_row + i;
        const uint8_t* const own = sums + i * kStepBytes;
        for (int vector = 0; vector < kVectors; ++vector) {
            const int64_t column = first_column + vector * kLanes, left = output.num_columns - column;
            if (left <= 0) break;
            F16 y = finished(weights, inputs, panel, own, row, vector);
            if (bias != nullptr) y = add(y, load_row(Type::kF32, bias, vector * kLanes, left));
            if constexpr (kPanels == 2) {
                F16 up = finished(weights, inputs, panel + weights.panel_bytes(), own + kBlockRows * kStepBytes, row, vector);
                if (bias != nullptr) up = add(up, load_row(Type::kF32, bias, kPanel + vector * kLanes, left));
                y = mul(silu(y), up);
                if (output.factor != nullptr) y = mul(y, load_row(Type::kF32, output.factor, row * output.stride + column, left));
            } else {
                y = activate(kActivation, y);
            }
            if (output.residual != nullptr) y = add(y, load_row(output.type, output.residual, row * output.stride + column, left));
            store_row(output.type, output.out, row * output.stride + column, left, y);
        }
    }
}

// A thread's share of a product: rows are cut into blocks, blocks into units of columns. body(rows, units), in the order of both.
template <class Body>
void for_shares(int64_t units, int64_t rows, int thread, int num_threads, Body&& body) {
    const int64_t blocks = ceil_div(rows, kBlockRows);
    const Range mine = share(blocks * units, thread, num_threads);
    for (int64_t piece = mine.begin; piece < mine.end;) {
        const int64_t block = piece / units, begin = piece - block * units, end = std::min(units, begin + mine.end - piece);
        body(share(rows, static_cast<int>(block), static_cast<int>(blocks)), Range{begin, end});
        piece += end - begin;
    }
}

}  // namespace

void linear_units(const Weights& weights, const Inputs& inputs, const Output& output, int64_t first_row, int64_t rows, int64_t begin,
                  int64_t end) {
    const int64_t per_unit = panels_per_unit(output);
    auto* const sums = static_cast<uint8_t*>(scratch(Scratch::kPanel, 2 * kBlockRows * kStepBytes));
    for (int64_t unit = begin; unit < end; ++unit) {
        for (int64_t i = 0; i < per_unit; ++i)
            panel_sums(weights, inputs, unit * per_unit + i, first_row, rows, sums + i * kBlockRows * kStepBytes);
        switch (output.activation) {
            case Activation::kNone: finish<Activation::kNone>(weights, inputs, output, unit, first_row, rows, sums); break;
            case Activation::kGeluErf: finish<Activation::kGeluErf>(weights, inputs, output, unit, first_row, rows, sums); break;
            case Activation::kGeluTanh: finish<Activation::kGeluTanh>(weights, inputs, output, unit, first_row, rows, sums); break;
            case Activation::kSilu: finish<Activation::kSilu>(weights, inputs, output, unit, first_row, rows, sums); break;
            case Activation::kSiluMul: finish<Activation::kSiluMul>(weights, inputs, output, unit, first_row, rows, sums); break;
        }
    }
}

void linear_share(const Weights& weights, const Inputs& inputs, const Output& output, int64_t rows, int thread, int num_threads) {
    for_shares(weights.num_panels() / panels_per_unit(output), rows, thread, num_threads, [&](Range own, Range units) {
        linear_units(weights, inputs, output, own.begin, own.end - own.begin, units.begin, units.end);
    });
}

}  // namespace tripod

using namespace tripod;

namespace {

// The rows of a call in the form that the format reads, made by all threads of a region.
struct CallInputs {
    const Weights& weights;
    const void* x;
    Type type;
    int64_t rows;
    bool is_ready = weights.format == Format::kF32 && type == Type::kF32;  // f32 rows are read where they lie
    InputLayout layout = input_layout(weights, rows);
    void* memory = is_ready ? nullptr : scratch(Scratch::kInput, layout.num_bytes);

    Inputs inputs() const {
        return is_ready ? Inputs{static_cast<const uint8_t*>(x), weights.num_inputs * 4, nullptr, nullptr} : inputs_in(layout, memory);
    }
    void convert(int thread, int count) const {
        if (is_ready) return;
        const Range mine = share(rows, thread, count);
        for (int64_t row = mine.begin; row < mine.end; ++row) {
            const auto* from = static_cast<const uint8_t*>(x) + row * weights.num_inputs * bytes_of(type);
            convert_row(weights, layout, memory, row, as_floats(type, from, weights.num_inputs));
        }
        barrier();
    }
};

}  // namespace

TRIPOD_API void tripod_linear(int32_t format, int32_t group, int64_t num_outputs, int64_t num_inputs, const void* panels, const void* x,
                              int32_t x_type, int64_t rows, const float* bias, int32_t activation, const void* residual, void* out,
                              int32_t out_type, int64_t num_columns) {
    const Weights weights{static_cast<Format>(format), group, num_outputs, num_inputs, static_cast<const uint8_t*>(panels)};
    const CallInputs call{weights, x, static_cast<Type>(x_type), rows};
    const Inputs inputs = call.inputs();
    const Output output{bias,     static_cast<Activation>(activation), static_cast<Type>(out_type), residual, out, num_columns,
                        num_columns, nullptr};
    parallel([&](int thread, int count) {
        call.convert(thread, count);
        linear_share(weights, inputs, output, rows, thread, count);
    });
}

// The first of the largest numbers of each row of x w^T. The product is looked through piece by piece, while a piece is in the
// second-level cache: for a vocabulary, writing all of it to memory and reading it again takes a good part of the time.
TRIPOD_API void tripod_linear_argmax(int32_t format, int32_t group, int64_t num_outputs, int64_t num_inputs, const void* panels, const void* x,
                                     int32_t x_type, int64_t rows, int64_t num_columns, int64_t* places, float* values) {
    const Weights weights{static_cast<Format>(format), group, num_outputs, num_inputs, static_cast<const uint8_t*>(panels)};
    const CallInputs call{weights, x, static_cast<Type>(x_type), rows};
    const Inputs inputs = call.inputs();
    Largest* found = nullptr;  // [thread][row], in the first thread's memory
    parallel([&](int thread, int count) {
        if (thread == 0) found = static_cast<Largest*>(scratch(Scratch::kAttention, rows * count * int64_t{sizeof(Largest)}));
        call.convert(thread, count);
        barrier();
        Largest* const mine = found + thread * rows;
        std::fill_n(mine, rows, Largest{-__builtin_inff(), -1});
        auto* const logits = static_cast<float*>(scratch(Scratch::kRow, kBlockRows * kArgmaxPanels * kPanel * int64_t{sizeof(float)}));
        for_shares(weights.num_panels(), rows, thread, count, [&](Range own, Range panels_of_mine) {
            for (int64_t panel = panels_of_mine.begin; panel < panels_of_mine.end; panel += kArgmaxPanels) {
                const int64_t end = std::min(panel + kArgmaxPanels, panels_of_mine.end), first = panel * kPanel;
                const int64_t size = std::min(end * kPanel, num_columns) - first;
                // `linear_units` writes row r, column c at r * stride + c: so that these rows and columns come to the beginning of `logits`.
                float* const out = logits - own.begin * kArgmaxPanels * kPanel - first;
                const Output output{nullptr, Activation::kNone, Type::kF32, nullptr, out, kArgmaxPanels * kPanel, num_columns};
                linear_units(weights, inputs, output, own.begin, own.end - own.begin, panel, end);
                for (int64_t row = own.begin; row < own.end; ++row) {
                    if (mine[row].at < 0) mine[row].at = first;
                    mine[row] = argmax(out + row * kArgmaxPanels * kPanel + first, size, mine[row], first);
                }
            }
        });
        barrier();
        if (thread != 0) return;
        for (int64_t row = 0; row < rows; ++row) {
            const Largest best = largest_of_threads(found, rows, count, row);
            places[row] = best.at;
            values[row] = best.value;
        }
    });
}
