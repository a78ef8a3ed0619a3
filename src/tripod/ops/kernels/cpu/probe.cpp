// What this machine can do at this moment, for the benchmarks: how fast it reads memory, and how fast it multiplies in registers.
#include "pool.hpp"
#include "tiles.hpp"

using namespace tripod;

namespace {

constexpr int kSums = 12;  // independent, so that a multiplication never waits for the one before

// Every sum takes part in every round, from registers alone; the result is written so that nothing is left out.
template <class Step>
void multiply_in_registers(int64_t rounds, uint8_t* out) {
    typename Step::Sum sum[kSums];
    TRIPOD_UNROLL for (int i = 0; i < kSums; ++i) sum[i] = Step::zero();
    const I16 weights = isplat(0x01010101), x = isplat(0x01010101);
    for (int64_t round = 0; round < rounds; ++round) {
        TRIPOD_UNROLL for (int i = 0; i < kSums; ++i) {
            sum[i] = Step::dot(sum[i], weights, x);
#if defined(__AVX512F__)
            asm volatile("" : "+v"(sum[i]));  // not to be computed ahead of time
#endif
        }
    }
    TRIPOD_UNROLL for (int i = 0; i < kSums; ++i) Step::write(out + i * 64, sum[i]);
}

}  // namespace

// Reads the whole buffer once, each thread its part from front to back; returns the sum of its 32-bit words.
TRIPOD_API int32_t tripod_probe_read(const uint8_t* buffer, int64_t num_bytes) {
    uint32_t total = 0;
    const int64_t lines = num_bytes / 64;
    uint32_t* const parts = static_cast<uint32_t*>(scratch(Scratch::kInput, num_threads() * 64));
    std::memset(parts, 0, static_cast<size_t>(num_threads()) * 64);
    parallel_for(lines, [&](int64_t begin, int64_t end, int thread) {
        I16 sums[4] = {izeros(), izeros(), izeros(), izeros()};
        int64_t line = begin;
        for (; line + 4 <= end; line += 4)
            TRIPOD_UNROLL for (int i = 0; i < 4; ++i) sums[i] = iadd(sums[i], iload(buffer + (line + i) * 64));
        for (; line < end; ++line) sums[0] = iadd(sums[0], iload(buffer + line * 64));
        parts[thread * 16] += sum(iadd(iadd(sums[0], sums[1]), iadd(sums[2], sums[3])));
    });
    for (int thread = 0; thread < num_threads(); ++thread) total += parts[thread * 16];
    return static_cast<int32_t>(total);
}

// Multiplies in registers on every thread; returns how many multiplications and additions that was, all threads together.
TRIPOD_API int64_t tripod_probe_multiply(int32_t format, int64_t rounds) {
    parallel([&](int, int) {
        auto* const out = static_cast<uint8_t*>(scratch(Scratch::kPanel, kSums * 64));
        switch (static_cast<Format>(format)) {
            case Format::kF32: return multiply_in_registers<F32Step>(rounds, out);
            case Format::kBf16: return multiply_in_registers<Bf16Step>(rounds, out);
            default: return multiply_in_registers<Int8Step>(rounds, out);
        }
    });
    const int64_t products = format >= 2 ? 4 : 1 << format;
    return 2 * products * kLanes * kSums * rounds * num_threads();
}
