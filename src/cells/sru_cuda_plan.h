// Into how many chunks of time the CUDA backend cuts an SRU scan, how large its rings in shared
// memory are, and how many of its states forward keeps for backward. A thread takes one channel of
// one sequence; where these are too few to keep the device's memory busy, its steps are shared out
// among several threads (sru_cuda.cu). Plain C++, so that it can be tested without a device.
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
  int keep = 1;              // steps between two states kept (sru_keep_steps)
  int multiprocessors = 1;
};

struct SruScanPlan {
  std::int64_t chunk_steps = 0;  // the last chunk may have fewer
  std::int64_t chunks = 1;
  double nanoseconds = 0.0;  // predicted
};

/// Steps between two states that forward keeps for backward, which finds the others again, from the
/// same u, on its way from the last step to the first: 1 where it keeps all.
///
/// Finding a state again saves its way to memory and back, and costs backward a longer step: so it
/// pays where scans wait for memory, which is where channels are many. Keeping all also is what a
/// backward scan in chunks needs; from so many channels on that cannot pay, however many the steps.
/// The choice is one of the channels alone, neither of the steps nor of the device, as callers must
/// know the size of what is kept before all steps are (python/penstock/torch/_ops.py has it too).
constexpr int kSruKeepSteps = 8;
constexpr std::int64_t kSruKeepChannels = 6144;
/// `forced`: 1, 2, 4 or 8 instead.
inline int sru_keep_steps(bool ring, std::int64_t walks, int forced = 0) {
  if (forced == 1 || forced == 2 || forced == 4 || forced == 8) return forced;
  return ring && walks >= kSruKeepChannels ? kSruKeepSteps : 1;
}

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

/// Channels of a thread of a backward scan that finds states again: as many as four bytes hold, but
/// one where that leaves some of a multiprocessor's four schedulers without a warp. There a step
/// takes as long as its instructions, and those of two channels are twice as many. It makes no
/// difference to the bits.
inline int sru_ring_width(int value_bytes, std::int64_t walks, int multiprocessors) {
  constexpr std::int64_t kWarps = 4;
  const int most = 4 / value_bytes;
  return walks < kWarps * 32 * most * multiprocessors ? 1 : most;
}

/// Turns of Newton's method for the states before chunks, where a scan is not linear.
constexpr int kSruNewtonTurns = 3;
constexpr std::int64_t kSruMostChunks = 256;
constexpr std::int64_t kSruLeastChunkSteps = 16;

inline SruScanPlan sru_scan_cut(const SruScanProblem& p, std::int64_t chunks) {
  SruScanPlan plan;
  const std::int64_t steps = std::max<std::int64_t>(1, p.steps);
  // Chunks begin with a state that is kept, so that what is found again from it is found exactly.
  plan.chunk_steps =
      std::min(steps, ((steps + chunks - 1) / chunks + p.keep - 1) / p.keep * p.keep);
  plan.chunks = (steps + plan.chunk_steps - 1) / plan.chunk_steps;
  return plan;
}

/// Predicted time of a scan in so many chunks: a thread's wait for each of its steps, then the
/// bytes. Both passes of a scan in chunks read, so more than one chunk costs bytes, and a launch.
inline double sru_scan_nanoseconds(const SruScanProblem& p, const SruScanPlan& plan) {
  // A step's wait: for its arithmetic, or for memory with what is ahead in registers. The first
  // pass has no ring; forward it has twice as many steps ahead.
  double step = p.ring ? 40.0 : 100.0;
  if (p.backward && p.keep > 1) step += 15.0;  // to find a state again
  const double fold_step = p.backward ? 100.0 : 60.0;
  constexpr double kLaunch = 4000.0;    // one more launch
  constexpr double kBytesPerNs = 24.0;  // of each multiprocessor: 3.2 TB/s on 132 of them
  const auto walks = static_cast<double>(p.walks);
  const auto chunks = static_cast<double>(plan.chunks);
  const auto chunk_steps = static_cast<double>(plan.chunk_steps);
  const double rate = kBytesPerNs * p.multiprocessors;
  const double state = std::max(4, p.value_bytes);
  const double values = (p.backward ? 9.0 : 5.0) * p.value_bytes + state / p.keep;
  const double plane = static_cast<double>(p.steps) * walks;
  const double once = values * plane / rate;
  if (plan.chunks == 1) return step * chunk_steps + once;
  const double folded = p.backward ? 5.0 * p.value_bytes + state : 2.0 * p.value_bytes;
  const double fold = folded * plane / rate + fold_step * chunk_steps + kLaunch;
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
  if (p.independent || (p.backward && p.keep > 1)) return best;
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
