// Which path the CUDA backend takes for the steps of RNN, GRU and LSTM, and how it is cut. Plain
// C++, so that it can be tested without a device.
//
//   steps    a cuBLAS product and a kernel per step (recurrent_cuda.cuh); fits everything
//   tile     a block takes a tile of rows through all steps, R in its shared memory
//            (recurrent_cuda_tile.cuh)
//   matrix   likewise, with products on tensor cores (recurrent_cuda_matrix.cuh)
//   block    as tile, with R in registers first (recurrent_cuda_group.cuh)
//   cluster  a cluster of blocks takes a tile of rows, each block with its units' part of R
//   grid     likewise, blocks of a cooperative launch
//
// Where rows are many, the choice is matrix (recurrent_cuda_matrix_plan.h); else that of the others
// with the least predicted time. It is a function of the problem's shape and of
// the device alone, and so are the bits of a result. The constants are estimates for an H200: none
// was measured on a GPU yet.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "core/scalar_math.h"

namespace penstock::cuda::mixing {

enum class RecurrentPath { kSteps, kTile, kMatrix, kBlock, kCluster, kGrid };

inline const char* name_of(RecurrentPath path) {
  constexpr const char* kNames[] = {"steps", "tile", "matrix", "block", "cluster", "grid"};
  return kNames[static_cast<int>(path)];
}

struct RecurrentProblem {
  bool backward = false;
  bool independent = false;  // a row's result must not depend on how many rows there are
  bool whole = true;         // one scan over all parts and steps
  bool one_product = true;   // a step has one product: all cells but the GRU with the reset before
  std::int64_t rows = 0;     // of a direction
  std::int64_t steps = 0;
  std::int64_t hidden = 0;
  int dirs = 1;
  int gates = 1;
  int value_bytes = 4;  // of an element
  int multiprocessors = 1;
  std::int64_t shared_bytes = 48 << 10;  // that a block can have
  int most_cluster = 1;                  // blocks of a cluster; 1: the device has none
  bool cooperative = true;               // launches whose blocks wait for each other
};

// ---- tiles -------------------------------------------------------------------------------------

constexpr int kTileThreads = 384;
// Rows per thread. Each weight that a thread reads from shared memory serves that many
// multiply-adds, each state as many as there are gates: with 8 rows and 3 gates arithmetic is the
// limit. Where rows are few, more threads with less work each finish a step sooner; double always
// takes few, because more would need more registers than there are.
constexpr int kFewRows = 2;
constexpr int many_rows(int value_bytes) { return value_bytes == 8 ? kFewRows : 8; }
constexpr int kTileRowBytes = 16;  // what threads know of a row
// Multiply-adds of a step beyond which cuBLAS's tensor cores finish 16-bit products sooner than a
// tile's float32 arithmetic, in spite of a launch per step.
constexpr std::int64_t kTileHalfWork = std::int64_t{1} << 27;

/// Elements from one h_prev's weights to the next: odd, so that filling them meets no bank twice.
PENSTOCK_HOST_DEVICE std::int64_t tile_pitch(std::int64_t gates, std::int64_t hidden) {
  return (gates * hidden) | 1;
}

// ---- products of a group -----------------------------------------------------------------------

// A block of a group: eight warps, each with a share of the block's products.
constexpr int kGroupThreads = 256;
constexpr int kGroupWarps = kGroupThreads / 32;
constexpr int kMostGroupRows = 64;  // of a group
constexpr int kMostGridRows = 256;  // of one cooperative launch
constexpr int kGroupChunks = 4;     // 32 terms of 32 outputs each, of a matrix tile at most
constexpr int kGroupSumsPad = 4;    // floats after each row of sums
constexpr int kExchangeHead = 256;  // bytes ahead of the states that pass through global memory

/// Matrix tiles of 32 outputs · 128 terms whose weights a warp keeps in registers.
constexpr int register_tiles(int value_bytes) { return value_bytes == 2 ? 2 : 1; }

/// How a block's products, `outputs` sums of `depth` terms for each row, are cut into matrix tiles.
/// A tile has 32 / spread outputs of 32 · spread · chunks terms. Tile t is output tile t mod
/// output_tiles of depth tile t / output_tiles; warp w takes tiles w, w + 8, …, whose weights are
/// in its registers first, then in shared memory.
struct GroupTiles {
  int outputs = 0, depth = 0;
  int spread = 1, chunks = 1;
  int output_tiles = 0, depth_tiles = 0;
  int step_outputs = 0, step_depths = 0;  // from a warp's tile to its next: 8 tiles
  int in_shared = 0;                      // tiles beyond those in registers
  int pitch = 0;                          // elements from one row of the operand to the next
  int sums_pitch = 0;                     // floats from one row of a depth tile's sums to the next
  PENSTOCK_HOST_DEVICE int count() const { return output_tiles * depth_tiles; }
  PENSTOCK_HOST_DEVICE int tile_outputs() const { return 32 / spread; }
  PENSTOCK_HOST_DEVICE int tile_depth() const { return 32 * spread * chunks; }
  /// Bytes of a tile in shared memory.
  std::int64_t tile_bytes(int value_bytes) const {
    return std::int64_t{1024} * chunks * value_bytes;
  }
};

/// Elements of an operand's row, at most: padding is less than a tile, and 32.
constexpr std::int64_t most_pitch(std::int64_t depth) { return depth + 4 * 128 + 32; }

/// Cycles of one step's products with this many rows at a time.
inline double product_cycles(const GroupTiles& t, int value_bytes, std::int64_t rows) {
  // Warps share four schedulers; a tile in registers waits for arithmetic, one in shared memory
  // also for 128 bytes a cycle, each time for two rows (float32) or eight.
  const int registers = std::min(t.count(), kGroupWarps * register_tiles(value_bytes));
  const auto per_scheduler = [](int tiles) { return static_cast<double>((tiles + 3) / 4); };
  const auto rounds = static_cast<double>(value_bytes == 2 ? (rows + 7) / 8 : (rows + 1) / 2);
  // Two rows: multiply-adds of 8 outputs and 4 terms a chunk, then shuffles. Eight rows: four
  // matrix instructions a chunk, then what waits for the last one.
  const double each = value_bytes == 2 ? 32.0 * t.chunks + 60.0 : 64.0 * t.chunks + 40.0;
  const double read = static_cast<double>(t.tile_bytes(value_bytes)) / 128.0;
  const double from_registers = per_scheduler(registers) * rounds * each;
  const double from_shared =
      std::max(per_scheduler(t.in_shared) * rounds * each, t.in_shared * rounds * read);
  return from_registers + from_shared;
}

/// The cut that is done soonest, whatever the number of rows: sums must not depend on it.
inline GroupTiles group_tiles(int outputs, int depth, int value_bytes) {
  GroupTiles best;
  double cycles = 0.0;
  const int most_spread = value_bytes == 2 ? 2 : 4;
  for (int spread = 1; spread <= most_spread; spread *= 2) {
    const int least = (depth + 32 * spread * kGroupChunks - 1) / (32 * spread * kGroupChunks);
    for (int tiles = least; tiles <= 4 * least; ++tiles) {
      GroupTiles t;
      t.outputs = outputs;
      t.depth = depth;
      t.spread = spread;
      t.output_tiles = (outputs + t.tile_outputs() - 1) / t.tile_outputs();
      t.chunks = (depth + tiles * 32 * spread - 1) / (tiles * 32 * spread);
      t.depth_tiles = (depth + t.tile_depth() - 1) / t.tile_depth();
      t.in_shared = std::max(0, t.count() - kGroupWarps * register_tiles(value_bytes));
      const double wanted = product_cycles(t, value_bytes, 4);
      if (best.outputs != 0 && wanted >= cycles) continue;
      best = t;
      cycles = wanted;
    }
  }
  best.step_outputs = kGroupWarps % best.output_tiles;
  best.step_depths = kGroupWarps / best.output_tiles;
  // Rows of the operand lie such that eight lanes' 16 bytes of different rows meet no bank twice.
  best.pitch = best.depth_tiles * best.tile_depth();
  if (best.pitch / 32 % 2 == 0) best.pitch += 32;
  best.sums_pitch = best.output_tiles * best.tile_outputs() + kGroupSumsPad;
  return best;
}

/// Bytes that the states of one launch take on their way through global memory.
constexpr std::int64_t exchange_bytes(std::int64_t rows, std::int64_t dirs, std::int64_t depth,
                                      std::int64_t value_bytes) {
  return value_bytes == 8 ? 0
                          : kExchangeHead + 2 * dirs * std::min<std::int64_t>(rows, kMostGridRows) *
                                                most_pitch(depth) * value_bytes;
}

// ---- the choice --------------------------------------------------------------------------------

struct RecurrentPlan {
  RecurrentPath path = RecurrentPath::kSteps;
  double nanoseconds = 0.0;  // predicted

  // Tile: how many times `per_thread` rows a block takes.
  int tile_groups = 0;
  int per_thread = 0;

  // Block, cluster, grid.
  int blocks = 1;  // of a group
  int units = 0;   // of a block
  int rows = 0;    // of a group
  int groups = 0;  // of each direction, that run at the same time
  GroupTiles tiles;

  std::int64_t shared_bytes = 0;  // of a block
};

/// What is asked for instead: "steps", "tile", "matrix", "block", "cluster" or "grid", and then
/// perhaps ":blocks" and ":rows" of a group. What cannot be is not done.
struct RecurrentWish {
  bool given = false;
  RecurrentPath path = RecurrentPath::kSteps;
  int blocks = 0;  // 0: any
  int rows = 0;
};

inline RecurrentWish recurrent_wish(const char* text) {
  RecurrentWish wish;
  if (text == nullptr) return wish;
  const std::size_t length = std::strcspn(text, ":");
  for (RecurrentPath path :
       {RecurrentPath::kSteps, RecurrentPath::kTile, RecurrentPath::kMatrix, RecurrentPath::kBlock,
        RecurrentPath::kCluster, RecurrentPath::kGrid}) {
    const char* name = name_of(path);
    if (std::strlen(name) != length || std::strncmp(name, text, length) != 0) continue;
    wish.given = true;
    wish.path = path;
  }
  if (!wish.given || text[length] == '\0') return wish;
  char* rest = nullptr;
  wish.blocks = static_cast<int>(std::strtol(text + length + 1, &rest, 10));
  if (*rest == ':') wish.rows = static_cast<int>(std::strtol(rest + 1, nullptr, 10));
  return wish;
}

namespace plan_detail {

constexpr double kCycle = 0.57;          // nanoseconds
constexpr double kLaunch = 4000.0;       // to begin, and until all blocks run
constexpr double kGraphLaunch = 1300.0;  // of a small kernel after another in a graph
constexpr double kGates = 200.0;         // the sums, one cell and what follows it
constexpr double kBlockBarrier = 25.0;
constexpr double kClusterBarrier = 250.0;  // with its stores' way to the other blocks
constexpr double kGridBarrier = 1400.0;
constexpr double kBytesPerNs = 3200.0;  // of the device's memory
constexpr double kCachePerNs = 5000.0;  // of its second-level cache
// Where a choice must not depend on the batch: it is the one for this many rows and steps.
constexpr std::int64_t kNominalRows = 16;
constexpr std::int64_t kNominalSteps = 256;

inline double as_double(std::int64_t n) { return static_cast<double>(n); }

/// Multiply-adds of a step and row.
inline double work_of(const RecurrentProblem& p) {
  return as_double(p.hidden) * as_double(p.hidden) * p.gates;
}

/// What all steps read and write whatever the path.
inline double memory_nanoseconds(const RecurrentProblem& p) {
  const double values = p.backward ? 2.0 * p.gates + 2.0 : 2.0 * p.gates + 1.0;
  return as_double(p.rows) * p.dirs * as_double(p.hidden) * values * p.value_bytes / kBytesPerNs;
}

inline RecurrentPlan by_steps(const RecurrentProblem& p) {
  // Multiply-adds a nanosecond: with tensor cores, and without.
  const double rate = p.value_bytes == 2 ? 150e3 : p.value_bytes == 4 ? 18e3 : 15e3;
  const double rows = as_double(p.rows) * p.dirs;
  const double product = 1000.0 + std::max(work_of(p) * p.dirs * p.value_bytes / kCachePerNs,
                                           rows * work_of(p) / rate);
  const double between = rows * as_double(p.hidden) * (8.0 * p.gates + 8.0) / kCachePerNs;
  const double launches = p.one_product ? 2.0 : 4.0;
  RecurrentPlan plan;
  plan.nanoseconds = kLaunch + as_double(p.steps) * (launches * kGraphLaunch + product + between +
                                                     memory_nanoseconds(p));
  return plan;
}

/// False: a tile does not fit, or had better not be taken.
inline bool by_tile(const RecurrentProblem& p, bool wished, RecurrentPlan* plan) {
  if (!p.whole || p.hidden > kTileThreads || p.steps > INT32_MAX) return false;
  if (p.value_bytes == 2 && !wished &&
      p.rows * p.dirs * p.hidden * p.gates > kTileHalfWork / p.hidden) {
    return false;
  }
  // R, transposed forward; two states of a row forward, its gates' gradients backward.
  const std::int64_t weights =
      p.hidden * (p.backward ? p.gates * p.hidden : tile_pitch(p.gates, p.hidden));
  const std::int64_t values = p.backward ? p.gates * p.hidden : 2 * p.hidden;
  const std::int64_t state_bytes = p.value_bytes == 8 ? 8 : 4;
  // As many blocks as the device runs at once, if that many rows are there: then none of its
  // multiprocessors waits for a last block.
  const int many = many_rows(p.value_bytes);
  plan->per_thread = p.rows * p.dirs >= std::int64_t{p.multiprocessors} * many ? many : kFewRows;
  const std::int64_t fixed = (weights * p.value_bytes + 15) / 16 * 16;
  const std::int64_t per_row = values * state_bytes + kTileRowBytes;
  if (fixed + plan->per_thread * per_row > p.shared_bytes) plan->per_thread = kFewRows;
  const std::int64_t per_group = plan->per_thread * per_row;
  if (fixed + per_group > p.shared_bytes) return false;
  const std::int64_t in_turn = std::int64_t{p.multiprocessors} * plan->per_thread;
  const std::int64_t wanted = (p.rows * p.dirs + in_turn - 1) / in_turn;
  const std::int64_t most =
      std::min<std::int64_t>(kTileThreads / p.hidden, (p.shared_bytes - fixed) / per_group);
  plan->path = RecurrentPath::kTile;
  plan->tile_groups = static_cast<int>(std::clamp<std::int64_t>(wanted, 1, most));
  plan->shared_bytes = fixed + plan->tile_groups * per_group;

  const std::int64_t block_rows = std::int64_t{plan->tile_groups} * plan->per_thread;
  const std::int64_t blocks = (p.rows + block_rows - 1) / block_rows * p.dirs;
  const std::int64_t waves = (blocks + p.multiprocessors - 1) / p.multiprocessors;
  const double warps = as_double((plan->tile_groups * p.hidden + 31) / 32);
  const double loads = warps * as_double(p.hidden) * (p.gates + plan->per_thread / 4.0);
  const double multiplies = warps / 4.0 * as_double(p.hidden) * p.gates * plan->per_thread;
  const double step = std::max(loads, multiplies) * 1.2 * kCycle + kGates +
                      kBlockBarrier * (p.backward || !p.one_product ? 2.0 : 1.0);
  plan->nanoseconds = kLaunch + as_double(waves) * as_double(p.steps) *
                                    std::max(step, memory_nanoseconds(p) / as_double(waves));
  return true;
}

/// Shared memory of a group's block.
inline std::int64_t group_bytes(const RecurrentProblem& p, RecurrentPath path, const GroupTiles& t,
                                std::int64_t rows) {
  const std::int64_t buffers = path == RecurrentPath::kGrid ? 1 : 2;
  return t.in_shared * t.tile_bytes(p.value_bytes) + rows * kTileRowBytes +
         buffers * rows * t.pitch * p.value_bytes +
         std::int64_t{t.depth_tiles} * rows * t.sums_pitch * 4;
}

/// Groups of so many blocks that run at the same time.
inline std::int64_t groups_at_once(const RecurrentProblem& p, RecurrentPath path, int blocks) {
  // The multiprocessors of a processing cluster, about 16, are what a cluster has to fit into.
  const int taken = path == RecurrentPath::kCluster ? blocks + blocks / 8 : blocks;
  return std::max(1, p.multiprocessors / taken);
}

inline double group_step_nanoseconds(const RecurrentProblem& p, const RecurrentPlan& plan) {
  const GroupTiles& t = plan.tiles;
  const int pushed = p.backward ? p.gates : 1;
  const double warps = (plan.units * plan.rows + 31) / 32;
  double wait = 2.0 * kBlockBarrier;
  if (plan.path == RecurrentPath::kCluster) {
    wait = kBlockBarrier + kClusterBarrier + 4.0 * kCycle * warps * pushed * plan.blocks;
  } else if (plan.path == RecurrentPath::kGrid) {
    wait = kBlockBarrier + kGridBarrier + as_double(plan.rows) * t.pitch * p.value_bytes / 40.0;
  }
  const double sums = 8.0 * t.depth_tiles * (p.backward ? 1 : p.gates) * kCycle *
                      std::max(1.0, warps / kGroupWarps);
  return product_cycles(t, p.value_bytes, plan.rows) * 1.2 * kCycle + sums + kGates + wait;
}

/// Fill in how many rows a group takes, and the time that this is predicted to take. False: it does
/// not fit.
inline bool cut_rows(const RecurrentProblem& p, int wished_rows, RecurrentPlan* plan) {
  const std::int64_t at_once =
      std::max<std::int64_t>(1, groups_at_once(p, plan->path, plan->blocks) / p.dirs);
  const std::int64_t most_pairs = kGroupThreads / plan->units;
  const std::int64_t most =
      std::min<std::int64_t>({most_pairs, kMostGroupRows, std::max<std::int64_t>(1, p.rows)});
  if (most < 1) return false;
  bool fits = false;
  const std::int64_t even = std::clamp<std::int64_t>((p.rows + at_once - 1) / at_once, 1, most);
  for (std::int64_t rows : {wished_rows > 0 ? std::min<std::int64_t>(wished_rows, most) : even,
                            wished_rows > 0 ? wished_rows : most}) {
    RecurrentPlan cut = *plan;
    // Where shared memory is short, fewer rows.
    while (rows > 1 && group_bytes(p, cut.path, cut.tiles, rows) > p.shared_bytes) rows /= 2;
    if (rows > most || group_bytes(p, cut.path, cut.tiles, rows) > p.shared_bytes) continue;
    cut.rows = static_cast<int>(rows);
    const std::int64_t needed = (p.rows + rows - 1) / rows;
    cut.groups = static_cast<int>(std::min(needed, at_once));
    if (cut.path == RecurrentPath::kGrid) {
      cut.groups = static_cast<int>(
          std::max<std::int64_t>(1, std::min<std::int64_t>(cut.groups, kMostGridRows / rows)));
    }
    cut.shared_bytes = group_bytes(p, cut.path, cut.tiles, rows);
    const std::int64_t waves = (needed + cut.groups - 1) / cut.groups;
    const double step =
        std::max(group_step_nanoseconds(p, cut), memory_nanoseconds(p) / as_double(waves));
    const double load = work_of(p) / cut.blocks * p.value_bytes / 20.0;
    cut.nanoseconds = as_double(waves) * (kLaunch + load + as_double(p.steps) * step);
    if (fits && cut.nanoseconds >= plan->nanoseconds) continue;
    *plan = cut;
    fits = true;
  }
  return fits;
}

inline bool by_group(const RecurrentProblem& p, RecurrentPath path, int blocks, int wished_rows,
                     RecurrentPlan* plan) {
  if (!p.whole || !p.one_product || p.value_bytes == 8 || p.steps > INT32_MAX) return false;
  // Offsets into R are 32-bit.
  if (p.hidden > (std::int64_t{1} << 14)) return false;
  const auto hidden = static_cast<int>(p.hidden);
  plan->path = path;
  plan->blocks = blocks;
  plan->units = (hidden + blocks - 1) / blocks;
  if (plan->units > kGroupThreads) return false;
  plan->tiles = p.backward ? group_tiles(plan->units, p.gates * hidden, p.value_bytes)
                           : group_tiles(p.gates * plan->units, hidden, p.value_bytes);
  return cut_rows(p, wished_rows, plan);
}

/// Call f(path, blocks) for each group that comes into question.
template <class F>
void each_group(const RecurrentProblem& p, const RecurrentWish& wish, F&& f) {
  const auto wanted = [&](RecurrentPath path) { return !wish.given || wish.path == path; };
  if (wanted(RecurrentPath::kBlock)) f(RecurrentPath::kBlock, 1);
  if (wanted(RecurrentPath::kCluster)) {
    for (int blocks = 2; blocks <= p.most_cluster; ++blocks) {
      const bool usual = (blocks & (blocks - 1)) == 0;
      if (wish.blocks > 0 ? blocks == wish.blocks : usual) f(RecurrentPath::kCluster, blocks);
    }
  }
  if (wanted(RecurrentPath::kGrid) && p.cooperative) {
    const auto most =
        static_cast<int>(std::min<std::int64_t>(p.multiprocessors / p.dirs, p.hidden));
    if (wish.blocks > 0) {
      if (wish.blocks <= p.multiprocessors / p.dirs) f(RecurrentPath::kGrid, wish.blocks);
      return;
    }
    for (int blocks = most; blocks >= 2; blocks /= 2) {
      // As many units each as this takes, and no block without.
      const auto units = static_cast<int>((p.hidden + blocks - 1) / blocks);
      f(RecurrentPath::kGrid, static_cast<int>((p.hidden + units - 1) / units));
    }
  }
}

}  // namespace plan_detail

/// With a wish that can be fulfilled: that, as fast as it is.
inline RecurrentPlan recurrent_plan(const RecurrentProblem& given, const RecurrentWish& wish = {}) {
  using namespace plan_detail;  // NOLINT(google-build-using-namespace)
  RecurrentProblem p = given;
  if (p.independent) {
    p.rows = kNominalRows;
    p.steps = kNominalSteps;
  }
  const auto wanted = [&](RecurrentPath path) { return !wish.given || wish.path == path; };
  RecurrentPlan best = by_steps(p);
  bool found = wish.given && wish.path == RecurrentPath::kSteps;
  // What cuBLAS computes may depend on the number of rows.
  const bool any = !p.independent && !wish.given;
  const auto consider = [&](const RecurrentPlan& plan) {
    if ((found || any) && plan.nanoseconds >= best.nanoseconds) return;
    best = plan;
    found = true;
  };
  RecurrentPlan tile;
  if (wanted(RecurrentPath::kTile) && by_tile(p, wish.given || p.independent, &tile)) {
    consider(tile);
  }
  each_group(p, wish, [&](RecurrentPath path, int blocks) {
    RecurrentPlan group;
    if (by_group(p, path, blocks, wish.rows, &group)) consider(group);
  });
  if (wish.given && !found) return recurrent_plan(given);
  if (!p.independent) return best;
  // The path is chosen; its rows are those that there are.
  if (best.path == RecurrentPath::kTile) by_tile(given, /*wished=*/true, &best);
  if (best.path == RecurrentPath::kSteps) best = by_steps(given);
  if (best.path >= RecurrentPath::kBlock) {
    by_group(given, best.path, best.blocks, wish.rows, &best);
  }
  return best;
}

}  // namespace penstock::cuda::mixing
