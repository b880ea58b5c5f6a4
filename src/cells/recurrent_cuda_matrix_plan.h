// Whether the steps of a scan go through tiles on tensor cores (recurrent_cuda_matrix.cuh), how
// large a tile is, and where its pieces lie in shared memory. Plain C++, so that it can be tested
// without a device.
//
// Results do not depend on a tile's size, only on whether such tiles are taken at all. The
// constants are estimates: none was measured on a GPU yet.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/scalar_math.h"

namespace penstock::cuda {

struct MatrixTileProblem {
  bool backward = false;
  bool independent = false;  // a row's result must not depend on how many rows there are
  int gates = 1;
  int biases = 1;  // forward: values of the bias per unit
  bool has_c = false;
  int value_bytes = 4;  // of an element: 4 (float32) or 2; others are not for these tiles
  std::int64_t hidden = 0, dirs = 1;
  std::int64_t rows = 0;   // of a direction
  std::int64_t steps = 0;  // of each
  double moved = 0.0;      // bytes per step and unit of a row, through device memory
  std::int64_t input = 0;  // D, where the tile takes x and finds W x itself; else 0
  int multiprocessors = 1;
  std::int64_t block_shared = 0;  // bytes of shared memory that a block may have
  std::int64_t total_shared = 0;  // that a multiprocessor has for its blocks
};

constexpr int kMatrixRows = 16;  // of a row block, as the products have them
constexpr int kMatrixUnits = 8;  // of a unit block
/// Warps that a tile may have: as many as leave each thread the registers that it needs.
constexpr int matrix_warps(int gates, int value_bytes) {
  return gates == 4 && value_bytes == 4 ? 12 : 16;
}
constexpr int kMatrixFragmentBytes = 16 * 32;  // of an operand: a warp's 16 rows by one chunk
constexpr int kMatrixRowBytes = 16;            // of what a tile keeps about a row

/// A tile: its cut into blocks, and its pieces in shared memory in bytes from the start, where the
/// weights are. row_blocks = 0: there is none.
struct MatrixTile {
  int row_blocks = 0;   // of kMatrixRows
  int unit_blocks = 0;  // of kMatrixUnits
  int span = 1;         // row blocks that a warp takes together: they share what it reads of R
  int warps = 0;
  int chunks = 0;   // of units, 16 (16-bit types) or 8 (float32), in a sum over units
  int depth = 0;    // chunks of a product's sum: forward over units, backward over all gates' units
  int buffers = 2;  // of the operand, each `operand_bytes`. With two, one barrier a step is enough
  int operand = 0, operand_bytes = 0;
  int state = 0;  // h where the operand does not hold it; dh. float32
  int c = 0;      // c or dc, where the cell has one
  int bias = 0;
  int rows = 0;
  // Where the tile takes x itself: W, and two buffers of the tile's rows of x.
  int input_chunks = 0, input_weights = 0;
  int input = 0, input_bytes = 0, input_pitch = 0;  // pitch: bytes from row to row
  std::int64_t shared_bytes = 0;

  PENSTOCK_HOST_DEVICE int items() const { return (row_blocks + span - 1) / span * unit_blocks; }
};

/// The tile of so many row blocks, whether it fits or not.
inline MatrixTile matrix_tile(const MatrixTileProblem& p, int row_blocks, int buffers) {
  MatrixTile t;
  const bool wide = p.value_bytes == 4;
  const std::int64_t units = (p.hidden + kMatrixUnits - 1) / kMatrixUnits;
  const std::int64_t chunks = wide ? units : (units + 1) / 2;
  const std::int64_t depth = p.backward ? p.gates * chunks : chunks;
  // A weight of float32 is two numbers.
  std::int64_t at = units * chunks * p.gates * (wide ? 512 : 256);
  const auto take = [&](std::int64_t bytes) {
    const std::int64_t begin = at;
    at += (bytes + 15) / 16 * 16;
    return static_cast<int>(std::min<std::int64_t>(begin, INT32_MAX));
  };
  t.row_blocks = row_blocks;
  t.unit_blocks = static_cast<int>(units);
  t.chunks = static_cast<int>(chunks);
  t.depth = static_cast<int>(depth);
  t.buffers = buffers;
  const std::int64_t operand = row_blocks * depth * kMatrixFragmentBytes;
  const std::int64_t states = row_blocks * units * kMatrixFragmentBytes;
  t.operand_bytes = static_cast<int>(operand);
  t.operand = take(buffers * operand);
  // Forward, a fragment of float32 is h itself.
  t.state = take(p.backward || !wide ? states : 0);
  t.c = take(p.has_c ? states : 0);
  t.bias = take(p.backward ? 0 : p.biases * units * kMatrixUnits * 4);
  t.rows = take(static_cast<std::int64_t>(row_blocks) * kMatrixRows * kMatrixRowBytes);
  if (p.input > 0) {
    const std::int64_t chunk = wide ? 8 : 16, inner = (p.input + chunk - 1) / chunk;
    // Such that neither the 8 rows of a matrix (16-bit types) nor the 4 rows that half a warp reads
    // at a time (float32) meet in a bank.
    const std::int64_t pitch = wide ? (inner + 1 - inner % 2) * 32 : inner * 32 + 16;
    t.input_chunks = static_cast<int>(inner);
    t.input_pitch = static_cast<int>(pitch);
    t.input_bytes = static_cast<int>(row_blocks * kMatrixRows * pitch);
    t.input_weights = take(units * inner * p.gates * (wide ? 512 : 256));
    t.input = take(2 * row_blocks * kMatrixRows * pitch);
  }
  t.shared_bytes = at;

  // As many warps as let all of them have the same number of items, nearly.
  const int warps = matrix_warps(p.gates, p.value_bytes);
  t.span = row_blocks * t.unit_blocks <= warps ? 1 : 2;
  const int turns = (t.items() + warps - 1) / warps;
  t.warps = (t.items() + turns - 1) / std::max(turns, 1);
  return t;
}

struct MatrixTilePlan {
  MatrixTile tile;  // row_blocks = 0: none fits
  bool take = false;
  double nanoseconds = 0.0;  // predicted, of the scan
};

/// Predicted time of a step of `tiles` tiles that a multiprocessor works on at the same time.
inline double matrix_step_nanoseconds(const MatrixTileProblem& p, const MatrixTile& t,
                                      std::int64_t tiles) {
  constexpr double kBytesPerNs = 24.0;  // of each multiprocessor: 3.2 TB/s on 132 of them
  // Multiply-adds, at about 60 % of what the instruction can do; of float32, three products.
  const double multiplied_per_ns = p.value_bytes == 4 ? 200.0 : 1000.0;
  constexpr double kInstructionsPerNs = 160.0;  // of all threads
  const double cell = 25.0 + 25.0 * p.gates;    // instructions per unit of a row
  constexpr double kWait = 600.0;               // a barrier, a product's and a cell's latency
  const double rows = static_cast<double>(tiles) * t.row_blocks * kMatrixRows;
  const double units = static_cast<double>(t.unit_blocks) * kMatrixUnits;
  const double depth =
      static_cast<double>(t.chunks + t.input_chunks) * (p.value_bytes == 4 ? 8 : 16) * p.gates;
  const double bytes = rows * static_cast<double>(p.hidden) * p.moved / kBytesPerNs;
  const double work = rows * units * (depth / multiplied_per_ns + cell / kInstructionsPerNs);
  return kWait + std::max(bytes, work);
}

inline double matrix_nanoseconds(const MatrixTileProblem& p, const MatrixTile& t) {
  constexpr double kLaunch = 3000.0;
  constexpr double kWeightBytesPerNs = 20.0;  // from a cache, rearranged on the way
  constexpr std::int64_t kOther = 1024;       // bytes that a block takes besides
  // Threads of a multiprocessor, by registers.
  const std::int64_t most_threads = 32 * matrix_warps(p.gates, p.value_bytes);
  const std::int64_t tile_rows = t.row_blocks * kMatrixRows;
  const std::int64_t tiles = (p.rows + tile_rows - 1) / tile_rows * p.dirs;
  const std::int64_t each = (tiles + p.multiprocessors - 1) / p.multiprocessors;
  const std::int64_t together = std::max<std::int64_t>(
      1, std::min(p.total_shared / (t.shared_bytes + kOther), most_threads / (32 * t.warps)));
  const auto turn = [&](std::int64_t n) {
    return n == 0 ? 0.0
                  : static_cast<double>(t.operand) / kWeightBytesPerNs +
                        static_cast<double>(p.steps) * matrix_step_nanoseconds(p, t, n);
  };
  return kLaunch + static_cast<double>(each / together) * turn(together) + turn(each % together);
}

/// The best tile, and whether to take it. `forced`: 0 never, 1 wherever one fits, else by choice.
inline MatrixTilePlan matrix_tile_plan(const MatrixTileProblem& p, int forced = -1) {
  MatrixTilePlan plan;
  if (forced == 0 || (p.value_bytes != 2 && p.value_bytes != 4) || p.hidden < 1 || p.rows < 1) {
    return plan;
  }
  constexpr int kMostRowBlocks = 16;
  for (int row_blocks = 1; row_blocks <= kMostRowBlocks; ++row_blocks) {
    MatrixTile t = matrix_tile(p, row_blocks, 2);
    // Backward the operand is large; a second barrier a step then takes the second buffer's place.
    if (p.backward && t.shared_bytes > p.block_shared) t = matrix_tile(p, row_blocks, 1);
    if (t.shared_bytes > p.block_shared) break;
    const double nanoseconds = matrix_nanoseconds(p, t);
    if (plan.tile.row_blocks == 0 || nanoseconds < plan.nanoseconds) {
      plan.tile = t;
      plan.nanoseconds = nanoseconds;
    }
    if (static_cast<std::int64_t>(row_blocks) * kMatrixRows >= p.rows) break;
  }
  if (plan.tile.row_blocks == 0) return plan;
  // With fewer rows than fill one row block per multiprocessor, most of a product is empty, and
  // tiles without tensor cores spread the rows further.
  plan.take = forced == 1 || p.independent ||
              p.rows * p.dirs >= std::int64_t{kMatrixRows} * p.multiprocessors;
  return plan;
}

/// The plan of a forward scan that takes x itself, D = p.input, in place of one that reads W x; not
/// to be taken where the latter, with the product over all steps before it, is predicted to be
/// sooner done. `p.moved` is that of the latter. `forced`: as above; `forced_input`: likewise.
inline MatrixTilePlan matrix_input_plan(const MatrixTileProblem& p, int forced = -1,
                                        int forced_input = -1) {
  constexpr double kLaunch = 3000.0;
  constexpr double kBytesPerNs = 24.0;        // of each multiprocessor
  constexpr double kMultipliedPerNs = 200.0;  // of float32; 16-bit types wait for the bytes
  MatrixTileProblem apart = p, fused = p;
  apart.input = 0;
  const auto hidden = static_cast<double>(p.hidden), input = static_cast<double>(p.input);
  fused.moved += p.value_bytes * (input / std::max(hidden, 1.0) - p.gates);
  const MatrixTilePlan without = matrix_tile_plan(apart, forced);
  if (!without.take || p.input < 1 || forced_input == 0) return {};
  MatrixTilePlan plan = matrix_tile_plan(fused, 1);
  if (!plan.take || forced_input == 1) return plan;
  const double rows =
      static_cast<double>(p.rows) * static_cast<double>(p.dirs * p.steps) / p.multiprocessors;
  const double bytes = rows * p.value_bytes * (input + p.gates * hidden) / kBytesPerNs;
  const double work = p.value_bytes == 4 ? rows * input * p.gates * hidden / kMultipliedPerNs : 0.0;
  plan.take =
      p.input <= 3 * p.hidden &&
      (p.independent || plan.nanoseconds < without.nanoseconds + kLaunch + std::max(bytes, work));
  return plan;
}

}  // namespace penstock::cuda
