// Into how many chunks of time the CUDA backend cuts an SRU scan, and how large its rings in shared
// memory are. A thread takes one channel of one sequence; where these are too few to keep the
// device's memory busy, its steps are shared out among several threads (sru_cuda.cu). Plain C++, so
// that it can be tested without a device.
//
// The choice is a function of the problem's shape and the device's number of multiprocessors alone,
// and so are the bits of a result. The constants are estimates: none was measured on a GPU yet.
#pragma once

#include <algorithm>
#include <cstdint>

namespace penstock::cuda {

struct SruScanProblem {
  bool backward = false;
  bool linear = false;       // forward with v = 0; a backward scan always is. Others take Newton's
                             // method to be cut
  bool independent = false;  // a sequence's result must not depend on how many there are
  std::int64_t steps = 0;    // of a part
  std::int64_t walks = 0;    // channels of all sequences, parts and directions
  int value_bytes = 4;       // of an element
  bool ring = false;         // steps read through a ring, by the shape
  int multiprocessors = 1;
};

struct SruScanPlan {
  std::int64_t chunk_steps = 0;  // the last chunk may have fewer
  std::int64_t chunks = 1;
  double nanoseconds = 0.0;  // predicted
};

/// Steps in a stage of a ring (sru_cuda_ring.cuh) of four stages, in blocks of 64 threads: as many
/// as let all blocks of a multiprocessor run at the same time, so that none begins when the others
/// are done; at least 2, where they cannot.
inline int sru_ring_steps(std::int64_t blocks, std::int64_t step_bytes, std::int64_t shared_bytes,
                          int multiprocessors) {
  constexpr std::int64_t kMostBlocks = 6;  // of a multiprocessor, by registers
  constexpr std::int64_t kOther = 2048;    // bytes that a block takes besides
  const std::int64_t each =
      std::clamp<std::int64_t>((blocks + multiprocessors - 1) / multiprocessors, 1, kMostBlocks);
  for (int steps : {8, 4}) {
    if (each * (4 * steps * step_bytes + kOther) <= shared_bytes) return steps;
  }
  return 2;
}

/// Turns of Newton's method for the states before chunks, where a scan is not linear.
constexpr int kSruNewtonTurns = 3;
constexpr std::int64_t kSruMostChunks = 256;
constexpr std::int64_t kSruLeastChunkSteps = 16;

inline SruScanPlan sru_scan_cut(const SruScanProblem& p, std::int64_t chunks) {
  SruScanPlan plan;
  const std::int64_t steps = std::max<std::int64_t>(1, p.steps);
  plan.chunk_steps = (steps + chunks - 1) / chunks;
  plan.chunks = (steps + plan.chunk_steps - 1) / plan.chunk_steps;
  return plan;
}

/// Predicted time of a scan in so many chunks: a thread's wait for each of its steps, then the
/// bytes. Both passes of a scan in chunks read, so more than one chunk costs bytes, and a launch.
inline double sru_scan_nanoseconds(const SruScanProblem& p, const SruScanPlan& plan) {
  // A step's wait: for its arithmetic, or for memory with what is ahead in registers. The first
  // pass has no ring; forward it has twice as many steps ahead.
  const double step = p.ring ? 40.0 : 100.0;
  const double fold_step = p.backward ? 100.0 : 60.0;
  constexpr double kLaunch = 4000.0;    // one more launch
  constexpr double kBytesPerNs = 24.0;  // of each multiprocessor: 3.2 TB/s on 132 of them
  const auto walks = static_cast<double>(p.walks);
  const auto chunks = static_cast<double>(plan.chunks);
  const auto chunk_steps = static_cast<double>(plan.chunk_steps);
  const double rate = kBytesPerNs * p.multiprocessors;
  const double plane = static_cast<double>(p.steps) * walks * p.value_bytes;
  const double once = (p.backward ? 10.0 : 6.0) * plane / rate;
  if (plan.chunks == 1) return step * chunk_steps + once;
  const double fold = (p.backward ? 6.0 : 2.0) * plane / rate + fold_step * chunk_steps + kLaunch;
  const double join = chunks * chunks * walks * 4.0 / rate;  // out of a cache
  const bool newton = !p.backward && !p.linear;
  const double turns = newton ? kSruNewtonTurns : 1.0;
  // By Newton's method there is one more launch, which has nothing to do but by exception.
  return step * chunk_steps + once + turns * (fold + join) + (newton ? kLaunch : 0.0);
}

/// `forced` > 0: that many chunks, where chunks are possible at all.
inline SruScanPlan sru_scan_plan(const SruScanProblem& p, std::int64_t forced = 0) {
  SruScanPlan best = sru_scan_cut(p, 1);
  best.nanoseconds = sru_scan_nanoseconds(p, best);
  if (p.independent) return best;
  if (forced > 0) {
    best = sru_scan_cut(p, std::min(forced, kSruMostChunks));
    best.nanoseconds = sru_scan_nanoseconds(p, best);
    return best;
  }
  for (std::int64_t chunks = 2; chunks <= kSruMostChunks; chunks *= 2) {
    SruScanPlan plan = sru_scan_cut(p, chunks);
    if (plan.chunk_steps < kSruLeastChunkSteps) break;
    plan.nanoseconds = sru_scan_nanoseconds(p, plan);
    if (plan.nanoseconds < best.nanoseconds) best = plan;
  }
  return best;
}

}  // namespace penstock::cuda
