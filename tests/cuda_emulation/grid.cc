// Runs grids. The blocks that must be resident together are prepared, run and finished, then the
// next ones. A thread is a function called on a fibre: a fibre calls one thread after the other
// until one of them waits, and stays with that thread until it returns; the other threads go on
// with another fibre. So a kernel without barriers costs one call per thread, and any barrier is a
// real meeting point.
//
// Which thread goes on is chosen anew for each set of blocks, by one of two rules: any at random,
// or always the one that became ready last, which lets a warp or a block run ahead of the others as
// far as the barriers allow.

#include "grid.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <numeric>

#include "cuda_emulation/control.h"

namespace cuda_emulation {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr std::size_t kSharedGuard = 0;  // the sanitizer sees the end of an allocation
#else
constexpr std::size_t kSharedGuard = 64;
#endif
constexpr unsigned char kGuard = 0xdb;
constexpr unsigned char kPoison = 0xff;

std::uint64_t seed_from_environment() {
  const char* text = std::getenv("PENSTOCK_EMULATION_SEED");
  return text == nullptr || *text == '\0' ? std::uint64_t{1} : std::strtoull(text, nullptr, 10);
}

std::atomic<std::uint64_t>& seed_value() {
  static std::atomic<std::uint64_t> value{seed_from_environment()};
  return value;
}
std::atomic<std::uint64_t> launches{0};

uint3 coordinates(std::uint64_t i, const dim3& shape) {
  const std::uint64_t plane = std::uint64_t{shape.x} * shape.y;
  return {static_cast<unsigned>(i % shape.x), static_cast<unsigned>(i % plane / shape.x),
          static_cast<unsigned>(i / plane)};
}

std::uint64_t count(const dim3& d) { return std::uint64_t{d.x} * d.y * d.z; }

}  // namespace

void set_seed(std::uint64_t seed) {
  seed_value() = seed;
  launches = 0;
}
std::uint64_t seed() { return seed_value(); }

cudaError_t run_grid(const Launch& launch) {
  Random random(seed() * 0x2545f4914f6cdd1du + launches++);
  return Executor::current().run(launch, seed() == 0 ? nullptr : &random);
}

void FreeMemory::operator()(unsigned char* p) const { std::free(p); }

void Copy::deliver() const {
  std::memcpy(to, from, valid);
  std::memset(to + valid, 0, bytes - valid);
}

// ---- launches ----------------------------------------------------------------------------------

Executor& Executor::current() {
  thread_local const std::unique_ptr<Executor> executor(new Executor());
  return *executor;
}

cudaError_t Executor::run(const Launch& launch, Random* random) {
  launch_ = &launch;
  random_ = random;
  error_ = cudaSuccess;
  aborted_ = abandoned_ = false;
  gridDim = launch.grid;
  blockDim = launch.block;
  std::vector<std::uint64_t> order(count(launch.grid) / count(launch.cluster));
  std::iota(order.begin(), order.end(), std::uint64_t{0});
  if (random_ != nullptr) random_->shuffle(order.begin(), order.end());
  if (launch.cooperative) {
    prepare(order);
    run_threads();
    finish();
  } else {
    for (const std::uint64_t cluster : order) {
      prepare({cluster});
      run_threads();
      finish();
      if (aborted_) break;
    }
  }
  launch_ = nullptr;
  if (exception_) std::rethrow_exception(std::exchange(exception_, nullptr));
  return error_;
}

/// Make these clusters' blocks and threads, none of them started.
void Executor::prepare(const std::vector<std::uint64_t>& clusters) {
  const dim3& shape = launch_->cluster;
  const dim3 grid(launch_->grid.x / shape.x, launch_->grid.y / shape.y, launch_->grid.z / shape.z);
  const auto per_cluster = static_cast<std::size_t>(count(shape));
  const auto per_block = static_cast<unsigned>(count(launch_->block));
  resident_ = clusters.size() * per_cluster;
  while (clusters_.size() < clusters.size()) clusters_.push_back(std::make_unique<Cluster>());
  while (blocks_.size() < resident_) blocks_.push_back(std::make_unique<Block>());
  if (threads_.size() < resident_ * per_block) threads_.resize(resident_ * per_block);
  order_.resize(resident_ * per_block);
  depth_first_ = random_ != nullptr && random_->below(2) == 0;

  std::vector<unsigned> ranks(per_cluster);
  std::iota(ranks.begin(), ranks.end(), 0u);
  for (std::size_t b = 0; b < resident_; ++b) {
    Cluster& cluster = *clusters_[b / per_cluster];
    if (b % per_cluster == 0) {
      cluster.blocks.assign(per_cluster, nullptr);
      cluster.live = static_cast<unsigned>(per_cluster) * per_block;
      cluster.arrived = cluster.phase = 0;
      cluster.waiting.clear();
      if (random_ != nullptr) random_->shuffle(ranks.begin(), ranks.end());
    }
    Block& block = *blocks_[b];
    block.rank = ranks[b % per_cluster];
    const uint3 first = coordinates(clusters[b / per_cluster], grid);
    const uint3 within = coordinates(block.rank, shape);
    block.index = {first.x * shape.x + within.x, first.y * shape.y + within.y,
                   first.z * shape.z + within.z};
    block.cluster = &cluster;
    cluster.blocks[block.rank] = &block;
    block.begun = false;
    block.live = per_block;
    block.threads = &threads_[b * per_block];
    block.counting = 0;
    block.warps.resize((per_block + kWarp - 1) / kWarp);
    for (std::size_t w = 0; w < block.warps.size(); ++w) {
      const unsigned lanes = std::min(per_block - static_cast<unsigned>(w) * kWarp, kWarp);
      block.warps[w].present = lanes == kWarp ? ~0u : (1u << lanes) - 1u;
      block.warps[w].ended = 0;
      block.warps[w].open.clear();
    }
    for (Barrier& barrier : block.barriers) {
      barrier.threads = barrier.arrived = 0;
      barrier.waiting.clear();
    }
    // Without guards an allocation of its own for each block, so that the sanitizer sees its
    // bounds.
    if (block.shared == nullptr || block.shared_bytes != launch_->shared_bytes ||
        kSharedGuard == 0) {
      block.shared.reset(static_cast<unsigned char*>(
          std::malloc(std::max<std::size_t>(launch_->shared_bytes + kSharedGuard, 1))));
      if (block.shared == nullptr) throw std::bad_alloc();
      block.shared_bytes = launch_->shared_bytes;
    }
    std::memset(block.shared.get() + block.shared_bytes, kGuard, kSharedGuard);

    uint3 index = {};
    for (unsigned i = 0; i < per_block; ++i) {
      Thread& t = block.threads[i];
      t.index = index;
      if (++index.x == launch_->block.x) {
        index.x = 0;
        if (++index.y == launch_->block.y) {
          index.y = 0;
          ++index.z;
        }
      }
      t.rank = i;
      t.block = &block;
      t.waits_for = nullptr;
      t.cluster_arrived = false;
      t.copies.clear();
      t.committed = 0;
      order_[b * per_block + i] = static_cast<unsigned>(b * per_block + i);
    }
    if (random_ != nullptr) {
      const auto begin = order_.begin() + static_cast<std::ptrdiff_t>(b * per_block);
      random_->shuffle(begin, begin + per_block);
    }
  }
  next_ = 0;
  ready_.clear();
  waiting_on_.clear();
  transfers.clear();
  grid_arrived.clear();
}

/// What is wrong with the blocks after their last thread.
void Executor::finish() {
  current_ = nullptr;
  for (std::size_t b = 0; b < resident_ && !aborted_; ++b) {
    const Block& block = *blocks_[b];
    for (std::size_t i = 0; i < kSharedGuard; ++i) {
      if (block.shared[block.shared_bytes + i] == kGuard) continue;
      report("block (%u, %u, %u) wrote past the end of its %zu bytes of shared memory",
             block.index.x, block.index.y, block.index.z, block.shared_bytes);
      error_ = cudaErrorIllegalAddress;
      aborted_ = true;
      break;
    }
  }
  for (const Transfer& t : transfers) {
    if (aborted_ || t.bytes == 0) continue;
    report("a block ended while a bulk copy into its shared memory was under way");
    error_ = cudaErrorLaunchFailure;
    aborted_ = true;
  }
}

// ---- threads -----------------------------------------------------------------------------------

void Executor::run_threads() {
  for (;;) {
    if (aborted_ && !abandoned_) abandon();
    if (next_starts()) {
      enter(idle_fibre(), nullptr);
    } else if (!ready_.empty()) {
      Thread* t = take_ready();
      enter(t->fibre, t);
    } else if (!deliver_transfer()) {
      if (idle_.size() == fibres_.size()) return;
      report_deadlock();
    }
  }
}

/// Whether the next thing to do is to start a thread, and not to go on with one.
bool Executor::next_starts() {
  const std::size_t left = order_.size() - next_;
  if (left == 0) return false;
  if (random_ == nullptr || ready_.empty()) return true;
  return !depth_first_ && random_->below(left + ready_.size()) < left;
}

Thread* Executor::take_ready() {
  if (random_ != nullptr) {
    if (!depth_first_) std::swap(ready_[random_->below(ready_.size())], ready_.back());
    Thread* t = ready_.back();
    ready_.pop_back();
    return t;
  }
  Thread* t = ready_.front();
  ready_.pop_front();
  return t;
}

Fibre* Executor::idle_fibre() {
  if (idle_.empty()) {
    fibres_.push_back(std::make_unique<Fibre>(&Executor::work, this));
    idle_.push_back(fibres_.back().get());
  }
  Fibre* fibre = idle_.back();
  idle_.pop_back();
  return fibre;
}

void Executor::enter(Fibre* fibre, Thread* t) {
  current_ = t;
  if (t != nullptr) {
    threadIdx = t->index;
    blockIdx = t->block->index;
  } else {
    starting_ = fibre;
  }
  fibre->enter();
}

/// What a fibre does: take threads that have not started, one after the other.
void Executor::work(void* user) {
  auto* executor = static_cast<Executor*>(user);
  Fibre* self = executor->starting_;
  for (;;) {
    while (executor->next_starts()) {
      Thread& t = executor->threads_[executor->order_[executor->next_++]];
      t.fibre = self;
      executor->current_ = &t;
      threadIdx = t.index;
      blockIdx = t.block->index;
      try {
        if (!t.block->begun) {
          t.block->begun = true;
          std::memset(t.block->shared.get(), kPoison, t.block->shared_bytes);
        }
        executor->launch_->body();
        executor->end_thread();
      } catch (const Aborted&) {
      } catch (...) {
        executor->exception_ = std::current_exception();
        executor->aborted_ = true;
      }
      if (executor->aborted_) break;
    }
    executor->idle_.push_back(self);
    self->leave();
  }
}

/// A thread has returned: barriers that waited for it alone open.
void Executor::end_thread() {
  Thread& t = self();
  Block& block = *t.block;
  --block.live;
  Barrier& all = block.barriers[0];
  if (!all.waiting.empty() && all.waiting.size() == block.live) {
    block.counted = std::exchange(block.counting, 0u);
    release(&all.waiting);
  }
  Cluster& cluster = *block.cluster;
  --cluster.live;
  if (t.cluster_arrived && t.cluster_phase == cluster.phase) --cluster.arrived;
  end_of_cluster_phase(&cluster);
  // Others may no longer touch what this block shared with them.
  if (block.live == 0 && cluster.blocks.size() > 1) {
    std::memset(block.shared.get(), kPoison, block.shared_bytes);
  }
  Warp& warp = warp_of(t);
  warp.ended |= 1u << t.rank % kWarp;
  for (std::size_t i = warp.open.size(); i-- > 0;) end_together(&block, t.rank / kWarp, i);
}

Thread& Executor::self() {
  if (current_ == nullptr) {
    std::fputs("cuda_emulation: a device function was called outside a kernel\n", stderr);
    std::abort();
  }
  return *current_;
}

void Executor::wait(const char* what, Place at) {
  Thread& t = self();
  t.waits_for = what;
  t.place = at;
  t.fibre->leave();
  t.waits_for = nullptr;
  if (aborted_) throw Aborted();
}

void Executor::release(std::vector<Thread*>* waiting) {
  if (random_ != nullptr) random_->shuffle(waiting->begin(), waiting->end());
  ready_.insert(ready_.end(), waiting->begin(), waiting->end());
  waiting->clear();
}

void Executor::wait_on(const void* address, const char* what, Place at) {
  waiting_on_[address].push_back(&self());
  wait(what, at);
}

void Executor::release_on(const void* address) {
  const auto found = waiting_on_.find(address);
  if (found == waiting_on_.end()) return;
  std::vector<Thread*> waiting = std::move(found->second);
  waiting_on_.erase(found);
  release(&waiting);
}

/// Nothing else can run: let one of the copies arrive that somebody waits for.
bool Executor::deliver_transfer() {
  std::vector<std::size_t> candidates;
  for (std::size_t i = 0; i < transfers.size(); ++i) {
    if (waited_on(transfers[i].barrier)) candidates.push_back(i);
  }
  if (candidates.empty()) return false;
  const std::size_t i = candidates[random_ == nullptr ? 0 : random_->below(candidates.size())];
  current_ = nullptr;
  const Transfer transfer = std::move(transfers[i]);
  transfers.erase(transfers.begin() + static_cast<std::ptrdiff_t>(i));
  for (const Copy& copy : transfer.copies) copy.deliver();
  try {
    complete_transfer(transfer);
  } catch (const Aborted&) {
  }
  return true;
}

// ---- faults ------------------------------------------------------------------------------------

void Executor::report_list(const char* format, std::va_list arguments) {
  char text[1024];
  std::vsnprintf(text, sizeof text, format, arguments);
  if (current_ != nullptr) {
    const uint3 b = current_->block->index, t = current_->index;
    std::fprintf(stderr, "cuda_emulation: block (%u, %u, %u), thread (%u, %u, %u): %s\n", b.x, b.y,
                 b.z, t.x, t.y, t.z, text);
  } else {
    std::fprintf(stderr, "cuda_emulation: %s\n", text);
  }
}

void Executor::report(const char* format, ...) {
  std::va_list arguments;
  va_start(arguments, format);
  report_list(format, arguments);
  va_end(arguments);
}

void Executor::fail(cudaError_t error) {
  error_ = error;
  aborted_ = true;
  throw Aborted();
}

void fault(const char* format, ...) {
  Executor& executor = Executor::current();
  std::va_list arguments;
  va_start(arguments, format);
  executor.report_list(format, arguments);
  va_end(arguments);
  executor.fail(cudaErrorLaunchFailure);
}

/// Every thread that is left waits for one of the others.
void Executor::report_deadlock() {
  current_ = nullptr;
  report("deadlock: no thread can go on. Waiting are, of each place, one thread:");
  std::vector<const Thread*> shown;
  for (const unsigned i : order_) {
    const Thread& t = threads_[i];
    if (t.waits_for == nullptr) continue;
    const auto same = [&](const Thread* s) { return s->place.same_as(t.place); };
    if (std::any_of(shown.begin(), shown.end(), same)) continue;
    shown.push_back(&t);
    report("  block (%u, %u, %u), thread (%u, %u, %u) for %s at %s:%d", t.block->index.x,
           t.block->index.y, t.block->index.z, t.index.x, t.index.y, t.index.z, t.waits_for,
           t.place.file, t.place.line);
  }
  // A device would hang; where a watchdog ends the kernel, this is its error.
  error_ = cudaErrorLaunchTimeout;
  aborted_ = true;
}

/// Unwind every thread that waits, start no other.
void Executor::abandon() {
  abandoned_ = true;
  next_ = order_.size();
  waiting_on_.clear();
  transfers.clear();
  ready_.clear();
  for (const unsigned i : order_) {
    if (threads_[i].waits_for != nullptr) ready_.push_back(&threads_[i]);
  }
}

}  // namespace cuda_emulation
