// Barriers of the block, the cluster and the grid; what the lanes of a warp do together.

#include <algorithm>

#include "grid.h"

namespace cuda_emulation {
namespace {

/// Count the running thread in at __syncthreads and wait for the others.
void meet_block(Executor& executor, Place at) {
  Thread& t = executor.self();
  Barrier& barrier = t.block->barriers[0];
  if (!barrier.waiting.empty()) {
    const Place& other = barrier.waiting.front()->place;
    if (!at.same_as(other)) {
      fault("threads meet at two barriers: %s:%d and %s:%d", at.file, at.line, other.file,
            other.line);
    }
  }
  barrier.waiting.push_back(&t);
  if (barrier.waiting.size() == t.block->live) {
    t.block->counted = std::exchange(t.block->counting, 0u);
    executor.release(&barrier.waiting);
  }
  executor.wait("__syncthreads", at);
}

}  // namespace

unsigned lane() { return Executor::current().self().rank % kWarp; }

void* dynamic_shared_memory() { return Executor::current().self().block->shared.get(); }

// ---- the block ---------------------------------------------------------------------------------

void block_barrier(Place at) { meet_block(Executor::current(), at); }

int block_count(bool predicate, Place at) {
  Executor& executor = Executor::current();
  Block& block = *executor.self().block;
  if (predicate) ++block.counting;
  meet_block(executor, at);
  return static_cast<int>(block.counted);
}

void named_barrier(unsigned id, unsigned threads, bool wait, Place at) {
  Executor& executor = Executor::current();
  Thread& t = executor.self();
  Block& block = *t.block;
  if (id == 0 || id >= kNamedBarriers) {
    fault("%s:%d: barrier %u: expected 1 to 15 (0 is __syncthreads)", at.file, at.line, id);
  }
  if (threads == 0 || threads % kWarp != 0) {
    fault("%s:%d: barrier %u of %u threads: expected whole warps", at.file, at.line, id, threads);
  }
  Barrier& barrier = block.barriers[id];
  if (barrier.arrived != 0 && barrier.threads != threads) {
    fault("%s:%d: barrier %u of %u threads, others say %u", at.file, at.line, id, threads,
          barrier.threads);
  }
  if (barrier.arrived == 0) barrier.lanes.assign(block.warps.size(), 0u);
  unsigned& lanes = barrier.lanes[t.rank / kWarp];
  if ((lanes >> t.rank % kWarp & 1u) != 0) {
    fault("%s:%d: a thread comes to barrier %u twice", at.file, at.line, id);
  }
  lanes |= 1u << t.rank % kWarp;
  barrier.threads = threads;
  ++barrier.arrived;
  if (wait) barrier.waiting.push_back(&t);
  if (barrier.arrived == threads) {
    // The device counts warps.
    for (std::size_t w = 0; w < block.warps.size(); ++w) {
      const unsigned missing = block.warps[w].present & ~block.warps[w].ended & ~barrier.lanes[w];
      if (barrier.lanes[w] != 0 && missing != 0) {
        fault("%s:%d: barrier %u has lanes %08x of warp %zu, and not %08x", at.file, at.line, id,
              barrier.lanes[w], w, missing);
      }
    }
    barrier.arrived = 0;
    executor.release(&barrier.waiting);
  }
  if (wait) executor.wait("a named barrier", at);
}

void yield() {
  Executor& executor = Executor::current();
  executor.stand_back();
  executor.wait("its turn", Place::here());
}

// ---- the warp ----------------------------------------------------------------------------------

void warp_together(const char* name, unsigned mask, void* data, void (*operation)(void* const*),
                   Place at) {
  Executor& executor = Executor::current();
  Thread& t = executor.self();
  Warp& warp = executor.warp_of(t);
  const unsigned own = t.rank % kWarp;
  if ((mask >> own & 1u) == 0) {
    fault("%s:%d: lane %u calls %s with the mask %08x, which leaves it out", at.file, at.line, own,
          name, mask);
  }
  std::size_t i = 0;
  while (i < warp.open.size() && warp.open[i].mask != mask) ++i;
  if (i == warp.open.size()) warp.open.push_back({name, mask, 0, operation});
  if (warp.open[i].name != name && std::strcmp(warp.open[i].name, name) != 0) {
    fault("%s:%d: lane %u calls %s while other lanes of its mask %08x call %s", at.file, at.line,
          own, name, mask, warp.open[i].name);
  }
  warp.open[i].arrived |= 1u << own;
  t.offered = data;
  executor.end_together(t.block, t.rank / kWarp, i);
  executor.wait(name, at);
}

void Executor::end_together(Block* block, unsigned w, std::size_t i) {
  Warp& warp = block->warps[w];
  const Together& together = warp.open[i];
  if (together.arrived != (together.mask & warp.present & ~warp.ended)) return;
  void* lanes[kWarp] = {};
  std::vector<Thread*>& waiting = released_lanes_;
  waiting.clear();
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if ((together.arrived >> lane & 1u) == 0) continue;
    Thread* t = &block->threads[w * kWarp + lane];
    lanes[lane] = t->offered;
    waiting.push_back(t);
  }
  if (together.operation != nullptr) together.operation(lanes);
  warp.open.erase(warp.open.begin() + static_cast<std::ptrdiff_t>(i));
  release(&waiting);
}

// ---- the grid and the cluster ------------------------------------------------------------------

void grid_barrier(unsigned* word, Place at) {
  Executor& executor = Executor::current();
  const Thread& t = executor.self();
  if (!executor.launch().cooperative) {
    fault("%s:%d: a grid barrier in a launch that is not cooperative", at.file, at.line);
  }
  // As the device's: the block's first thread adds one for it, and waits until all have. What one
  // block adds more makes the top bit change when the last one comes.
  block_barrier(at);
  if (t.rank == 0) {
    unsigned& arrived = executor.grid_arrived[word];
    if (arrived == 0 && (*word & 0x7fffffffu) != 0) {
      fault("%s:%d: the grid barrier's word holds %08x before the first barrier: expected 0",
            at.file, at.line, *word);
    }
    const unsigned blocks = gridDim.x * gridDim.y * gridDim.z;
    const bool first = t.block->index.x == 0 && t.block->index.y == 0 && t.block->index.z == 0;
    *word += first ? 0x80000000u - (blocks - 1) : 1u;
    if (++arrived == blocks) {
      arrived = 0;
      executor.release_on(word);
    } else {
      executor.wait_on(word, "a grid barrier", at);
    }
  }
  block_barrier(at);
}

unsigned cluster_rank() { return Executor::current().self().block->rank; }

unsigned cluster_size() {
  return static_cast<unsigned>(Executor::current().self().block->cluster->blocks.size());
}

void cluster_arrive(Place at) {
  Executor& executor = Executor::current();
  Thread& t = executor.self();
  if (t.cluster_arrived) {
    fault("%s:%d: a thread arrives at the cluster's barrier twice", at.file, at.line);
  }
  t.cluster_arrived = true;
  t.cluster_phase = t.block->cluster->phase;
  ++t.block->cluster->arrived;
  executor.end_of_cluster_phase(t.block->cluster);
}

void cluster_wait(Place at) {
  Executor& executor = Executor::current();
  Thread& t = executor.self();
  if (!t.cluster_arrived) {
    fault("%s:%d: a thread waits at the cluster's barrier without arriving", at.file, at.line);
  }
  t.cluster_arrived = false;
  Cluster& cluster = *t.block->cluster;
  if (cluster.phase != t.cluster_phase) return;
  cluster.waiting.push_back(&t);
  executor.wait("the cluster's barrier", at);
}

void Executor::end_of_cluster_phase(Cluster* cluster) {
  if (cluster->live == 0 || cluster->arrived != cluster->live) return;
  cluster->arrived = 0;
  ++cluster->phase;
  release(&cluster->waiting);
}

void* cluster_shared(void* own, unsigned rank, Place at) {
  const Block& block = *Executor::current().self().block;
  const std::vector<Block*>& blocks = block.cluster->blocks;
  if (rank >= blocks.size()) {
    fault("%s:%d: rank %u in a cluster of %zu blocks", at.file, at.line, rank, blocks.size());
  }
  if (!block.holds(own, 0)) {
    fault("%s:%d: an address that is not in this block's shared memory", at.file, at.line);
  }
  return blocks[rank]->shared.get() + (static_cast<unsigned char*>(own) - block.shared.get());
}

}  // namespace cuda_emulation
