// One pool of threads for all kernels of the room but a trainer's.
//
// The caller is thread 0. Inside a parallel region threads meet at a spin barrier (0.1 us); between regions the workers park, and
// spin only while a step holds them awake (hold_awake), because a thread that spins beside another library's threads slows both tenfold.
// Where another program wants the cores, which a region's caller sees from the time that it was kept from its own, threads that wait sleep.
// Work is split statically: the same thread reads the same weights in every step, in one sequential stream.
//
// A trainer's kernels stand between torch's operations, whose threads spin for milliseconds after each of them: workers of ours would share
// their cores. So those kernels run on torch's own threads (*_of_torch), where its OpenMP is found, and on the pool elsewhere.
#pragma once

#include <cstdint>
#include <type_traits>

// What Python calls through ctypes. Everything else stays inside its shared object, so that two levels can be loaded side by side.
#define TRIPOD_API extern "C" __attribute__((visibility("default")))

namespace tripod {

struct Range {
    int64_t begin, end;
};

// The contiguous part of `pieces` that belongs to one thread; parts differ by one piece at most.
inline Range share(int64_t pieces, int thread, int num_threads) {
    return {pieces * thread / num_threads, pieces * (thread + 1) / num_threads};
}

int num_threads();
void set_num_threads(int count);  // stops the workers; new ones start with the next region
void work_alone(bool alone);      // from now on the calling thread runs its regions by itself, at the same time as others run theirs
void hold_awake(bool awake);      // while true, workers spin for the next region (a millisecond at most) instead of parking

// Runs work(context, thread, num_threads) on every thread, and returns when all have returned. Called from within a region, or for a
// pool of one, it runs on the calling thread alone. Regions of different callers follow one another.
using Work = void (*)(void* context, int thread, int num_threads);
void run_on_all(Work work, void* context);

// The same on as many of torch's threads as the calling thread may use; barrier() has no meaning there. As with torch's own operations, a
// child of fork() must ask for one thread.
void run_on_those_of_torch(Work work, void* context);
bool has_threads_of_torch();

// Inside a region: waits until every thread has come here. All threads must call it equally often.
void barrier();

using Run = void (*)(Work work, void* context);

template <Run kRun = run_on_all, class Body>  // body(thread, num_threads)
void parallel(Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    kRun([](void* context, int thread, int count) { (*static_cast<Plain*>(context))(thread, count); },
         const_cast<void*>(static_cast<const void*>(&body)));
}

template <Run kRun = run_on_all, class Body>  // body(begin, end, thread), once a thread that has something to do; without barriers
void parallel_for(int64_t pieces, Body&& body) {
    if (pieces == 1) return body(int64_t{0}, pieces, 0);  // others would be waited for, and do nothing
    parallel<kRun>([&](int thread, int count) {
        const Range mine = share(pieces, thread, count);
        if (mine.begin < mine.end) body(mine.begin, mine.end, thread);
    });
}

template <class Body> void parallel_of_torch(Body&& body) { parallel<run_on_those_of_torch>(static_cast<Body&&>(body)); }
template <class Body> void parallel_for_of_torch(int64_t pieces, Body&& body) {
    parallel_for<run_on_those_of_torch>(pieces, static_cast<Body&&>(body));
}

// Memory of the calling thread, 64-byte aligned, reused by the next call with the same slot: the contents are undefined.
enum class Scratch { kInput, kPanel, kRow, kAttention, kStretch, kCount };
void* scratch(Scratch slot, int64_t num_bytes);

}  // namespace tripod
