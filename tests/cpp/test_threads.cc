// The CPU backend's own threads: who does the items of a job, and on which processors.

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <numeric>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "core/backend.h"
#include "penstock/config.h"

#if defined(__linux__)
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>
#endif

namespace penstock::tests {
namespace {

constexpr double kWork = 1e9;  // never left to one thread

class Threads : public testing::Test {
 protected:
  void TearDown() override { set_num_threads(before_); }

 private:
  int before_ = num_threads();
};

/// f(i) for items that last long enough for every thread to get some.
template <class F>
void for_each_slowly(std::int64_t n, const F& f) {
  for_each(Context::cpu(), n, kWork, [&](std::int64_t i) {
    std::this_thread::sleep_for(std::chrono::microseconds(200));
    f(i);
  });
}

TEST_F(Threads, DoEveryItemOnce) {
  for (const int threads : {1, 2, 3, 8}) {
    set_num_threads(threads);
    for (const std::int64_t n : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> done(static_cast<std::size_t>(n));
      for_each(Context::cpu(), n, kWork,
               [&](std::int64_t i) { ++done[static_cast<std::size_t>(i)]; });
      for (const auto& times : done) EXPECT_EQ(times.load(), 1) << threads << " threads";
    }
  }
}

TEST_F(Threads, ShareAJob) {
  set_num_threads(3);
  std::mutex mutex;
  std::set<std::thread::id> seen;
  // The system may be slow to run a thread that has just begun.
  for (int round = 0; round < 50 && seen.size() < 3; ++round) {
    for_each_slowly(30, [&](std::int64_t) {
      const std::lock_guard<std::mutex> lock(mutex);
      seen.insert(std::this_thread::get_id());
    });
  }
  EXPECT_EQ(seen.size(), 3U);
  EXPECT_EQ(seen.count(std::this_thread::get_id()), 1U);
}

TEST_F(Threads, HandOnAnExceptionAndGoOn) {
  set_num_threads(2);
  for (int round = 0; round < 3; ++round) {
    EXPECT_THROW(for_each_slowly(20,
                                 [](std::int64_t i) {
                                   if (i == 5) throw std::runtime_error("of an item");
                                 }),
                 std::runtime_error);
    std::atomic<int> done{0};
    for_each_slowly(20, [&](std::int64_t) { ++done; });
    EXPECT_EQ(done.load(), 20);
  }
}

#if defined(__linux__)
std::vector<int> allowed_processors() {
  cpu_set_t set;
  EXPECT_EQ(sched_getaffinity(0, sizeof set, &set), 0);
  std::vector<int> all;
  for (int i = 0; i < CPU_SETSIZE; ++i) {
    if (CPU_ISSET(i, &set)) all.push_back(i);
  }
  return all;
}

TEST_F(Threads, MayStillRunOnEveryProcessor) {
  set_num_threads(4);
  const std::vector<int> expected = allowed_processors();
  std::mutex mutex;
  for (int round = 0; round < 20; ++round) {
    for_each_slowly(16, [&](std::int64_t) {
      const std::vector<int> allowed = allowed_processors();
      const std::lock_guard<std::mutex> lock(mutex);
      EXPECT_EQ(allowed, expected);
    });
    // Asleep, so that the next job wakes them beside its caller.
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

/// In a process of its own, whose threads have one processor alone.
int sum_on_one_processor() {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(allowed_processors().front(), &one);
  if (sched_setaffinity(0, sizeof one, &one) != 0) return 1;
  set_num_threads(3);
  for (int round = 0; round < 200; ++round) {
    std::vector<int> values(100);
    for_each(Context::cpu(), 100, kWork,
             [&](std::int64_t i) { values[static_cast<std::size_t>(i)] = static_cast<int>(i); });
    if (std::accumulate(values.begin(), values.end(), 0) != 4950) return 2;
  }
  return 0;
}

TEST_F(Threads, WorkOnOneProcessor) {
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    alarm(60);  // a child that hangs must not hang the tests
    _exit(sum_on_one_processor());
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}
#endif

}  // namespace
}  // namespace penstock::tests
