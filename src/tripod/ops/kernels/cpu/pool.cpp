#include "pool.hpp"

#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <ctime>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <type_traits>
#include <vector>

namespace tripod {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kIdleSpin = std::chrono::microseconds(5);  // for the next region: the time between two calls from Python
constexpr auto kAwakeSpin = std::chrono::microseconds(1000);
constexpr auto kBarrierSpin = std::chrono::microseconds(1000);
// Where another program wants the cores, a thread that is waited for may not run: who spins for it burns the share of both, and who yields
// loses the rest of its turn. So there threads spin no longer than this, and sleep: who is woken gets a core soon.
constexpr auto kShortSpin = std::chrono::microseconds(20);
constexpr auto kSharedFor = std::chrono::seconds(1);  // until it is looked at again
constexpr auto kLookedAt = std::chrono::milliseconds(50);  // of regions, whose caller is on its core all the time if it is alone
constexpr int kSpinsBetweenClocks = 64;

// How long the calling thread has run.
inline Clock::duration time_on_core() {
    timespec time{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return std::chrono::seconds(time.tv_sec) + std::chrono::nanoseconds(time.tv_nsec);
}

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// A number that goes up, and threads that wait until it does: they spin for a while, then sleep.
class Counter {
  public:
    uint32_t read() const { return value_.load(std::memory_order_acquire); }

    void raise() {
        value_.fetch_add(1, std::memory_order_seq_cst);
        if (sleepers_.load(std::memory_order_seq_cst) > 0) {
            const std::lock_guard<std::mutex> lock(parking_);
            wake_.notify_all();
        }
    }

    void wait_beyond(uint32_t seen, Clock::duration spin) {
        const auto start = Clock::now();
        for (Clock::duration waited{}; waited < spin; waited = Clock::now() - start) {
            if (waited > kShortSpin) sched_yield();
            for (int spins = 0; spins < kSpinsBetweenClocks; ++spins) {
                if (read() != seen) return;
                pause();
            }
        }
        std::unique_lock<std::mutex> lock(parking_);
        sleepers_.fetch_add(1, std::memory_order_seq_cst);
        wake_.wait(lock, [&] { return value_.load(std::memory_order_seq_cst) != seen; });
        sleepers_.fetch_sub(1, std::memory_order_seq_cst);
    }

  private:
    alignas(64) std::atomic<uint32_t> value_{0};
    alignas(64) std::atomic<int> sleepers_{0};
    std::mutex parking_;
    std::condition_variable wake_;
};

class Pool {
  public:
    explicit Pool(int count) : count_(count) {
        try {
            for (int thread = 1; thread < count; ++thread) workers_.emplace_back([this, thread] { serve(thread); });
        } catch (const std::system_error&) {
            // The system grants fewer threads than asked: a smaller pool is right too. The workers read count_ after the first region began.
            count_ = 1 + static_cast<int>(workers_.size());
        }
    }

    ~Pool() {
        stopping_ = true;
        regions_.raise();
        for (std::thread& worker : workers_) worker.join();
    }

    int count() const { return count_; }
    bool is_shared() const { return is_shared_.load(std::memory_order_relaxed); }

    void run(Work work, void* context) {
        work_ = work;
        context_ = context;
        const auto start = Clock::now();
        is_shared_.store(start < shared_until_, std::memory_order_relaxed);
        const auto on_core = is_shared() ? Clock::duration{} : time_on_core();
        regions_.raise();
        work(context, 0, count_);
        barrier();
        if (!is_shared()) look_for_others(Clock::now() - start, time_on_core() - on_core);
    }

    void barrier() {
        const uint32_t phase = phases_.read();
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) == count_ - 1) {
            arrived_.store(0, std::memory_order_relaxed);
            return phases_.raise();
        }
        phases_.wait_beyond(phase, is_shared() ? kShortSpin : kBarrierSpin);
    }

    static std::atomic<bool> awake;

  private:
    void serve(int thread);
    // A caller that spins and yet does not run is kept from its core. (Where cores are shared it sleeps, which tells nothing.)
    void look_for_others(Clock::duration took, Clock::duration on_core) {
        looked_at_ += took;
        on_core_ += on_core;
        if (looked_at_ < kLookedAt) return;
        if (on_core_ < looked_at_ * 2 / 3) shared_until_ = Clock::now() + kSharedFor;
        looked_at_ = on_core_ = {};
    }

    int count_;
    Work work_ = nullptr;
    void* context_ = nullptr;
    bool stopping_ = false;
    std::atomic<bool> is_shared_{false};  // cores, with another program, as far as this region knows
    Clock::time_point shared_until_{};
    Clock::duration looked_at_{}, on_core_{};
    Counter regions_;  // begun
    Counter phases_;   // ended
    alignas(64) std::atomic<int> arrived_{0};
    std::vector<std::thread> workers_;
};

std::atomic<bool> Pool::awake{false};

std::mutex regions;               // held by the caller of a region, so that regions follow one another
int wanted = 1;
Pool* pool = nullptr;             // never destroyed: at exit its workers are parked, and the system ends them
thread_local Pool* inside = nullptr;  // the pool whose region this thread is in
thread_local bool is_alone = false;   // this thread does its own regions, beside those of others

// Torch's OpenMP, by the names under which GNU's, LLVM's and Intel's all answer.
struct OpenMP {
    void (*parallel)(void (*body)(void*), void* data, unsigned num_threads, unsigned flags);
    int (*max_threads)();
    int (*num_threads)();
    int (*thread)();
};

const OpenMP& openmp() {
    static const OpenMP found = [] {
        OpenMP all{};
        const auto find = [](auto& function, const char* name) {
            function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(RTLD_DEFAULT, name));
            return function != nullptr;
        };
        const bool is_whole = find(all.parallel, "GOMP_parallel") && find(all.max_threads, "omp_get_max_threads") &&
                              find(all.num_threads, "omp_get_num_threads") && find(all.thread, "omp_get_thread_num");
        return is_whole ? all : OpenMP{};
    }();
    return found;
}

void Pool::serve(int thread) {
    for (uint32_t seen = 0;;) {
        regions_.wait_beyond(seen, awake.load(std::memory_order_relaxed) && !is_shared() ? kAwakeSpin : kIdleSpin);
        ++seen;  // never more than one behind: a region ends only when all workers came to its last barrier
        if (stopping_) return;
        inside = this;
        work_(context_, thread, count_);
        inside = nullptr;
        barrier();
    }
}

// A child of fork() has one thread: it forgets the parent's pool and starts its own when it needs one. Holding `regions` across the
// fork means that no region was under way.
void before_fork() { regions.lock(); }
void in_parent() { regions.unlock(); }
void in_child() {
    pool = nullptr;
    regions.unlock();
}

}  // namespace

int num_threads() { return wanted; }

void set_num_threads(int count) {
    const std::lock_guard<std::mutex> lock(regions);
    wanted = count < 1 ? 1 : count;
    delete pool;
    pool = nullptr;
}

void hold_awake(bool awake) { Pool::awake.store(awake, std::memory_order_relaxed); }

void work_alone(bool alone) { is_alone = alone; }

void run_on_all(Work work, void* context) {
    if (is_alone) return work(context, 0, 1);
    if (inside != nullptr) {  // a region within a region: this thread does it all, and its barriers wait for nobody
        Pool* const outer = inside;
        inside = nullptr;
        work(context, 0, 1);
        inside = outer;
        return;
    }
    static const int registered = pthread_atfork(before_fork, in_parent, in_child);
    (void)registered;
    const std::lock_guard<std::mutex> lock(regions);
    if (wanted == 1) return work(context, 0, 1);
    if (pool == nullptr) pool = new Pool(wanted);
    inside = pool;
    pool->run(work, context);
    inside = nullptr;
}

bool has_threads_of_torch() { return openmp().parallel != nullptr; }

void run_on_those_of_torch(Work work, void* context) {
    if (!has_threads_of_torch() || is_alone || inside != nullptr) return run_on_all(work, context);
    const int count = openmp().max_threads();
    if (count == 1) return work(context, 0, 1);
    struct Region {
        Work work;
        void* context;
    } region{work, context};
    const auto on_each = [](void* data) {
        const Region& own = *static_cast<Region*>(data);
        own.work(own.context, openmp().thread(), openmp().num_threads());
    };
    openmp().parallel(on_each, &region, static_cast<unsigned>(count), 0);
}

void barrier() {
    if (inside != nullptr) inside->barrier();
}

void* scratch(Scratch slot, int64_t num_bytes) {
    struct Buffer {
        void* memory = nullptr;
        int64_t size = 0;
        ~Buffer() { std::free(memory); }
    };
    static thread_local Buffer buffers[static_cast<int>(Scratch::kCount)];
    Buffer& buffer = buffers[static_cast<int>(slot)];
    if (buffer.size < num_bytes) {
        std::free(buffer.memory);
        buffer.size = (num_bytes + num_bytes / 4 + 4095) / 4096 * 4096;
        buffer.memory = std::aligned_alloc(4096, static_cast<size_t>(buffer.size));
        if (buffer.memory == nullptr) {
            buffer.size = 0;
            throw std::bad_alloc();
        }
    }
    return buffer.memory;
}

}  // namespace tripod

TRIPOD_API int tripod_num_threads() { return tripod::num_threads(); }
TRIPOD_API void tripod_set_num_threads(int count) { tripod::set_num_threads(count); }
TRIPOD_API void tripod_work_alone(int alone) { tripod::work_alone(alone != 0); }
TRIPOD_API void tripod_hold_awake(int awake) { tripod::hold_awake(awake != 0); }
TRIPOD_API int tripod_has_threads_of_torch() { return tripod::has_threads_of_torch(); }

// For the tests of the pool: whether it found in its last region that another program wants its cores.
TRIPOD_API int tripod_is_shared() {
    const std::lock_guard<std::mutex> lock(tripod::regions);
    return tripod::pool != nullptr && tripod::pool->is_shared();
}

// Every thread adds one to each of its pieces, `rounds` times with a barrier between, so that
// counts[i] = rounds, and returns how many threads took part.
TRIPOD_API int tripod_count_pieces(int32_t* counts, int64_t pieces, int rounds) {
    int taking_part = 0;
    tripod::parallel([&](int thread, int count) {
        if (thread == 0) taking_part = count;
        for (int round = 0; round < rounds; ++round) {
            // Threads change places every round: a barrier that lets one through early makes two write the same piece.
            const tripod::Range mine = tripod::share(pieces, (thread + round) % count, count);
            for (int64_t piece = mine.begin; piece < mine.end; ++piece) counts[piece] = counts[piece] + 1;
            tripod::barrier();
        }
    });
    return taking_part;
}

// The same on those of torch, where there are no barriers: one round.
TRIPOD_API int tripod_count_pieces_of_torch(int32_t* counts, int64_t pieces) {
    int taking_part = 0;
    tripod::parallel_of_torch([&](int thread, int count) {
        if (thread == 0) taking_part = count;
        const tripod::Range mine = tripod::share(pieces, thread, count);
        for (int64_t piece = mine.begin; piece < mine.end; ++piece) ++counts[piece];
    });
    return taking_part;
}
