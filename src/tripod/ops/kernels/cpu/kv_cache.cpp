#include "kv_cache.hpp"

#include <cstring>

#include "linear.hpp"
#include "pool.hpp"

namespace tripod {
namespace {

constexpr int kMostNumbers = 512;  // of a head; checked where the pool is made

// One head as floats, zeros beyond its size.
void widen_head(float* to, const Heads& from, int64_t row, int head, int head_size, int padded_size) {
    if (from.is_bf16) {
        const uint16_t* numbers = from.bf16s(row, head);
        for (int i = 0; i < head_size; ++i) to[i] = bf16_to_float(numbers[i]);
    } else {
        std::memcpy(to, from.floats(row, head), sizeof(float) * head_size);
    }
    for (int i = head_size; i < padded_size; ++i) to[i] = 0.0f;
}

// One head as whole numbers of -127..127, zeros beyond its size. Returns the scale by which they are multiplied.
float quantize_head(int8_t* to, const Heads& from, int64_t row, int head, int head_size, int padded_size) {
    alignas(64) float wide[kMostNumbers];
    widen_head(wide, from, row, head, head_size, padded_size);
    int32_t unused = 0;
    return quantize(wide, padded_size, to, 0, &unused);
}

void write_token(const KvLayer& kv, const Heads& key, const Heads& value, int64_t row, int head, int64_t slot) {
    const int padded = kv.padded_size(), num_words = padded / kv.per_word(), token = static_cast<int>(slot % kBlockTokens);
    Word* const keys = kv.keys(slot / kBlockTokens, head);
    Word* const values = keys + kv.half();
    if (kv.format == KvFormat::kInt8) {
        int8_t bytes[kMostNumbers];
        reinterpret_cast<float*>(keys + kv.plain_half() / 2)[token] = quantize_head(bytes, key, row, head, kv.head_size, padded);
        for (int i = 0; i < padded; ++i) reinterpret_cast<int8_t*>(keys)[i / 2 * 2 * kBlockTokens + 2 * token + i % 2] = bytes[i];
        reinterpret_cast<float*>(values + kv.plain_half() / 2)[token] = quantize_head(bytes, value, row, head, kv.head_size, padded);
        for (int i = 0; i < padded; ++i) reinterpret_cast<int8_t*>(values)[token / 2 * 2 * padded + 2 * i + token % 2] = bytes[i];
        return;
    }
    alignas(64) Word words[kMostNumbers];
    pack_head(words, key, row, head, kv.head_size, padded, kv.is_bf16());
    for (int i = 0; i < num_words; ++i) keys[i * kBlockTokens + token] = words[i];

    pack_head(words, value, row, head, kv.head_size, padded, kv.is_bf16());
    if (!kv.is_bf16()) {
        std::memcpy(values + token * padded, words, sizeof(Word) * padded);
        return;
    }
    // Half of each word is the neighbour's, which another thread may be writing now: it must not be read and written back.
    HalfWord* const halves = reinterpret_cast<HalfWord*>(values + token / 2 * padded);
    const HalfWord* const numbers = reinterpret_cast<const HalfWord*>(words);
    for (int i = 0; i < padded; ++i) halves[2 * i + token % 2] = numbers[i];
}

}  // namespace

void pack_head(Word* words, const Heads& from, int64_t row, int head, int head_size, int padded_size, bool to_bf16) {
    if (to_bf16 && from.is_bf16) {
        std::memcpy(words, from.bf16s(row, head), sizeof(uint16_t) * head_size);
        std::memset(reinterpret_cast<uint16_t*>(words) + head_size, 0, sizeof(uint16_t) * (padded_size - head_size));
    } else if (to_bf16) {
        alignas(64) float wide[kMostNumbers];
        widen_head(wide, from, row, head, head_size, padded_size);
        for (int i = 0; i < padded_size; i += kLanes) store_bf16(reinterpret_cast<uint16_t*>(words) + i, load(wide + i));
    } else {
        widen_head(reinterpret_cast<float*>(words), from, row, head, head_size, padded_size);
    }
}

void write_kv(const KvLayer& kv, const Heads& key, const Heads& value, const int64_t* slots, int64_t num_rows, int thread, int num_threads) {
    const Range mine = share(num_rows * kv.num_heads, thread, num_threads);
    for (int64_t piece = mine.begin; piece < mine.end; ++piece) {
        const int64_t row = piece / kv.num_heads;
        write_token(kv, key, value, row, static_cast<int>(piece % kv.num_heads), slots[row]);
    }
}

void copy_blocks(const KvLayer& kv, const int64_t* pairs, int64_t num_pairs, int thread, int num_threads) {
    const int64_t head_words = 2 * kv.half();
    const Range mine = share(num_pairs * kv.num_heads, thread, num_threads);
    for (int64_t piece = mine.begin; piece < mine.end; ++piece) {
        const int64_t* pair = pairs + piece / kv.num_heads * 2;
        const int head = static_cast<int>(piece % kv.num_heads);
        std::memcpy(kv.keys(pair[1], head), kv.keys(pair[0], head), sizeof(Word) * head_words);
    }
}

}  // namespace tripod

// Returns -1, or the first row whose slot does not exist (and then nothing is written).
TRIPOD_API int64_t tripod_write_kv(void* layer, int64_t num_blocks, int num_kv_heads, int head_size, int kv_format, void* key, int key_is_bf16,
                        int64_t key_row_stride, int64_t key_head_stride, void* value, int value_is_bf16, int64_t value_row_stride,
                        int64_t value_head_stride, const int64_t* slots, int64_t num_rows) {
    for (int64_t row = 0; row < num_rows; ++row)
        if (slots[row] < 0 || slots[row] >= num_blocks * tripod::kBlockTokens) return row;
    const tripod::KvLayer kv{static_cast<tripod::Word*>(layer), num_blocks, num_kv_heads, head_size, static_cast<tripod::KvFormat>(kv_format)};
    const tripod::Heads keys{key, key_is_bf16 != 0, key_row_stride, key_head_stride};
    const tripod::Heads values{value, value_is_bf16 != 0, value_row_stride, value_head_stride};
    tripod::parallel([&](int thread, int count) { tripod::write_kv(kv, keys, values, slots, num_rows, thread, count); });
    return -1;
}

// Returns -1, or the first pair that names a block which does not exist (and then nothing is copied).
TRIPOD_API int64_t tripod_copy_blocks(void* layers, int64_t num_layers, int64_t num_blocks, int num_kv_heads, int head_size, int kv_format,
                           const int64_t* pairs, int64_t num_pairs) {
    for (int64_t i = 0; i < 2 * num_pairs; ++i)
        if (pairs[i] < 0 || pairs[i] >= num_blocks) return i / 2;
    const tripod::KvLayer first{static_cast<tripod::Word*>(layers), num_blocks, num_kv_heads, head_size, static_cast<tripod::KvFormat>(kv_format)};
    tripod::parallel([&](int thread, int count) {
        tripod::KvLayer kv = first;
        for (int64_t layer = 0; layer < num_layers; ++layer, kv.words += num_blocks * kv.block())
            tripod::copy_blocks(kv, pairs, num_pairs, thread, count);
    });
    return -1;
}
