#include "layer.hpp"

#include <algorithm>
#include <cstring>
#include <optional>

#include "epilogue.hpp"
#include "experts.hpp"
#include "operand.hpp"
#include "pool.hpp"

namespace tripod {
namespace {

// The rows that come out of a layer.
struct Rows {
    int64_t count;
    const int64_t* in_step;  // null: all, in their order
    const int64_t* requests;
    const int64_t* positions;
    int64_t from(int64_t row) const { return in_step == nullptr ? row : in_step[row]; }
};

struct Workspace {
    Operand normed, mlp_normed, attended, hidden;
    float* query_key_value;  // [rows, columns of the first product]
    float* seen;             // [rows, H K]
    float* activated;        // [rows, F]: where the hidden operand does not take rows itself
    std::optional<SparseHalf> sparse;

    Workspace(Carver& carver, const Layer& layer, int64_t all_rows, int64_t rows)
        : normed(carver.operand(layer.query_key_value.weights(), all_rows)),
          mlp_normed(carver.operand(layer.up.weights(), rows)),
          attended(carver.operand(layer.output.weights(), rows)),
          hidden(carver.operand(layer.down.weights(), rows)),
          query_key_value(reinterpret_cast<float*>(carver.take(all_rows * layer.query_key_value.num_columns * 4))),
          seen(attended.takes_rows() ? nullptr : reinterpret_cast<float*>(carver.take(rows * layer.output.num_inputs * 4))),
          activated(hidden.takes_rows() ? nullptr : reinterpret_cast<float*>(carver.take(rows * layer.down.num_inputs * 4))) {
        if (layer.routed != nullptr) sparse.emplace(carver, layer.mlp_norm, *layer.routed, rows);
    }
};

// The share of one thread in one layer. Between two barriers a thread writes only what no other reads or writes.
class Worker {
  public:
    Worker(const Layer& layer, const KvLayer& kv, const Step& step, const Rows& rows, float* x, const Workspace& space, int thread, int num_threads)
        : layer_(layer), kv_(kv), step_(step), rows_(rows), x_(x), space_(space), thread_(thread), num_threads_(num_threads),
          mine_(share(rows.count, thread, num_threads)), size_(layer.output.num_columns) {}

    void run() {
        const Range all = share(step_.num_rows, thread_, num_threads_);
        for (int64_t row = all.begin; row < all.end; ++row) norm(layer_.attention_norm, row, space_.normed, row);
        if (layer_.is_parallel)
            for (int64_t row = mine_.begin; row < mine_.end; ++row) norm(layer_.mlp_norm, rows_.from(row), space_.mlp_normed, row);
        barrier();
        product(layer_.query_key_value, space_.normed, step_.num_rows, Activation::kNone, space_.query_key_value, Type::kF32);
        if (layer_.is_parallel) up();
        barrier();
        turn_and_write();
        barrier();
        attend();
        if (rows_.in_step != nullptr) gather();
        barrier();
        if (convert(space_.attended, space_.seen) | (layer_.is_parallel && convert(space_.hidden, space_.activated))) barrier();
        add(layer_.output, space_.attended);
        if (space_.sparse) {
            barrier();
            space_.sparse->run(x_, thread_, num_threads_);
        }
        if (layer_.up.panels == nullptr) return;
        if (!layer_.is_parallel) {
            barrier();
            for (int64_t row = mine_.begin; row < mine_.end; ++row) norm(layer_.mlp_norm, row, space_.mlp_normed, row);
            barrier();
            up();
            barrier();
            if (convert(space_.hidden, space_.activated)) barrier();
        }
        add(layer_.down, space_.hidden);  // the same thread added the same columns of the attention's output before
    }

  private:
    void norm(const Norm& norm, int64_t from, const Operand& to, int64_t row) const {
        auto* const row_memory = static_cast<float*>(scratch(Scratch::kRow, size_ * 4));
        norm_row(norm, x_ + from * size_, row_memory, size_);
        to.convert(row, row_memory);
    }

    void product(const Dense& dense, const Operand& from, int64_t rows, Activation activation, void* out, Type type) const {
        const Output output{dense.bias, activation, type, nullptr, out, dense.num_columns, dense.num_columns, nullptr};
        linear_share(from.weights, from.inputs(), output, rows, thread_, num_threads_);
    }

    void up() const {
        const auto activation = static_cast<Activation>(layer_.activation);
        if (space_.hidden.takes_rows())
            product(layer_.up, space_.mlp_normed, rows_.count, activation, space_.hidden.memory, static_cast<Type>(space_.hidden.weights.format));
        else
            product(layer_.up, space_.mlp_normed, rows_.count, activation, space_.activated, Type::kF32);
    }

    void add(const Dense& dense, const Operand& from) const {
        const Output output{dense.bias, Activation::kNone, Type::kF32, x_, x_, size_, size_, nullptr};
        linear_share(from.weights, from.inputs(), output, rows_.count, thread_, num_threads_);
    }

    // The rows that go on, to the front of x: each thread moves columns of its own, so that none overtakes another.
    void gather() const {
        const Range columns = share(size_, thread_, num_threads_);
        for (int64_t row = 0; row < rows_.count; ++row)
            std::memmove(x_ + row * size_ + columns.begin, x_ + rows_.from(row) * size_ + columns.begin, (columns.end - columns.begin) * sizeof(float));
    }

    bool convert(const Operand& to, const float* from) const {
        if (to.takes_rows()) return false;
        for (int64_t row = mine_.begin; row < mine_.end; ++row) to.convert(row, from + row * to.weights.num_inputs);
        return true;
    }

    Heads heads(int64_t at, int64_t stride) const {
        return {space_.query_key_value + at, false, layer_.query_key_value.num_columns, stride};
    }

    // Norms and rotation of queries and keys in place, then keys and values into the pool: all for the same rows and heads.
    void turn_and_write() const {
        const Heads query = heads(layer_.query_at, layer_.query_stride), key = heads(layer_.key_at, layer_.kv_stride);
        const int group = layer_.num_heads / layer_.num_kv_heads;
        const Range mine = share(step_.num_rows * layer_.num_kv_heads, thread_, num_threads_);  // as write_kv cuts them
        for (int64_t piece = mine.begin; piece < mine.end; ++piece) {
            const int64_t row = piece / layer_.num_kv_heads;
            const int head = static_cast<int>(piece % layer_.num_kv_heads);
            for (int i = 0; i < group; ++i) turn(query, row, head * group + i, layer_.query_norm);
            turn(key, row, head, layer_.key_norm);
        }
        write_kv(kv_, key, heads(layer_.value_at, layer_.kv_stride), step_.slots, step_.num_rows, thread_, num_threads_);
    }

    void turn(const Heads& heads, int64_t row, int head, const float* norm) const {
        float* const numbers = static_cast<float*>(heads.data) + row * heads.row_stride + head * heads.head_stride;
        if (norm != nullptr) rms_norm(numbers, norm, layer_.head_norm_eps, numbers, layer_.head_size);
        const int64_t at = step_.positions[row] * step_.half;
        rotate(numbers, step_.cos + at, step_.sin + at, numbers, step_.half, layer_.head_size);
    }

    void attend() const {
        AttentionCall call{};
        call.query = heads(layer_.query_at, layer_.query_stride);
        call.query_rows = rows_.in_step;
        const bool is_direct = space_.attended.takes_rows();
        call.out = {is_direct ? static_cast<void*>(space_.attended.memory) : space_.seen,
                    is_direct && space_.attended.weights.format == Format::kBf16, layer_.output.num_inputs, layer_.head_size};
        call.num_heads = layer_.num_heads;
        call.num_rows = rows_.count;
        call.requests = rows_.requests;
        call.positions = rows_.positions;
        call.block_tables = step_.block_tables;
        call.table_stride = step_.table_width;
        call.scale = layer_.scale;
        call.window = layer_.window;
        paged_attention(kv_, call, thread_, num_threads_);
    }

    const Layer& layer_;
    const KvLayer& kv_;
    const Step& step_;
    const Rows& rows_;
    float* const x_;
    const Workspace& space_;
    const int thread_, num_threads_;
    const Range mine_;  // of the rows that come out
    const int64_t size_;
};

}  // namespace
}  // namespace tripod

using namespace tripod;

// Returns -1, or the first row whose slot, request, position or blocks do not exist. To be asked once a step, before the first layer.
TRIPOD_API int64_t tripod_first_wrong_row(const Step* step, int64_t num_blocks) {
    for (int64_t row = 0; row < step->num_rows; ++row)
        if (step->slots[row] < 0 || step->slots[row] >= num_blocks * kBlockTokens || step->positions[row] >= step->num_angles) return row;
    const KvLayer kv{nullptr, num_blocks, 1, 1, KvFormat::kF32};
    AttentionCall call{};
    call.num_rows = step->num_rows;
    call.requests = step->requests;
    call.positions = step->positions;
    call.block_tables = step->block_tables;
    call.table_stride = step->table_width;
    return first_wrong_row(kv, call, step->num_tables, step->table_width);
}

// Layers one after the other, in one region; x: [rows, D], changed in place. If is_last, the last of them keeps the step's kept rows alone, at
// the front of x; what comes out goes through `norm` unless that is null. The keys and values of a layer lie layer_bytes behind those of the
// one before.
TRIPOD_API void tripod_layers(const Layer* const* layers, int64_t num_layers, void* kv_words, int64_t layer_bytes, int64_t num_blocks,
                              int32_t kv_format, const Step* step, int32_t is_last, const Norm* norm, float* x) {
    const auto rows_of = [&](int64_t index) {
        return is_last && index == num_layers - 1 ? Rows{step->num_kept, step->kept, step->kept_requests, step->kept_positions}
                                                  : Rows{step->num_rows, nullptr, step->requests, step->positions};
    };
    int64_t num_bytes = 0;
    for (int64_t index = 0; index < num_layers; ++index) {
        Carver measure(nullptr);
        (void)Workspace(measure, *layers[index], step->num_rows, rows_of(index).count);
        num_bytes = std::max(num_bytes, measure.taken());
    }
    void* const memory = scratch(Scratch::kInput, num_bytes);
    parallel([&](int thread, int count) {
        for (int64_t index = 0; index < num_layers; ++index) {
            const Layer& layer = *layers[index];
            const KvLayer kv{reinterpret_cast<Word*>(static_cast<uint8_t*>(kv_words) + index * layer_bytes), num_blocks, layer.num_kv_heads,
                             layer.head_size, static_cast<KvFormat>(kv_format)};
            const Rows rows = rows_of(index);
            Carver carver(memory);  // every thread sees the same memory in the same way
            const Workspace space(carver, layer, step->num_rows, rows.count);
            if (index > 0) barrier();
            Worker(layer, kv, *step, rows, x, space, thread, count).run();
        }
        if (norm == nullptr) return;
        barrier();
        const int64_t size = layers[num_layers - 1]->output.num_columns;
        const Range mine = share(rows_of(num_layers - 1).count, thread, count);
        for (int64_t row = mine.begin; row < mine.end; ++row) norm_row(*norm, x + row * size, x + row * size, size);
    });
}
