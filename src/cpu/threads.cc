#include "cpu/threads.h"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace penstock::cpu {
namespace {

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// The processor that this thread runs on; -1 where the system does not say.
int this_processor() {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1;
#endif
}

/// Have the calling thread run on another processor than this one from here on; whether there is
/// one that it may run on. What it may run on stays the same.
bool leave_processor(int processor) {
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return false;
  cpu_set_t others = allowed;
  CPU_CLR(processor, &others);
  if (CPU_COUNT(&others) == 0 || sched_setaffinity(0, sizeof others, &others) != 0) return false;
  sched_setaffinity(0, sizeof allowed, &allowed);
  return true;
#else
  (void)processor;
  return false;
#endif
}

// A worker that has just finished looks for the next job this long before it sleeps: the phases of
// one operation, and the operations of one network, follow each other closely, and waking a
// sleeping thread takes longer than that.
constexpr auto kSpinTime = std::chrono::microseconds(200);
constexpr int kSpinsPerLook = 64;  // at the clock

/// Wait for kSpinTime at most; whether it came true.
template <class Condition>
bool spin(const Condition& condition) {
  const auto begin = std::chrono::steady_clock::now();
  do {
    for (int i = 0; i < kSpinsPerLook; ++i) {
      if (condition()) return true;
      relax();
    }
  } while (std::chrono::steady_clock::now() - begin < kSpinTime);
  return false;
}

class Pool {
 public:
  void run(std::int64_t n, void (*fn)(void*, std::int64_t), void* user, int threads) {
    std::unique_lock<std::mutex> running(run_mutex_, std::try_to_lock);
    if (!running.owns_lock()) {
      for (std::int64_t i = 0; i < n; ++i) fn(user, i);
      return;
    }
    int helpers = static_cast<int>(n - 1 < threads - 1 ? n - 1 : threads - 1);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      try {
        while (workers_ < helpers) {
          std::thread(&Pool::work, this, workers_).detach();
          ++workers_;
        }
      } catch (const std::system_error&) {
        helpers = workers_;  // the system gives no more threads; fewer do the same work
      }
      fn_ = fn;
      user_ = user;
      count_ = n;
      next_.store(0, std::memory_order_relaxed);
      error_ = nullptr;
      wanted_ = helpers;
      processor_ = this_processor();
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    drain();
    {
      // Workers that have not come by now find nothing to do: on a busy machine, waiting for the
      // system to run them can take longer than the job.
      std::lock_guard<std::mutex> lock(mutex_);
      wanted_ = 0;
    }
    const auto done = [this] { return active_.load(std::memory_order_acquire) == 0; };
    if (!spin(done)) {
      std::unique_lock<std::mutex> lock(mutex_);
      done_.wait(lock, done);
    }
    if (error_ != nullptr) std::rethrow_exception(error_);
  }

 private:
  void drain() {
    for (;;) {
      const std::int64_t i = next_.fetch_add(1, std::memory_order_relaxed);
      if (i >= count_) return;
      try {
        fn_(user_, i);
      } catch (...) {
        std::lock_guard<std::mutex> lock(mutex_);
        if (error_ == nullptr) error_ = std::current_exception();
      }
    }
  }

  void work(int id);

  std::mutex run_mutex_;  // one job at a time
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::atomic<std::uint64_t> generation_{0};
  std::atomic<std::int64_t> next_{0};
  std::atomic<int> active_{0};
  std::int64_t count_ = 0;
  void (*fn_)(void*, std::int64_t) = nullptr;
  void* user_ = nullptr;
  int wanted_ = 0;
  int workers_ = 0;
  int processor_ = -1;  // the caller's
  std::exception_ptr error_;
};

thread_local bool inside_item = false;

void Pool::work(int id) {
  inside_item = true;
  std::uint64_t seen = 0;
  bool beside = false;  // on the caller's processor, for want of another
  for (;;) {
    if (!beside) spin([&] { return generation_.load(std::memory_order_acquire) != seen; });
    bool mine = false;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return generation_.load(std::memory_order_relaxed) != seen; });
      // Systems wake threads beside the one that wakes them, and may leave them there for tens of
      // milliseconds, where they only take the caller's time: most of all those that wait in a
      // loop.
      if (const int taken = processor_; taken >= 0 && taken == this_processor()) {
        lock.unlock();
        beside = !leave_processor(taken);
        lock.lock();
      } else {
        beside = false;
      }
      seen = generation_.load(std::memory_order_relaxed);
      mine = id < wanted_;
      if (mine) active_.fetch_add(1, std::memory_order_relaxed);
    }
    if (!mine) continue;
    drain();
    if (active_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      {
        std::lock_guard<std::mutex> lock(mutex_);
      }
      done_.notify_one();
    }
  }
}

// The pool outlives every static object (its threads may still be asleep in it at exit), and a
// forked child, which has none of the threads, starts a new one in the same place.
alignas(Pool) unsigned char pool_storage[sizeof(Pool)];

void construct_pool() { new (pool_storage) Pool; }

Pool& pool() {
  static const bool constructed = [] {
    construct_pool();
    pthread_atfork(nullptr, nullptr, construct_pool);
    return true;
  }();
  (void)constructed;
  return *std::launder(reinterpret_cast<Pool*>(pool_storage));
}

constexpr long kMostThreads = 4096;

int default_threads() {
  if (const char* env = std::getenv("PENSTOCK_NUM_THREADS"); env != nullptr) {
    char* end = nullptr;
    const long n = std::strtol(env, &end, 10);
    if (*end == '\0' && n >= 1 && n <= kMostThreads) return static_cast<int>(n);
  }
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
#endif
  const unsigned n = std::thread::hardware_concurrency();
  return n == 0 ? 1 : static_cast<int>(n);
}

std::atomic<int>& configured_threads() {
  static std::atomic<int> n{default_threads()};
  return n;
}

}  // namespace

int thread_count() { return configured_threads().load(std::memory_order_relaxed); }
void set_thread_count(int n) { configured_threads().store(n, std::memory_order_relaxed); }

void parallel_for(std::int64_t n, void (*fn)(void*, std::int64_t), void* user) {
  const int threads = thread_count();
  if (threads <= 1 || n <= 1 || inside_item) {
    for (std::int64_t i = 0; i < n; ++i) fn(user, i);
    return;
  }
  struct Guard {
    Guard() { inside_item = true; }
    ~Guard() { inside_item = false; }
  } guard;
  pool().run(n, fn, user, threads);
}

}  // namespace penstock::cpu
