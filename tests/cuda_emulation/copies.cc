// Asynchronous copies into shared memory, by cp.async and in bulk, and mbarriers.

#include <algorithm>

#include "grid.h"

namespace cuda_emulation {
namespace {

constexpr std::uint64_t kMaxCount = (1u << 20) - 1, kMaxBytes = (1u << 23) - 1;

/// What an mbarrier's 8 bytes hold.
struct State {
  std::uint64_t parity : 1, count : 20, pending : 20, bytes : 23;
};
static_assert(sizeof(State) == sizeof(std::uint64_t), "an mbarrier has 8 bytes");

bool aligned(const void* p, std::size_t bytes) {
  return reinterpret_cast<std::uintptr_t>(p) % bytes == 0;
}

void check_copy(const Block& block, const void* shared, const void* global, unsigned bytes,
                unsigned alignment, Place at) {
  if (!aligned(shared, alignment) || !aligned(global, alignment)) {
    Executor& executor = Executor::current();
    executor.report("%s:%d: an asynchronous copy between addresses that are not multiples of %u",
                    at.file, at.line, alignment);
    executor.fail(cudaErrorMisalignedAddress);
  }
  if (!block.holds(shared, bytes)) {
    fault("%s:%d: an asynchronous copy of %u bytes to outside this block's shared memory", at.file,
          at.line, bytes);
  }
}

State load(const std::uint64_t* barrier, const char* what, Place at) {
  const Thread& t = Executor::current().self();
  const std::vector<Block*>& blocks = t.block->cluster->blocks;
  const auto holds = [&](const Block* b) { return b->holds(barrier, sizeof *barrier); };
  if (!aligned(barrier, 8) || std::none_of(blocks.begin(), blocks.end(), holds)) {
    fault("%s:%d: %s: expected 8 aligned bytes in shared memory", at.file, at.line, what);
  }
  State state;
  std::memcpy(&state, barrier, sizeof state);
  return state;
}

State load_initialised(const std::uint64_t* barrier, const char* what, Place at) {
  const State state = load(barrier, what, at);
  if (state.count == 0 || state.count == kMaxCount) {
    fault("%s:%d: %s of an mbarrier that nobody has initialised", at.file, at.line, what);
  }
  return state;
}

/// Store it, after the end of the phase if nothing is outstanding.
void settle(std::uint64_t* barrier, State state) {
  const bool over = state.pending == 0 && state.bytes == 0;
  if (over) {
    state.parity ^= 1u;
    state.pending = state.count;
  }
  std::memcpy(barrier, &state, sizeof state);
  if (over) Executor::current().release_on(barrier);
}

}  // namespace

// ---- cp.async ----------------------------------------------------------------------------------

void async_copy(void* shared, const void* global, unsigned bytes, unsigned valid, Place at) {
  Thread& t = Executor::current().self();
  if (valid > bytes) {
    fault("%s:%d: an asynchronous copy with %u valid bytes of %u", at.file, at.line, valid, bytes);
  }
  check_copy(*t.block, shared, global, bytes, bytes, at);
  std::memset(shared, 0xff, bytes);
  t.copies.push_back({static_cast<unsigned char*>(shared),
                      static_cast<const unsigned char*>(global), bytes, valid, t.committed});
}

void commit_copies() { ++Executor::current().self().committed; }

void wait_copies(unsigned pending) {
  Thread& t = Executor::current().self();
  const auto due = [&](const Copy& c) { return c.group + pending < t.committed; };
  for (const Copy& c : t.copies) {
    if (due(c)) c.deliver();
  }
  t.copies.erase(std::remove_if(t.copies.begin(), t.copies.end(), due), t.copies.end());
}

// ---- mbarriers and bulk copies -----------------------------------------------------------------

void mbarrier_init(std::uint64_t* barrier, unsigned count, Place at) {
  load(barrier, "mbarrier_init", at);
  if (count == 0 || count >= kMaxCount) {
    fault("%s:%d: an mbarrier for %u arrivals", at.file, at.line, count);
  }
  State state = {};
  state.count = state.pending = count & kMaxCount;
  std::memcpy(barrier, &state, sizeof state);
}

void mbarrier_arrive(std::uint64_t* barrier, unsigned bytes, Place at) {
  State state = load_initialised(barrier, "an arrival", at);
  if (state.pending == 0) {
    fault("%s:%d: more arrivals at an mbarrier than its %u of a phase", at.file, at.line,
          static_cast<unsigned>(state.count));
  }
  state.bytes = (state.bytes + bytes) & kMaxBytes;
  --state.pending;
  settle(barrier, state);
}

void mbarrier_arrive_after_copies(std::uint64_t* barrier, Place at) {
  Executor& executor = Executor::current();
  load_initialised(barrier, "an arrival", at);
  executor.transfers.push_back({barrier, std::move(executor.self().copies), 0, at});
  executor.self().copies.clear();
}

void mbarrier_wait(std::uint64_t* barrier, unsigned parity, Place at) {
  Executor& executor = Executor::current();
  if (parity > 1) fault("%s:%d: parity %u: expected 0 or 1", at.file, at.line, parity);
  while (load_initialised(barrier, "a wait", at).parity == parity) {
    executor.wait_on(barrier, "an mbarrier", at);
  }
}

void bulk_copy(void* shared, const void* global, unsigned bytes, std::uint64_t* barrier, Place at) {
  Executor& executor = Executor::current();
  const Thread& t = executor.self();
  load_initialised(barrier, "a bulk copy", at);
  if (bytes == 0 || bytes % 16 != 0) {
    fault("%s:%d: a bulk copy of %u bytes: expected a multiple of 16", at.file, at.line, bytes);
  }
  check_copy(*t.block, shared, global, bytes, 16, at);
  std::memset(shared, 0xff, bytes);
  const Copy copy = {static_cast<unsigned char*>(shared), static_cast<const unsigned char*>(global),
                     bytes, bytes, 0};
  executor.transfers.push_back({barrier, {copy}, bytes, at});
}

void Executor::complete_transfer(const Transfer& transfer) {
  State state;
  std::memcpy(&state, transfer.barrier, sizeof state);
  if (transfer.bytes > state.bytes || (transfer.bytes == 0 && state.pending == 0)) {
    fault("%s:%d: an mbarrier is told of %s that it does not expect", transfer.place.file,
          transfer.place.line, transfer.bytes > 0 ? "bytes" : "an arrival");
  }
  if (transfer.bytes > 0) {
    state.bytes = (state.bytes - transfer.bytes) & kMaxBytes;
  } else {
    --state.pending;
  }
  settle(transfer.barrier, state);
}

}  // namespace cuda_emulation
