// The running of grids: what the runtime's launches call, and the state that the files which
// implement device functions share.
#pragma once

#include <cuda_runtime.h>

#include <cstdarg>
#include <cstdint>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cuda_emulation/execution.h"
#include "fibre.h"

namespace cuda_emulation {

/// splitmix64: small, and every seed is good.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next() {
    std::uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  /// In [0, n), n below 2^32; by a multiplication, since every switch of threads takes one.
  std::size_t below(std::size_t n) { return static_cast<std::size_t>((next() >> 32) * n >> 32); }
  template <class Iterator>
  void shuffle(Iterator first, Iterator last) {
    for (auto n = last - first; n > 1; --n) {
      std::swap(first[n - 1], first[below(static_cast<std::size_t>(n))]);
    }
  }

 private:
  std::uint64_t state_;
};

/// A legal launch (runtime.cc has checked it).
struct Launch {
  dim3 grid, block, cluster;
  std::size_t shared_bytes = 0;
  bool cooperative = false;
  std::function<void()> body;  // what each thread calls; holds the arguments
};

/// Run every thread of every block, in an order from the seed.
cudaError_t run_grid(const Launch&);

// ---- state -------------------------------------------------------------------------------------

constexpr unsigned kWarp = 32;
constexpr unsigned kNamedBarriers = 16;

/// Thrown through a kernel's frames when its launch has failed.
struct Aborted {};

struct Copy {
  unsigned char* to;
  const unsigned char* from;
  unsigned bytes, valid;
  unsigned group;  // number of the commit that it belongs to
  void deliver() const;
};

/// Copies that an mbarrier is told about: a bulk copy's bytes, or one arrival.
struct Transfer {
  std::uint64_t* barrier;
  std::vector<Copy> copies;
  unsigned bytes;  // 0: an arrival
  Place place;
};

struct Block;

struct Thread {
  uint3 index = {};
  unsigned rank = 0;  // within the block
  Block* block = nullptr;
  Fibre* fibre = nullptr;
  const char* waits_for = nullptr;  // null: runs or is ready
  Place place = {};
  void* offered = nullptr;  // to the warp
  bool cluster_arrived = false;
  unsigned cluster_phase = 0;
  std::vector<Copy> copies;
  unsigned committed = 0;
};

struct Together {
  const char* name;
  unsigned mask, arrived;
  void (*operation)(void* const*);
};

struct Warp {
  unsigned present = 0, ended = 0;
  std::vector<Together> open;
};

struct Barrier {
  unsigned threads = 0;  // that it is for
  unsigned arrived = 0;
  std::vector<unsigned> lanes;  // that have arrived, by warp
  std::vector<Thread*> waiting;
};

struct Cluster {
  std::vector<Block*> blocks;  // by rank
  unsigned live = 0, arrived = 0, phase = 0;
  std::vector<Thread*> waiting;
};

struct FreeMemory {
  void operator()(unsigned char* p) const;
};

struct Block {
  uint3 index = {};
  unsigned rank = 0;  // in the cluster
  Cluster* cluster = nullptr;
  bool begun = false;
  unsigned live = 0;
  Thread* threads = nullptr;
  std::vector<Warp> warps;
  Barrier barriers[kNamedBarriers];
  unsigned counting = 0, counted = 0;  // for block_count
  std::unique_ptr<unsigned char[], FreeMemory> shared;
  std::size_t shared_bytes = 0;

  bool holds(const void* p, std::size_t bytes) const {
    const auto at = reinterpret_cast<std::uintptr_t>(p);
    const auto first = reinterpret_cast<std::uintptr_t>(shared.get());
    return at >= first && bytes <= shared_bytes && at - first <= shared_bytes - bytes;
  }
};

/// Runs the launches of one operating-system thread: in turn the sets of blocks that must be
/// resident together (a block, a cluster, or a cooperative grid).
class Executor {
 public:
  static Executor& current();

  cudaError_t run(const Launch& launch, Random* random);

  Thread& self();
  Warp& warp_of(const Thread& t) { return t.block->warps[t.rank / kWarp]; }
  const Launch& launch() const { return *launch_; }

  /// Leave the running thread until something makes it ready; throws Aborted if the launch failed.
  void wait(const char* what, Place at);
  /// Make all of them ready.
  void release(std::vector<Thread*>* waiting);
  /// Make the running thread ready, and let no thread run ahead of it for ever.
  void stand_back() {
    depth_first_ = false;
    ready_.push_back(&self());
  }
  /// The same for what waits for something in memory.
  void wait_on(const void* address, const char* what, Place at);
  void release_on(const void* address);
  bool waited_on(const void* address) const { return waiting_on_.count(address) != 0; }

  void report(const char* format, ...) __attribute__((format(printf, 2, 3)));
  void report_list(const char* format, std::va_list arguments);
  [[noreturn]] void fail(cudaError_t error);

  /// Do what is due once all that an exchange, a phase or a barrier waits for are there.
  void end_together(Block* block, unsigned warp, std::size_t i);
  void end_of_cluster_phase(Cluster* cluster);
  void complete_transfer(const Transfer& transfer);

  std::vector<Transfer> transfers;
  std::unordered_map<const void*, unsigned> grid_arrived;  // by word

 private:
  static void work(void* user);
  void run_threads();
  void end_thread();
  void prepare(const std::vector<std::uint64_t>& clusters);
  void finish();
  bool next_starts();
  Thread* take_ready();
  Fibre* idle_fibre();
  void enter(Fibre* fibre, Thread* t);
  bool deliver_transfer();
  void report_deadlock();
  void abandon();

  const Launch* launch_ = nullptr;
  Random* random_ = nullptr;  // null: natural order
  bool depth_first_ = false;
  cudaError_t error_ = cudaSuccess;
  bool aborted_ = false, abandoned_ = false;
  std::exception_ptr exception_;

  std::vector<std::unique_ptr<Cluster>> clusters_;
  std::vector<std::unique_ptr<Block>> blocks_;  // in the order in which they start
  std::size_t resident_ = 0;                    // blocks in use
  std::vector<Thread> threads_;
  std::vector<unsigned> order_;  // threads in the order in which they start
  std::size_t next_ = 0;
  std::deque<Thread*> ready_;
  std::vector<Thread*> released_lanes_;  // end_together's, kept for its memory
  std::unordered_map<const void*, std::vector<Thread*>> waiting_on_;
  std::vector<std::unique_ptr<Fibre>> fibres_;
  std::vector<Fibre*> idle_;
  Fibre* starting_ = nullptr;
  Thread* current_ = nullptr;
};

}  // namespace cuda_emulation
