// Which levels of a sliced network the CUDA backend takes in one launch
// (recurrent_cuda_levels.cuh), and how the launch shares them out. Plain C++, so that it can be
// tested without a device.
//
// A launch of all levels saves each level's own launches, the products W x and the copies between
// levels among them; it computes those products itself, without tensor cores, and takes 2 rows per
// thread, where a level by itself may take 8. So the lower levels of many rows go by themselves.
//
// The constants are estimates: none was measured on a GPU yet. No choice here changes the bits of a
// level in the launch; whether a level is in it may change how its products W x are rounded, which
// is why it does not depend on the number of sequences where results must not.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace penstock::cuda {

constexpr int kLevelThreads = 512;
constexpr int kLevelRows = 2;  // rows of a step that a thread takes
constexpr int kLevelsAtOnce = 9;

/// One level: the cell's D and H, and the parts of a sequence and their steps.
struct LevelShape {
  std::int64_t input = 0, hidden = 0;
  std::int64_t parts = 1, steps = 0;
};

struct LevelsProblem {
  const LevelShape* levels = nullptr;  // from the lowest on
  int count = 0;
  bool from_input = true;  // the lowest one reads the sequence: its products W x are found before
  bool backward = false;
  bool independent = false;  // a sequence's result must not depend on how many there are
  std::int64_t batch = 0, dirs = 1;
  int gates = 1;
  int products = 1;  // of a step, one after the other
  int value_bytes = 4;
  std::int64_t shared_bytes = 0;  // that a block may have
  int multiprocessors = 1;
};

/// How the blocks take one level: groups of threads, one thread per unit in each, and kLevelRows
/// rows per group at a time; and where things are in shared memory, in bytes. W is at 0.
struct LevelSplit {
  std::int32_t groups = 0;  // of steps
  std::int32_t wide = 0;    // of products over all steps: forward W x with a thread per unit,
                            // backward dx with a thread per feature of the input; 0: there are none
  std::int32_t state_weights = 0;   // R; 0: in the place of W, one after the other
  std::int32_t step_values = 0;     // a tile's rows, and what they multiply
  std::int32_t product_values = 0;  // the same of products over all steps
};

struct LevelsPlan {
  int first = 0;      // level; all from this one on are in the launch. `count`: there is none
  bool grid = false;  // blocks share every level's rows, with barriers of the grid in between; else
                      // each takes its own sequences through all levels
  std::int64_t sequences = 0;  // of a block, unless `grid`
  std::int64_t blocks = 0;
  int threads = 0;
  std::int64_t shared_bytes = 0;
  LevelSplit split[kLevelsAtOnce];  // of level first + i
  double nanoseconds = 0.0;         // predicted, of all levels, but for the lowest one's W x
  double apart = 0.0;               // the same with no level in the launch
};

// What has been asked for in place of the choice.
enum class LevelsWish { kNone, kApart, kJoint, kGrid, kBlocks };

// ---- shared memory -----------------------------------------------------------------------------

inline std::int64_t level_align(std::int64_t bytes) { return (bytes + 15) / 16 * 16; }

/// Bytes of R.
inline std::int64_t level_state_weights(const LevelsProblem& p, const LevelShape& s) {
  return level_align(
      (p.backward ? p.gates * s.hidden * s.hidden : s.hidden * ((p.gates * s.hidden) | 1)) *
      p.value_bytes);
}
/// Bytes of W.
inline std::int64_t level_input_weights(const LevelsProblem& p, const LevelShape& s) {
  return level_align(
      (p.backward ? p.gates * s.hidden * s.input : s.input * ((p.gates * s.hidden) | 1)) *
      p.value_bytes);
}
/// Bytes of the rows of so many groups, and what R multiplies of them.
inline std::int64_t level_step_values(const LevelsProblem& p, const LevelShape& s, int groups) {
  return std::int64_t{groups} * kLevelRows * (16 + (p.backward ? p.gates : 2) * s.hidden * 4);
}
/// Bytes of the places of so many groups' rows, and what W multiplies of them.
inline std::int64_t level_product_values(const LevelsProblem& p, const LevelShape& s, int groups) {
  return std::int64_t{groups} * kLevelRows * (8 + (p.backward ? p.gates * s.hidden : s.input) * 4);
}

/// Columns of the products over all steps, one thread each.
inline std::int64_t level_columns(const LevelsProblem& p, const LevelShape& s) {
  return p.backward ? s.input : s.hidden;
}

/// As many groups as `rows` ask for, as far as threads and `bytes` go, of which a group takes
/// `each`; 0: not even one.
inline int level_groups(std::int64_t columns, std::int64_t rows, std::int64_t bytes,
                        std::int64_t each) {
  const std::int64_t wanted = (rows + kLevelRows - 1) / kLevelRows;
  const std::int64_t most = std::min(kLevelThreads / columns, bytes < 0 ? 0 : bytes / each);
  return static_cast<int>(std::min(std::max<std::int64_t>(1, wanted), most));
}

// ---- predicted times ---------------------------------------------------------------------------

namespace levels_time {

constexpr double kLaunch = 2500.0;       // from one launch to the next
constexpr double kCooperative = 1500.0;  // more, of a launch whose blocks wait for each other
constexpr double kGridBarrier = 1500.0;
constexpr double kClock = 1.7;            // cycles per ns
constexpr double kStep = 150.0;           // of a step, besides its product: gates and barriers
constexpr double kLoadBytesPerNs = 40.0;  // of each multiprocessor, out of the second cache
constexpr double kLoad = 500.0;           // until the first of them are there
// Of a cuBLAS product per step: two launches in a graph, and tensor cores.
constexpr double kByStep = 4000.0;

/// A sum over `terms` in each of `threads` threads: weights and values out of shared memory, for so
/// many columns and rows per thread.
inline double product(double threads, std::int64_t terms, int columns, int rows) {
  // Of one term: instructions of a warp, of which a multiprocessor issues four in a cycle, and the
  // wait that remains when the loop is unrolled.
  const double issue = columns + (rows + 3) / 4 + columns * rows + 1.0;
  const double warps = threads / 128.0;
  return static_cast<double>(terms) * std::max(12.0, std::max(1.0, warps) * issue) / kClock;
}

inline double load(std::int64_t bytes) {
  return kLoad + static_cast<double>(bytes) / kLoadBytesPerNs;
}

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

/// A level by itself, but for the lowest one's W x.
inline double apart(const LevelsProblem& p, int i) {
  const LevelShape& s = p.levels[i];
  const std::int64_t rows = s.parts * p.batch * p.dirs;
  // The biases' sums or the products' gradient of the input, the zero state or the gradient to
  // begin with, the steps, and converting or copying what comes out.
  double launches = 3.0 + (p.value_bytes == 2 ? 1.0 : 0.0);
  // Counted without gradients too, so that results do not depend on whether there are any.
  if (!p.backward && i + 1 < p.count) launches += 1.0;
  if (i > 0 || !p.from_input) launches += 1.0;
  double time = launches * kLaunch;
  const std::int64_t work = rows * p.gates * s.hidden * s.hidden;
  if (p.value_bytes == 2 && work > std::int64_t{1} << 27) {
    return time + static_cast<double>(s.steps) * kByStep * p.products;
  }
  const int each = rows >= 8 * std::int64_t{p.multiprocessors} ? 8 : 2;
  const std::int64_t in_block = ceil_div(rows, p.multiprocessors);
  const std::int64_t groups = std::clamp<std::int64_t>(ceil_div(in_block, each), 1,
                                                       std::max<std::int64_t>(1, 384 / s.hidden));
  const std::int64_t turns = ceil_div(in_block, groups * each);
  const int columns = p.backward ? 1 : p.gates;
  const std::int64_t terms = p.backward ? p.gates * s.hidden : s.hidden;
  const double step =
      kStep * p.products + product(static_cast<double>(groups * s.hidden), terms, columns, each);
  return time + load(p.gates * s.hidden * s.hidden * p.value_bytes) +
         static_cast<double>(turns * s.steps) * step;
}

}  // namespace levels_time

// ---- the choice --------------------------------------------------------------------------------

/// One launch of the levels from `first` on, shared out in the given way; blocks = 0: they do not
/// fit. Of its time, `nanoseconds` has the launch alone.
inline LevelsPlan levels_launch(const LevelsProblem& p, int first, bool grid) {
  namespace time = levels_time;
  LevelsPlan plan;
  plan.first = first;
  plan.grid = grid;
  if (p.count - first > kLevelsAtOnce || p.value_bytes > 4) return plan;
  std::int64_t blocks = 0;
  if (grid) {
    // As many as have rows, but no more than run at the same time: one on each multiprocessor.
    for (int i = first; i < p.count; ++i) {
      const std::int64_t rows = p.levels[i].parts * p.batch;
      blocks = std::max(blocks, time::ceil_div(rows, kLevelRows) * p.dirs);
    }
    blocks = std::min<std::int64_t>(blocks, p.multiprocessors);
  } else {
    plan.sequences = std::max<std::int64_t>(1, p.batch / p.multiprocessors);
    blocks = time::ceil_div(p.batch, plan.sequences);
  }
  const std::int64_t waves = time::ceil_div(blocks, p.multiprocessors);
  double one = 0.0;
  std::int64_t threads = 32;
  for (int i = first; i < p.count; ++i) {
    const LevelShape& s = p.levels[i];
    if (s.steps > INT32_MAX || s.hidden > kLevelThreads) return plan;
    const std::int64_t rows =
        grid ? time::ceil_div(s.parts * p.batch * p.dirs, blocks) : s.parts * plan.sequences;
    LevelSplit& split = plan.split[i - first];
    // Enough to bring the weights, whatever the number of rows.
    threads = std::max(threads, std::min<std::int64_t>(256, p.gates * s.hidden * s.hidden / 16));
    const std::int64_t state_weights = level_state_weights(p, s);
    split.groups =
        level_groups(s.hidden, rows, p.shared_bytes - state_weights, level_step_values(p, s, 1));
    if (split.groups == 0) return plan;
    const std::int64_t step_values = level_step_values(p, s, split.groups);
    std::int64_t shared = state_weights + step_values;
    split.step_values = static_cast<std::int32_t>(state_weights);
    threads = std::max(threads, split.groups * s.hidden);

    // A block's turns at this level: tiles of one direction in the grid, of both one after the
    // other in a block.
    const std::int64_t tile = std::int64_t{split.groups} * kLevelRows;
    const std::int64_t turns =
        grid ? time::ceil_div(time::ceil_div(s.parts * p.batch, tile) * p.dirs, blocks)
             : time::ceil_div(rows, tile) * p.dirs;
    const std::int64_t loads = grid ? 1 : p.dirs;
    const int columns = p.backward ? 1 : p.gates;
    const std::int64_t terms = p.backward ? p.gates * s.hidden : s.hidden;
    const double step =
        time::kStep * p.products +
        time::product(static_cast<double>(split.groups * s.hidden), terms, columns, kLevelRows);
    one += static_cast<double>(turns * s.steps) * step +
           static_cast<double>(loads) * time::load(p.gates * s.hidden * s.hidden * p.value_bytes);

    const bool products = p.backward ? i > first : i > 0 || !p.from_input;
    if (products) {
      const std::int64_t wide = level_columns(p, s), weights = level_input_weights(p, s);
      if (wide > kLevelThreads) return plan;
      split.wide = level_groups(wide, std::min(rows, tile * turns) * s.steps,
                                p.shared_bytes - weights, level_product_values(p, s, 1));
      if (split.wide == 0) return plan;
      const std::int64_t product_values = level_product_values(p, s, split.wide);
      const std::int64_t both = weights + state_weights + std::max(step_values, product_values);
      if (both <= p.shared_bytes) {
        shared = both;
        split.state_weights = static_cast<std::int32_t>(weights);
        split.step_values = split.product_values =
            static_cast<std::int32_t>(weights + state_weights);
      } else {
        shared = std::max(shared, weights + product_values);
        split.product_values = static_cast<std::int32_t>(weights);
      }
      threads = std::max(threads, split.wide * wide);
      const std::int64_t entries = turns * tile * s.steps;
      const std::int64_t passes = time::ceil_div(entries, std::int64_t{split.wide} * kLevelRows);
      one += static_cast<double>(loads) * time::load(p.gates * s.hidden * s.input * p.value_bytes) +
             static_cast<double>(passes) *
                 (time::kStep + time::product(static_cast<double>(split.wide * wide),
                                              p.backward ? p.gates * s.hidden : s.input, columns,
                                              kLevelRows));
    }
    if (grid && i > first) one += time::kGridBarrier;
    plan.shared_bytes = std::max(plan.shared_bytes, shared);
  }
  plan.blocks = blocks;
  plan.threads = static_cast<int>((threads + 31) / 32 * 32);
  plan.nanoseconds = time::kLaunch + static_cast<double>(waves) * one;
  if (grid) plan.nanoseconds += time::kLaunch + time::kCooperative;  // and zeros for the barrier
  return plan;
}

/// The better way for the levels from `first` on, or the one that is wished for.
inline LevelsPlan levels_launch(const LevelsProblem& p, int first, LevelsWish wish) {
  const LevelsPlan grid = levels_launch(p, first, true), blocks = levels_launch(p, first, false);
  if (wish == LevelsWish::kGrid) return grid;
  if (wish == LevelsWish::kBlocks) return blocks;
  if (grid.blocks == 0) return blocks;
  return blocks.blocks == 0 || grid.nanoseconds < blocks.nanoseconds ? grid : blocks;
}

inline LevelsPlan levels_plan(const LevelsProblem& p, LevelsWish wish = LevelsWish::kNone) {
  LevelsPlan best;
  best.first = p.count;
  for (int i = 0; i < p.count; ++i) best.apart += levels_time::apart(p, i);
  best.nanoseconds = best.apart;
  const double apart = best.apart;
  if (wish == LevelsWish::kApart || p.batch == 0) return best;
  // The lowest level that can be in the launch, for a wish and where results must not depend on the
  // number of sequences; else the one that the least time is predicted for.
  const bool lowest = p.independent || wish != LevelsWish::kNone;
  double below = 0.0;
  for (int first = 0; first + 1 < p.count; ++first) {
    LevelsPlan plan = levels_launch(p, first, wish);
    plan.nanoseconds += below;
    plan.apart = apart;
    below += levels_time::apart(p, first);
    if (plan.blocks == 0) continue;
    if (lowest) return plan;
    if (plan.nanoseconds < best.nanoseconds) best = plan;
  }
  return best;
}

}  // namespace penstock::cuda
