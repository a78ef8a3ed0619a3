// The row operations, over all rows of a matrix and all threads.
#include "rows.hpp"

#include "kv_cache.hpp"
#include "pool.hpp"

namespace tripod {
namespace {

// Calls body(row, Number{}) for every row: with a float or a uint16_t to tell of what type the rows are.
template <class Body>
void for_rows(int64_t num_rows, int is_bf16, Body&& body) {
    parallel_for(num_rows, [&](int64_t begin, int64_t end, int) {
        for (int64_t row = begin; row < end; ++row) {
            if (is_bf16) body(row, uint16_t{});
            else body(row, float{});
        }
    });
}

template <class Number>
Number* row_of(void* matrix, int64_t row, int64_t stride) {
    return static_cast<Number*>(matrix) + row * stride;
}

}  // namespace
}  // namespace tripod

using namespace tripod;

// Where `add` is given, x = x + add comes first and is kept. Rows of x, add and out follow one another.
TRIPOD_API void tripod_layer_norm(void* x, void* add, const float* weight, const float* bias, float eps, void* out, int is_bf16, int64_t num_rows,
                                  int64_t size) {
    for_rows(num_rows, is_bf16, [&](int64_t row, auto number) {
        using Number = decltype(number);
        Number* const from = row_of<Number>(x, row, size);
        if (add != nullptr) add_rows(from, row_of<Number>(add, row, size), from, size);
        layer_norm(from, weight, bias, eps, row_of<Number>(out, row, size), size);
    });
}

TRIPOD_API void tripod_rms_norm(void* x, void* add, const float* weight, float eps, void* out, int is_bf16, int64_t num_rows, int64_t size) {
    for_rows(num_rows, is_bf16, [&](int64_t row, auto number) {
        using Number = decltype(number);
        Number* const from = row_of<Number>(x, row, size);
        if (add != nullptr) add_rows(from, row_of<Number>(add, row, size), from, size);
        rms_norm(from, weight, eps, row_of<Number>(out, row, size), size);
    });
}

// cos and sin: [num_rows, half]. x and out may be the same.
TRIPOD_API void tripod_rotate(void* x, int64_t x_row_stride, int64_t x_head_stride, void* out, int64_t out_row_stride, int64_t out_head_stride,
                              int is_bf16, const float* cos, const float* sin, int64_t num_rows, int num_heads, int64_t head_size, int64_t half) {
    for_rows(num_rows, is_bf16, [&](int64_t row, auto number) {
        using Number = decltype(number);
        for (int head = 0; head < num_heads; ++head)
            rotate(row_of<Number>(x, row, x_row_stride) + head * x_head_stride, cos + row * half, sin + row * half,
                   row_of<Number>(out, row, out_row_stride) + head * out_head_stride, half, head_size);
    });
}

// Returns -1, or the first place whose id the table does not have (and then nothing is read).
TRIPOD_API int64_t tripod_embedding(const int64_t* ids, int64_t num_ids, void* table, int table_is_bf16, int64_t num_entries, int64_t size, void* out,
                                    int out_is_bf16) {
    for (int64_t i = 0; i < num_ids; ++i)
        if (ids[i] < 0 || ids[i] >= num_entries) return i;
    for_rows(num_ids, out_is_bf16, [&](int64_t row, auto number) {
        using Number = decltype(number);
        Number* const to = row_of<Number>(out, row, size);
        if (table_is_bf16) convert(row_of<uint16_t>(table, ids[row], size), to, size);
        else convert(row_of<float>(table, ids[row], size), to, size);
    });
    return -1;
}

// Every thread looks through its share of the columns of every row.
TRIPOD_API void tripod_argmax(void* x, int is_bf16, int64_t num_rows, int64_t size, int64_t* out) {
    Largest* found = nullptr;  // [thread][row], in the first thread's memory
    parallel([&](int thread, int num_threads) {
        if (thread == 0) found = static_cast<Largest*>(scratch(Scratch::kAttention, num_rows * num_threads * int64_t{sizeof(Largest)}));
        barrier();
        Largest* const mine = found + thread * num_rows;
        const Range columns = share(size, thread, num_threads);
        for (int64_t row = 0; row < num_rows; ++row) {
            mine[row] = {-__builtin_inff(), columns.begin == columns.end ? -1 : columns.begin};
            mine[row] = is_bf16 ? argmax(row_of<uint16_t>(x, row, size) + columns.begin, columns.end - columns.begin, mine[row], columns.begin)
                                : argmax(row_of<float>(x, row, size) + columns.begin, columns.end - columns.begin, mine[row], columns.begin);
        }
        barrier();
        if (thread != 0) return;
        for (int64_t row = 0; row < num_rows; ++row) out[row] = largest_of_threads(found, num_rows, num_threads, row).at;
    });
}
