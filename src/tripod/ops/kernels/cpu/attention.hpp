// Attention over paged keys and values: decodes and chunks of prompts mixed in one ragged batch.
#pragma once

#include "kv_cache.hpp"

namespace tripod {

struct AttentionCall {
    Heads query, out;  // H heads of K numbers a row
    const int64_t* query_rows;  // [num_rows]: where in `query` each row lies; null: in their order
    int num_heads;     // H, a multiple of kv.num_heads
    int64_t num_rows;
    const int64_t* requests;   // [num_rows]: which row of block_tables
    const int64_t* positions;  // [num_rows]: a row sees the tokens of its request up to this one: its own, or an encoder's last
    const int64_t* block_tables;
    int64_t table_stride;
    float scale;     // > 0
    int64_t window;  // how many tokens a row sees, its own included; 0 is all
};

// Called by every thread of a region. Threads share the work by the lengths of the contexts; which thread computes a row, and with
// which others, does not change its bits.
void paged_attention(const KvLayer& kv, const AttentionCall& call, int thread, int num_threads);

// The first row (or the last of its run of tokens) whose request, position or blocks do not exist; -1 when all do. To be asked once a step.
int64_t first_wrong_row(const KvLayer& kv, const AttentionCall& call, int64_t num_tables, int64_t table_width);

}  // namespace tripod
