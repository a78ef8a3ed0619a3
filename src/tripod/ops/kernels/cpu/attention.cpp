// Flash attention (Dao et al. 2022, arXiv:2205.14135) over blocks (Kwon et al. 2023, arXiv:2309.06180), for rows of any mixture.
//
// A row is one query head of one token. It walks the context of its request in stretches of 64 tokens (four blocks) that start at
// multiples of 64, and for each: scores = K q, weights = exp(scores - largest so far), out = out + V weights. Sums run over numbers, then
// tokens, in one fixed order, each row and each lane for itself. So the bits of a row depend on the row and its context alone:
// a decode, a chunk of any size, one head or the many of a group are the same arithmetic on more or fewer rows at a time.
//
// Rows of one request that share a key/value head are computed together, as many as a tile holds: what is loaded once serves them all.
//
// Keys and values in 8 bits are made bfloat16 a stretch at a time, in the first-level cache, for all rows of a tile: bfloat16 has every
// whole number of -127..127. A key's scale then multiplies its score, and a value's scale the weight that the value gets.
#include "attention.hpp"

#include <algorithm>
#include <cstring>

#include "pool.hpp"

namespace tripod {
namespace {

constexpr int kStretchBlocks = 4;
constexpr int kStretch = kStretchBlocks * kBlockTokens;
constexpr float kNothingSeen = -1e30f;  // below any score; minus infinity would make NaN of the difference of two
constexpr int kTileNumbers = 48 * 64;   // rows of a tile times head size: queries, weights and sums of a tile stay in the first cache
#if defined(__AVX512F__)
constexpr int kRows = 6;  // computed at a time: 6 rows x 4 vectors of sums, 4 vectors of keys or values and one number of a row
#else
constexpr int kRows = 1;
#endif

struct Float {
    static constexpr int kPerWord = 1;
    static TRIPOD_INLINE F16 dot(F16 sum, I16 words, Word word) { return fma(bits_to_float(words), bits_to_float(isplat(static_cast<int32_t>(word))), sum); }
    static TRIPOD_INLINE void store16(Word* to, F16 x) { store(reinterpret_cast<float*>(to), x); }
};

struct Bf16 {
    static constexpr int kPerWord = 2;
    static TRIPOD_INLINE F16 dot(F16 sum, I16 words, Word word) {
#if defined(__AVX512BF16__)
        return _mm512_dpbf16_ps(sum, (__m512bh)words, (__m512bh)isplat(static_cast<int32_t>(word)));
#else
        const I16 other = isplat(static_cast<int32_t>(word)), high = isplat(static_cast<int32_t>(0xffff0000u));
        sum = fma(bits_to_float(shift_left<16>(words)), bits_to_float(shift_left<16>(other)), sum);
        return fma(bits_to_float(iand(words, high)), bits_to_float(iand(other, high)), sum);
#endif
    }
    static TRIPOD_INLINE void store16(Word* to, F16 x) { store_bf16(reinterpret_cast<uint16_t*>(to), x); }
};

// Into the second cache: what is fetched into the first takes the few places that the loads of now wait in,
// and decodes of many heads do not reach the memory's speed.
TRIPOD_INLINE void fetch_line(const Word* at) { __builtin_prefetch(at, 0, 2); }

TRIPOD_INLINE bool any_above(F16 x, float bound) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask(x, _mm512_set1_ps(bound), _CMP_GT_OQ) != 0;
#else
    return max_of(x) > bound;
#endif
}

// Lanes [begin, end) of x, `fill` in the others.
TRIPOD_INLINE F16 keep(F16 x, int64_t begin, int64_t end, float fill) {
    const int from = static_cast<int>(std::clamp<int64_t>(begin, 0, kLanes)), to = static_cast<int>(std::clamp<int64_t>(end, 0, kLanes));
#if defined(__AVX512F__)
    const uint32_t lanes = ((1u << to) - 1u) & ~((1u << from) - 1u);
    return _mm512_mask_mov_ps(_mm512_set1_ps(fill), static_cast<__mmask16>(lanes), x);
#else
    float lanes[kLanes];
    store(lanes, x);
    for (int lane = 0; lane < kLanes; ++lane)
        if (lane < from || lane >= to) lanes[lane] = fill;
    return load(lanes);
#endif
}

// The work on rows that share a request and a key/value head, and all that is known of it on the way.
struct Tile {
    Word* query;       // [rows][P / kPerWord]
    float* out;        // [rows][P], not yet divided
    float* total;      // [rows][16]: the sum of the weights so far is the sum of these
    float* largest;    // [rows]
    int64_t* position; // [rows]
    int num_rows;
};

// How many of the rows that are left are computed at a time: all within the registers, and nearly as many the next time.
int rows_at_a_time(int left) {
    const int parts = (left + kRows - 1) / kRows;
    return (left + parts - 1) / parts;
}

// sums[r][c] += over steps: columns[c][step * stride] . rows[r * row_stride + step]. `ahead` is where the next stretch lies, from the same
// place on: it is fetched while this one is computed. Null where there is none.
template <class Number, int kNumRows, int kColumns>
TRIPOD_INLINE void multiply(F16 (&sums)[kNumRows][kColumns], const Word* const (&columns)[kColumns], int64_t stride, const Word* rows,
                            int64_t row_stride, int steps, const Word* const* ahead) {
    for (int step = 0; step < steps; ++step) {
        I16 words[kColumns];
        TRIPOD_UNROLL for (int c = 0; c < kColumns; ++c) words[c] = iload(columns[c] + step * stride);
        if (ahead != nullptr)
            TRIPOD_UNROLL for (int c = 0; c < kColumns; ++c) fetch_line(ahead[c] + step * stride);
        TRIPOD_UNROLL for (int r = 0; r < kNumRows; ++r) {
            const Word word = rows[r * row_stride + step];
            TRIPOD_UNROLL for (int c = 0; c < kColumns; ++c) sums[r][c] = Number::dot(sums[r][c], words[c], word);
        }
    }
}

// One stretch of the context, as a tile sees it.
struct Stretch {
    const Word* keys[kStretchBlocks];   // blocks beyond the context repeat the last one
    const Word* ahead[kStretchBlocks];  // the keys of the stretch that comes next, or null in ahead[0]
    const float* scales[kStretchBlocks];  // 8 bits: of the sixteen keys of each block; null in scales[0] otherwise
    int64_t value_scales;               // floats from a block's scales of keys to those of values
    int64_t start;                      // its first token
    float scale;
    int64_t window;
    int padded;    // P
    int64_t half;  // words from a block's keys to its values
};

template <class Number, int kNumRows, int kNumBlocks>
__attribute__((noinline)) void weigh(const Stretch& stretch, const Tile& tile, int row, bool is_cut, Word* weights) {
    const int steps = stretch.padded / Number::kPerWord;
    F16 scores[kNumRows][kNumBlocks];
    TRIPOD_UNROLL for (int r = 0; r < kNumRows; ++r)
        TRIPOD_UNROLL for (int b = 0; b < kNumBlocks; ++b) scores[r][b] = zeros();
    const Word* keys[kNumBlocks];
    TRIPOD_UNROLL for (int b = 0; b < kNumBlocks; ++b) keys[b] = stretch.keys[b];
    multiply<Number>(scores, keys, kBlockTokens, tile.query + int64_t{row} * steps, steps, steps, stretch.ahead[0] ? stretch.ahead : nullptr);

    const bool has_scales = stretch.scales[0] != nullptr;
    TRIPOD_UNROLL for (int r = 0; r < kNumRows; ++r) {
        const int64_t end = tile.position[row + r] + 1 - stretch.start, begin = stretch.window > 0 ? end - stretch.window : 0;
        if (has_scales)
            TRIPOD_UNROLL for (int b = 0; b < kNumBlocks; ++b) scores[r][b] = mul(scores[r][b], load(stretch.scales[b]));
        if (is_cut)
            TRIPOD_UNROLL for (int b = 0; b < kNumBlocks; ++b)
                scores[r][b] = keep(scores[r][b], begin - b * kLanes, end - b * kLanes, -__builtin_inff());
        F16 top = scores[r][0];
        TRIPOD_UNROLL for (int b = 1; b < kNumBlocks; ++b) top = max(top, scores[r][b]);
        float largest = tile.largest[row + r];
        F16 total = load(tile.total + (row + r) * kLanes);
        if (any_above(top, largest)) {
            const float before = largest;
            largest = tile.largest[row + r] = max_of(top);
            const F16 fade = exp(splat((before - largest) * stretch.scale));
            total = mul(total, fade);
            float* out = tile.out + int64_t{row + r} * stretch.padded;
            for (int i = 0; i < stretch.padded; i += kLanes) store(out + i, mul(load(out + i), fade));
        }
        const F16 scale = splat(stretch.scale), offset = splat(-largest * stretch.scale);
        F16 weight[kStretchBlocks];
        TRIPOD_UNROLL for (int b = 0; b < kNumBlocks; ++b) {
            weight[b] = exp(fma(scores[r][b], scale, offset));
            F16 factor = weight[b];
            if (has_scales) factor = mul(factor, load(stretch.scales[b] + stretch.value_scales));
            if (has_scales && is_cut) factor = keep(factor, begin - b * kLanes, end - b * kLanes, 0.0f);  // nobody may have written a scale there
            Number::store16(weights + (r * kStretch + b * kBlockTokens) / Number::kPerWord, factor);
        }
        TRIPOD_UNROLL for (int b = kNumBlocks; b < kStretchBlocks; ++b) weight[b] = zeros();
        store(tile.total + (row + r) * kLanes, add(total, add(add(weight[0], weight[1]), add(weight[2], weight[3]))));
    }
}

// Adds the values of the first `num_tokens` of the stretch, by their weights, to numbers [i, i + 16 kColumns) of the rows.
template <class Number, int kNumRows, int kColumns>
__attribute__((noinline)) void add_values(const Stretch& stretch, const Tile& tile, int row, int i, int num_tokens, const Word* weights, const Word* tail) {
    constexpr int kSteps = kBlockTokens / Number::kPerWord, kRowStride = kStretch / Number::kPerWord;
    float* const out = tile.out + int64_t{row} * stretch.padded + i;
    F16 sums[kNumRows][kColumns];
    TRIPOD_UNROLL for (int r = 0; r < kNumRows; ++r)
        TRIPOD_UNROLL for (int c = 0; c < kColumns; ++c) sums[r][c] = load(out + int64_t{r} * stretch.padded + c * kLanes);
    for (int b = 0; b * kBlockTokens < num_tokens; ++b) {
        const int steps = std::min(kSteps, (num_tokens - b * kBlockTokens) / Number::kPerWord);
        const Word* values[kColumns];
        const Word* ahead[kColumns];
        TRIPOD_UNROLL for (int c = 0; c < kColumns; ++c) {
            values[c] = stretch.keys[b] + stretch.half + i + c * kLanes;
            ahead[c] = stretch.ahead[b] + stretch.half + i + c * kLanes;
        }
        multiply<Number>(sums, values, stretch.padded, weights + b * kSteps, kRowStride, steps, stretch.ahead[0] ? ahead : nullptr);
    }
    if (tail != nullptr) {
        const Word* values[kColumns];
        TRIPOD_UNROLL for (int c = 0; c < kColumns; ++c) values[c] = tail + i + c * kLanes;
        multiply<Number>(sums, values, stretch.padded, weights + num_tokens / Number::kPerWord, kRowStride, 1, nullptr);
    }
    TRIPOD_UNROLL for (int r = 0; r < kNumRows; ++r)
        TRIPOD_UNROLL for (int c = 0; c < kColumns; ++c) store(out + int64_t{r} * stretch.padded + c * kLanes, sums[r][c]);
}

template <class Number, int kNumRows>
void attend_stretch(const Stretch& stretch, const Tile& tile, int row) {
    const int64_t last = tile.position[row + kNumRows - 1], seen = last + 1 - stretch.start;
    const int num_tokens = static_cast<int>(std::min<int64_t>(seen, kStretch));
    // Cut: a row of these ends within the stretch, or its window begins within.
    const bool is_cut = tile.position[row] + 1 < stretch.start + kStretch || (stretch.window > 0 && last + 1 - stretch.window > stretch.start);
    alignas(64) Word weights[kNumRows * kStretch / Number::kPerWord];
    // A block that nothing of is seen weighs nothing: leaving it out saves time, and changes no bit.
    if (num_tokens <= kBlockTokens) weigh<Number, kNumRows, 1>(stretch, tile, row, is_cut, weights);
    else if (num_tokens <= 2 * kBlockTokens) weigh<Number, kNumRows, 2>(stretch, tile, row, is_cut, weights);
    else weigh<Number, kNumRows, 4>(stretch, tile, row, is_cut, weights);

    // The last token may share its words with one that nobody has written: zero times what lies there need not be zero.
    alignas(64) Word tail_words[512];
    const Word* tail = nullptr;
    if (Number::kPerWord == 2 && num_tokens % 2 == 1) {
        const Word* words = stretch.keys[num_tokens / kBlockTokens] + stretch.half + int64_t{num_tokens % kBlockTokens / 2} * stretch.padded;
        for (int i = 0; i < stretch.padded; i += kLanes) istore(tail_words + i, iand(iload(words + i), isplat(0xffff)));
        tail = tail_words;
    }
    int i = 0;
    for (; i + 4 * kLanes <= stretch.padded; i += 4 * kLanes) add_values<Number, kNumRows, 4>(stretch, tile, row, i, num_tokens, weights, tail);
    switch ((stretch.padded - i) / kLanes) {
        case 1: add_values<Number, kNumRows, 1>(stretch, tile, row, i, num_tokens, weights, tail); break;
        case 2: add_values<Number, kNumRows, 2>(stretch, tile, row, i, num_tokens, weights, tail); break;
        case 3: add_values<Number, kNumRows, 3>(stretch, tile, row, i, num_tokens, weights, tail); break;
        default: break;
    }
}

template <class Number>
void attend_rows(const Stretch& stretch, const Tile& tile, int row, int num_rows) {
    switch (num_rows) {
        case 1: return attend_stretch<Number, 1>(stretch, tile, row);
#if defined(__AVX512F__)
        case 2: return attend_stretch<Number, 2>(stretch, tile, row);
        case 3: return attend_stretch<Number, 3>(stretch, tile, row);
        case 4: return attend_stretch<Number, 4>(stretch, tile, row);
        case 5: return attend_stretch<Number, 5>(stretch, tile, row);
        case 6: return attend_stretch<Number, 6>(stretch, tile, row);
#endif
    }
}

// Tokens of one request that see one more each, or all of them the same: rows [begin, end) of the batch.
struct Span {
    int64_t begin, end;
};

TRIPOD_INLINE bool follows(int64_t position, int64_t before) { return position == before + 1 || position == before; }

Span span_from(const AttentionCall& call, int64_t begin) {
    int64_t end = begin + 1;
    while (end < call.num_rows && call.requests[end] == call.requests[begin] && follows(call.positions[end], call.positions[end - 1])) ++end;
    return {begin, end};
}

// A tile's worth of a span, for one key/value head: the work that goes to one thread.
struct Unit {
    Span span;
    int head;
    int64_t index;  // of the tile: rows token-major, the heads of the group within a token
};

class Worker {
  public:
    Worker(const KvLayer& kv, const AttentionCall& call)
        : kv_(kv), call_(call), padded_(kv.padded_size()), words_(padded_ / kv.per_word()), group_(call.num_heads / kv.num_heads),
          tile_rows_(std::max(kRows, kTileNumbers / padded_ / kRows * kRows)) {}

    int64_t num_tiles(const Span& span) const { return ((span.end - span.begin) * group_ + tile_rows_ - 1) / tile_rows_; }

    // In rows times stretches. Fetching a stretch costs as much as a few rows of arithmetic.
    int64_t cost(const Unit& unit) const {
        const Range rows = rows_of(unit);
        return (rows.end - rows.begin + kRows) * (last_stretch(unit) - first_stretch(unit) + 1);
    }

    // Computes a unit; meanwhile fetches the beginning of the one that this thread computes next, if there is one.
    void attend(const Unit& unit, const Unit* next) {
        Tile tile = begin_tile(unit);
        Stretch stretch{};
        stretch.scale = call_.scale;
        stretch.window = call_.window;
        stretch.padded = padded_;
        stretch.half = kv_.plain_half();
        stretch.value_scales = kv_.half();
        const int64_t last = last_stretch(unit);
        for (int64_t at = first_stretch(unit); at <= last; ++at) {
            stretch.start = at * kStretch;
            point_at(stretch.keys, unit, at);
            if (at < last) {
                point_at(stretch.ahead, unit, at + 1);
            } else {
                stretch.ahead[0] = nullptr;
                if (next != nullptr) fetch(*next);
            }
            if (kv_.format == KvFormat::kInt8) widen(stretch);
            for (int row = 0; row < tile.num_rows;) {
                const int num_rows = rows_at_a_time(tile.num_rows - row);
                const bool is_after = tile.position[row + num_rows - 1] >= stretch.start;
                const bool is_within = call_.window == 0 || tile.position[row] - call_.window + 1 < stretch.start + kStretch;
                if (is_after && is_within) {
                    if (kv_.is_bf16()) attend_rows<Bf16>(stretch, tile, row, num_rows);
                    else attend_rows<Float>(stretch, tile, row, num_rows);
                    stretch.ahead[0] = nullptr;  // fetched by the first rows
                }
                row += num_rows;
            }
        }
        finish(tile, unit);
    }

  private:
    Range rows_of(const Unit& unit) const {
        const int64_t begin = unit.index * tile_rows_;
        return {begin, std::min(begin + tile_rows_, (unit.span.end - unit.span.begin) * group_)};
    }
    int64_t first_position(const Unit& unit) const { return call_.positions[unit.span.begin + rows_of(unit).begin / group_]; }
    int64_t last_position(const Unit& unit) const { return call_.positions[unit.span.begin + (rows_of(unit).end - 1) / group_]; }
    int64_t last_stretch(const Unit& unit) const { return last_position(unit) / kStretch; }
    int64_t first_stretch(const Unit& unit) const {
        return call_.window > 0 ? std::max<int64_t>(0, first_position(unit) - call_.window + 1) / kStretch : 0;
    }

    void point_at(const Word** keys, const Unit& unit, int64_t stretch) const {
        const int64_t* blocks = call_.block_tables + call_.requests[unit.span.begin] * call_.table_stride;
        const int64_t last_block = last_position(unit) / kBlockTokens;
        for (int b = 0; b < kStretchBlocks; ++b) keys[b] = kv_.keys(blocks[std::min(stretch * kStretchBlocks + b, last_block)], unit.head);
    }

    // Makes bfloat16 of a stretch in 8 bits, and fetches the one that comes next meanwhile.
    void widen(Stretch& stretch) const {
        const int64_t numbers = 2 * kv_.plain_half(), half = kv_.half();  // of the keys of a block, and of the values
        auto* to = static_cast<uint16_t*>(scratch(Scratch::kStretch, kStretchBlocks * 2 * numbers * 2));
        const Word* before = nullptr;
        for (int b = 0; b < kStretchBlocks; ++b) {
            const Word* const keys = stretch.keys[b];
            stretch.scales[b] = reinterpret_cast<const float*>(keys + numbers / 4);
            if (keys == before) {  // beyond the context
                stretch.keys[b] = stretch.keys[b - 1];
                continue;
            }
            before = keys;
            stretch.keys[b] = reinterpret_cast<const Word*>(to);
            for (int64_t part = 0; part < 2; ++part, to += numbers) {
                const auto* from = reinterpret_cast<const int8_t*>(keys + part * half);
                const auto* ahead = stretch.ahead[0] == nullptr ? nullptr : stretch.ahead[b] + part * half;
                for (int64_t i = 0; i < numbers; i += 4 * kLanes) {
                    if (ahead != nullptr) fetch_line(ahead + i / 4);
                    TRIPOD_UNROLL for (int64_t j = i; j < i + 4 * kLanes; j += kLanes) store_bf16(to + j, to_float(widen8(from + j)));
                }
                if (ahead != nullptr) fetch_line(ahead + numbers / 4);
            }
        }
        stretch.ahead[0] = nullptr;
    }

    // The first stretch of a unit, or what there is of it.
    void fetch(const Unit& unit) const {
        const Word* keys[kStretchBlocks];
        point_at(keys, unit, first_stretch(unit));
        for (int b = 0; b < kStretchBlocks && (b == 0 || keys[b] != keys[b - 1]); ++b)
            for (int64_t word = 0; word < 2 * kv_.half(); word += 16) fetch_line(keys[b] + word);
    }

    Tile begin_tile(const Unit& unit) const {
        const Range mine = rows_of(unit);
        const int num_rows = static_cast<int>(mine.end - mine.begin);
        const int64_t rows = tile_rows_;
        char* memory = static_cast<char*>(scratch(Scratch::kAttention, rows * (4 * words_ + 4 * padded_ + 4 * kLanes + 4 + 8) + 64));
        Tile tile{};
        tile.num_rows = num_rows;
        tile.query = reinterpret_cast<Word*>(memory);
        tile.out = reinterpret_cast<float*>(tile.query + rows * words_);
        tile.total = tile.out + rows * padded_;
        tile.position = reinterpret_cast<int64_t*>(tile.total + rows * kLanes);
        tile.largest = reinterpret_cast<float*>(tile.position + rows);
        for (int r = 0; r < num_rows; ++r) {
            const int64_t row = unit.span.begin + (mine.begin + r) / group_;
            const int head = unit.head * group_ + static_cast<int>((mine.begin + r) % group_);
            pack_head(tile.query + int64_t{r} * words_, call_.query, call_.query_rows ? call_.query_rows[row] : row, head, kv_.head_size, padded_, kv_.is_bf16());
            tile.position[r] = call_.positions[row];
            tile.largest[r] = kNothingSeen;
        }
        std::memset(tile.out, 0, sizeof(float) * num_rows * padded_);
        std::memset(tile.total, 0, sizeof(float) * num_rows * kLanes);
        return tile;
    }

    void finish(const Tile& tile, const Unit& unit) const {
        const int64_t first = rows_of(unit).begin;
        for (int r = 0; r < tile.num_rows; ++r) {
            float* const numbers = tile.out + int64_t{r} * padded_;
            const F16 share = splat(1.0f / sum(load(tile.total + r * kLanes)));
            const int64_t at = (unit.span.begin + (first + r) / group_) * call_.out.row_stride + (unit.head * group_ + (first + r) % group_) * call_.out.head_stride;
            const size_t size = static_cast<size_t>(kv_.head_size);
            if (call_.out.is_bf16) {
                uint16_t narrow[512];
                for (int i = 0; i < padded_; i += kLanes) store_bf16(narrow + i, mul(load(numbers + i), share));
                std::memcpy(static_cast<uint16_t*>(call_.out.data) + at, narrow, sizeof(uint16_t) * size);
            } else {
                for (int i = 0; i < padded_; i += kLanes) store(numbers + i, mul(load(numbers + i), share));
                std::memcpy(static_cast<float*>(call_.out.data) + at, numbers, sizeof(float) * size);
            }
        }
    }

    const KvLayer& kv_;
    const AttentionCall& call_;
    const int padded_, words_, group_, tile_rows_;
};

}  // namespace

int64_t first_wrong_row(const KvLayer& kv, const AttentionCall& call, int64_t num_tables, int64_t table_width) {
    for (Span span{0, 0}; span.end < call.num_rows;) {
        const int64_t row = span.end;
        if (call.requests[row] < 0 || call.requests[row] >= num_tables || call.positions[row] < 0) return row;
        span = span_from(call, row);
        const int64_t* blocks = call.block_tables + call.requests[span.begin] * call.table_stride;
        const int64_t last_block = call.positions[span.end - 1] / kBlockTokens;
        if (last_block >= table_width) return span.end - 1;
        for (int64_t block = 0; block <= last_block; ++block)
            if (blocks[block] < 0 || blocks[block] >= kv.num_blocks) return span.end - 1;
    }
    return -1;
}

void paged_attention(const KvLayer& kv, const AttentionCall& call, int thread, int num_threads) {
    Worker worker(kv, call);
    int64_t total = 0;
    for (Span span{0, 0}; span.end < call.num_rows;) {
        span = span_from(call, span.end);
        for (int64_t index = 0; index < worker.num_tiles(span); ++index) total += worker.cost({span, 0, index});
    }
    total *= kv.num_heads;
    // A unit belongs to the thread in whose share of the cost its middle lies. One is held back until the next is known.
    int64_t done = 0;
    Unit held{};
    bool is_held = false;
    for (Span span{0, 0}; span.end < call.num_rows;) {
        span = span_from(call, span.end);
        for (int head = 0; head < kv.num_heads; ++head)
            for (int64_t index = 0; index < worker.num_tiles(span); ++index) {
                const Unit unit{span, head, index};
                const int64_t cost = worker.cost(unit);
                const bool is_mine = (2 * done + cost) * num_threads / (2 * total) == thread;
                done += cost;
                if (!is_mine) continue;
                if (is_held) worker.attend(held, &unit);
                held = unit;
                is_held = true;
            }
    }
    if (is_held) worker.attend(held, nullptr);
}

}  // namespace tripod

// Returns -1, or the first row whose request, position or blocks do not exist (and then nothing is computed).
TRIPOD_API int64_t tripod_paged_attention(void* layer, int64_t num_blocks, int num_kv_heads, int head_size, int kv_format, void* query,
                                          int query_is_bf16, int64_t query_row_stride, int64_t query_head_stride, void* out, int num_heads,
                                          int64_t num_rows, const int64_t* requests, const int64_t* positions, const int64_t* block_tables,
                                          int64_t num_tables, int64_t table_width, float scale, int64_t window) {
    const tripod::KvLayer kv{static_cast<tripod::Word*>(layer), num_blocks, num_kv_heads, head_size, static_cast<tripod::KvFormat>(kv_format)};
    tripod::AttentionCall call{};
    call.query = {query, query_is_bf16 != 0, query_row_stride, query_head_stride};
    call.out = {out, query_is_bf16 != 0, int64_t{num_heads} * head_size, head_size};
    call.num_heads = num_heads;
    call.num_rows = num_rows;
    call.requests = requests;
    call.positions = positions;
    call.block_tables = block_tables;
    call.table_stride = table_width;
    call.scale = scale;
    call.window = window;
    const int64_t wrong = tripod::first_wrong_row(kv, call, num_tables, table_width);
    if (wrong < 0) tripod::parallel([&](int thread, int count) { tripod::paged_attention(kv, call, thread, count); });
    return wrong;
}
