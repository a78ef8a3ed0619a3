// Where the keys and values of one layer lie.
//
// The pool of a layer is [num_blocks][G][2][16 * P] numbers: for every block of 16 tokens and every key/value head first the keys,
// then the values. P is the head size rounded up to 16; the numbers beyond it are zero. Both are made of 32-bit words, each of which
// holds kPerWord numbers: one float, or two bfloat16 that one dot-product instruction takes at once.
//
//   keys    [P / kPerWord][16 tokens]     a word holds neighbouring numbers of one token: sixteen scores need no sum across lanes
//   values  [16 / kPerWord][P]            a word holds the same number of neighbouring tokens
//
//   bfloat16 keys,   first 64 bytes:  t0d0 t0d1 | t1d0 t1d1 | ... | t15d0 t15d1      then d2 and d3 of the sixteen tokens, ...
//   bfloat16 values, first 64 bytes:  t0d0 t1d0 | t0d1 t1d1 | ... | t0d15 t1d15      ... and after P words tokens 2 and 3
//
// In 8 bits a byte of -127..127 stands where bfloat16 has a number, in the same order, and after the keys, and after the values, stand
// sixteen floats: each token's scale, by which its bytes are multiplied.
//
//   keys [16 P bytes] [16 floats] values [16 P bytes] [16 floats]
#pragma once

#include <cstdint>

#include "simd.hpp"

namespace tripod {

constexpr int kBlockTokens = 16;

typedef uint32_t Word __attribute__((may_alias));  // holds a float or two bfloat16
typedef uint16_t HalfWord __attribute__((may_alias));

enum class KvFormat : int32_t { kF32 = 0, kBf16 = 1, kInt8 = 2 };

struct KvLayer {
    Word* words;
    int64_t num_blocks;
    int num_heads;  // G, key/value heads
    int head_size;  // K
    KvFormat format;

    bool is_bf16() const { return format != KvFormat::kF32; }  // what queries and weights are rounded to, before they meet keys and values
    int per_word() const { return is_bf16() ? 2 : 1; }         // numbers of a word that the arithmetic reads
    int padded_size() const { return (head_size + kLanes - 1) / kLanes * kLanes; }               // P
    int64_t plain_half() const { return int64_t{kBlockTokens} * padded_size() / per_word(); }    // words of the keys, as they are computed with
    int64_t half() const {                                                                       // and as they are kept; values take as many
        return format == KvFormat::kInt8 ? plain_half() / 2 + kBlockTokens : plain_half();
    }
    int64_t block() const { return 2 * half() * num_heads; }                                    // words of a block
    Word* keys(int64_t block_id, int head) const { return words + block_id * block() + 2 * half() * head; }
};

// A matrix of rows of heads, in place in a larger one: number `i` of head `h` of row `n` is data[n * row_stride + h * head_stride + i].
struct Heads {
    void* data;
    bool is_bf16;
    int64_t row_stride, head_stride;

    const float* floats(int64_t row, int head) const { return static_cast<const float*>(data) + row * row_stride + head * head_stride; }
    const uint16_t* bf16s(int64_t row, int head) const { return static_cast<const uint16_t*>(data) + row * row_stride + head * head_stride; }
};

// Store the keys and values of rows in their slots: block id * 16 + place in the block. Called by every thread of a region.
void write_kv(const KvLayer& kv, const Heads& key, const Heads& value, const int64_t* slots, int64_t num_rows, int thread, int num_threads);

// Copy whole blocks: pairs is [num_pairs][2], source and target. No target is also a source. Called by every thread of a region.
void copy_blocks(const KvLayer& kv, const int64_t* pairs, int64_t num_pairs, int thread, int num_threads);

// One head of one row as the words of a key, zeros beyond its size: a query is laid out so, to meet the keys of the pool.
void pack_head(Word* words, const Heads& from, int64_t row, int head, int head_size, int padded_size, bool to_bf16);

}  // namespace tripod
