// Levels of a sliced network in one launch (recurrent::LevelKernels): what stands between two
// levels, the products W x of the upper one with the last states of the lower one, is computed
// where the states are. Which levels, and how blocks share them: recurrent_cuda_levels_plan.h.
//
// The blocks of a team take the same sequences, level by level, with a barrier in between: all
// blocks of the grid and all sequences, or one block and a few of them. The steps are those of
// recurrent_cuda_tile.cuh, so a level has the same bits in a launch of its own.
//
// A cell comes as Steps:
//   Shape              as of a Family (recurrent_cuda.cuh)
//   kProducts          of a step, one after the other
//   forward, backward  all steps of a tile, as tile_forward_steps and tile_backward_steps
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "cells/recurrent_cuda_levels_plan.h"
#include "cells/recurrent_cuda_tile.cuh"
#include "cuda/barriers.h"
#include "cuda/device.h"
#include "cuda/settings.h"
#include "penstock/config.h"

namespace penstock::cuda::mixing {

using recurrent::LevelBackward;
using recurrent::LevelForward;

/// The steps of a cell with one product a step.
template <class Family>
struct OneProduct {
  using Shape = typename Family::Shape;
  static constexpr int kProducts = 1;
  template <class T, int kRows>
  static __device__ __forceinline__ void forward(const ForwardScan& a, const TileThread<kRows>& t,
                                                 T* weights, state_t<T>* states,
                                                 const state_t<T>* b, state_t<T> (&h)[kRows],
                                                 state_t<T> (&c)[kRows]) {
    tile_forward_steps<Family>(a, t, weights, states, b, h, c);
  }
  template <class T, int kRows>
  static __device__ __forceinline__ void backward(const BackwardScan& a, const TileThread<kRows>& t,
                                                  T* weights, state_t<T>* operand,
                                                  state_t<T> (&dh)[kRows],
                                                  state_t<T> (&dc)[kRows]) {
    tile_backward_steps<Family>(a, t, weights, operand, dh, dc);
  }
};

/// The parameter of a launch.
template <class Level>
struct Levels {
  Level level[kLevelsAtOnce];
  LevelSplit split[kLevelsAtOnce];
  std::int32_t count = 0;
  std::int64_t sequences = 0;  // of a block that is a team by itself; 0: the grid is one
  unsigned* word = nullptr;    // of the grid's barrier
};
// What every device takes.
static_assert(sizeof(Levels<LevelForward>) <= 4096 && sizeof(Levels<LevelBackward>) <= 4096,
              "too many levels for a kernel's parameters");

/// The sequences of a team, and a block's place in it. Row i of the team at a level is part
/// i / count of sequence begin + i % count.
struct Team {
  std::int64_t begin, count;
  std::int64_t rank, size;
  bool grid;

  template <class Level>
  __device__ __forceinline__ explicit Team(const Levels<Level>& a) {
    const std::int64_t batch = a.level[0].dims.cut.batch;
    grid = a.sequences == 0;
    rank = grid ? blockIdx.x : 0;
    size = grid ? gridDim.x : 1;
    begin = grid ? 0 : blockIdx.x * a.sequences;
    count = grid ? batch : min(a.sequences, batch - begin);
  }
  /// What the team's blocks wrote before, all of them see after.
  __device__ __forceinline__ void barrier(unsigned* word) const {
    if (grid) {
      grid_barrier(word);
    } else {
      __syncthreads();
    }
  }
};

/// A block's tiles of one direction at a level.
struct TileRange {
  std::int64_t rows;         // of the team
  std::int64_t first, last;  // tiles; none if they are equal

  /// `m` rows each. The tiles of both directions are dealt out one after the other.
  __device__ __forceinline__ TileRange(const Dims& d, const Team& team, std::int64_t dir, int m) {
    rows = d.cut.parts * team.count;
    const std::int64_t tiles = (rows + m - 1) / m, all = tiles * d.dirs;
    first = max(all * team.rank / team.size - dir * tiles, std::int64_t{0});
    last = min(all * (team.rank + 1) / team.size - dir * tiles, tiles);
    if (last < first) last = first;
  }
};

/// Row `row` of a team among all rows of the level.
__device__ __forceinline__ std::int64_t level_row(const Dims& d, const Team& team,
                                                  std::int64_t row) {
  const std::int64_t part = row / team.count;
  return part * d.cut.batch + team.begin + row - part * team.count;
}

/// The weights of a level's direction into shared memory: `input`, W; `state`, R.
template <int kGates, class T>
__device__ __forceinline__ void bring_weights(const LevelForward& a, const LevelSplit& split,
                                              std::int64_t dir, bool input, bool state,
                                              unsigned char* shared) {
  const int columns = static_cast<int>(a.dims.input);
  const int rows = kGates * static_cast<int>(a.dims.hidden);
  if (input) {
    load_columns(static_cast<const T*>(a.weight_ih) + dir * rows * columns, rows, columns,
                 static_cast<int>(tile_pitch(kGates, a.dims.hidden)), reinterpret_cast<T*>(shared));
  }
  if (state) load_transposed(a, kGates, dir, reinterpret_cast<T*>(shared + split.state_weights));
}
template <int kGates, class T>
__device__ __forceinline__ void bring_weights(const LevelBackward& a, const LevelSplit& split,
                                              std::int64_t dir, bool input, bool state,
                                              unsigned char* shared) {
  const int count = kGates * static_cast<int>(a.dims.hidden * a.dims.input);
  if (input) {
    load_as_it_is(static_cast<const T*>(a.weight_ih) + dir * count, count,
                  reinterpret_cast<T*>(shared));
  }
  if (state) load_weights(a, kGates, dir, reinterpret_cast<T*>(shared + split.state_weights));
}

/// Whether W x, or dx, is computed here.
__device__ __forceinline__ bool has_products(const LevelForward& a) { return a.x != nullptr; }
__device__ __forceinline__ bool has_products(const LevelBackward& a) { return a.dx != nullptr; }
/// Whether W is used before R.
__device__ __forceinline__ bool products_first(const LevelForward&) { return true; }
__device__ __forceinline__ bool products_first(const LevelBackward&) { return false; }

/// What of a direction's weights can be there from the beginning.
template <int kGates, class T, class Level>
__device__ __forceinline__ void bring_first(const Level& a, const LevelSplit& split,
                                            std::int64_t dir, unsigned char* shared) {
  const bool products = has_products(a), both = !products || split.state_weights > 0;
  __syncthreads();  // what was in shared memory has been read
  bring_weights<kGates, T>(a, split, dir, products && (both || products_first(a)),
                           both || !products_first(a), shared);
}
/// The rest, where one is in the place of the other.
template <int kGates, class T, class Level>
__device__ __forceinline__ void bring_second(const Level& a, const LevelSplit& split,
                                             std::int64_t dir, unsigned char* shared) {
  if (!has_products(a) || split.state_weights > 0) return;
  __syncthreads();
  bring_weights<kGates, T>(a, split, dir, !products_first(a), products_first(a), shared);
}

/// bring_first of the first direction of which the block has tiles; the direction, or -1. What a
/// level reads first is on its way while blocks wait for each other.
template <int kGates, class T, class Level>
__device__ __forceinline__ int bring_early(const Level& a, const LevelSplit& split,
                                           const Team& team, unsigned char* shared) {
  for (int dir = 0; dir < static_cast<int>(a.dims.dirs); ++dir) {
    const TileRange range(a.dims, team, dir, split.groups * kLevelRows);
    if (range.first == range.last) continue;
    bring_first<kGates, T>(a, split, dir, shared);
    return dir;
  }
  return -1;
}

/// `out` (entry, sequence, `columns` per row with a thread each) = x (entry, sequence, `terms`) ·
/// weights, for all steps of a block's tiles, as many rows at a time as the block has groups for:
/// kSums sums per thread, `gate` columns of the weights apart and `pitch` elements from one term
/// to the next. Every thread of the block calls it; barriers are first and last.
template <int kSums, class T, class Out>
__device__ __forceinline__ void level_products(const Dims& d, const Team& team,
                                               const TileRange& range, int tile_rows,
                                               const LevelSplit& split, int columns, int terms,
                                               int pitch, int gate, const T* x,
                                               std::int64_t x_stride, Out* out,
                                               std::int64_t out_stride, unsigned char* shared) {
  using S = state_t<T>;
  const int m = split.wide * kLevelRows, threads = static_cast<int>(blockDim.x);
  const T* weights = reinterpret_cast<const T*>(shared);
  auto* place = reinterpret_cast<std::int64_t*>(shared + split.product_values);  // -1: none
  S* values = reinterpret_cast<S*>(place + m);
  const std::int64_t row_begin = range.first * tile_rows;
  const std::int64_t row_end = min(range.last * tile_rows, range.rows);
  const std::int64_t entries = (row_end - row_begin) * d.cut.steps;
  const int thread = static_cast<int>(threadIdx.x), group = thread / columns;
  const int column = thread - group * columns;
  for (std::int64_t first = 0; first < entries; first += m) {
    __syncthreads();
    for (int r = thread; r < m; r += threads) {
      std::int64_t at = -1;
      if (first + r < entries) {
        const std::int64_t index = (first + r) / d.cut.steps, row = row_begin + index;
        const std::int64_t step = first + r - index * d.cut.steps, part = row / team.count;
        at = (part * d.cut.steps + step) * d.cut.batch + team.begin + row - part * team.count;
      }
      place[r] = at;
    }
    __syncthreads();
    const int more_rows = threads / terms, more_terms = threads - more_rows * terms;
    int r = thread / terms, term = thread - r * terms;
#pragma unroll 4
    for (; r < m; r += more_rows) {
      const std::int64_t at = place[r];
      values[term * m + r] = at < 0 ? S(0) : widen(x[at * x_stride + term]);
      term += more_terms;
      if (term >= terms) {
        term -= terms;
        ++r;
      }
    }
    __syncthreads();
    if (group >= split.wide) continue;
    S sum[kSums][kLevelRows] = {};
    multiply_tile(weights + column, pitch, gate, values + group * kLevelRows, m, terms, sum);
#pragma unroll
    for (int j = 0; j < kLevelRows; ++j) {
      const std::int64_t at = place[group * kLevelRows + j];
      if (at < 0) continue;
#pragma unroll
      for (int g = 0; g < kSums; ++g) {
        out[at * out_stride + g * gate + column] = narrow<Out>(sum[g][j]);
      }
    }
  }
  __syncthreads();
}

/// Fill the rows of a tile. Every thread of the block calls it; barriers are first and last.
__device__ __forceinline__ void fill_level_rows(const Dims& d, const Team& team,
                                                const TileRange& range, std::int64_t tile, int m,
                                                TileRow* out) {
  __syncthreads();
  for (int r = static_cast<int>(threadIdx.x); r < m; r += static_cast<int>(blockDim.x)) {
    const std::int64_t row = tile * m + r, part = row / team.count;
    out[r] =
        row < range.rows ? tile_row(d.cut, part, team.begin + row - part * team.count) : TileRow();
  }
  __syncthreads();
}

/// A block's part of a level, forward. `ready`: the direction whose weights are there, or -1.
template <class Steps, class T>
__device__ __forceinline__ void forward_level(const LevelForward& a, const LevelSplit& split,
                                              const Team& team, int ready, unsigned char* shared) {
  using S = state_t<T>;
  using Shape = typename Steps::Shape;
  constexpr int kGates = Shape::kGates;
  const Dims& d = a.dims;
  const int hidden = static_cast<int>(d.hidden), m = split.groups * kLevelRows;
  auto* weights = reinterpret_cast<T*>(shared + split.state_weights);
  auto* rows = reinterpret_cast<TileRow*>(shared + split.step_values);
  S* states = reinterpret_cast<S*>(rows + m);
  for (int dir = 0; dir < static_cast<int>(d.dirs); ++dir) {
    const TileRange range(d, team, dir, m);
    if (range.first == range.last) continue;
    if (dir != ready) bring_first<kGates, T>(a, split, dir, shared);
    if (a.x != nullptr) {
      level_products<kGates>(d, team, range, m, split, hidden, static_cast<int>(d.input),
                             static_cast<int>(tile_pitch(kGates, d.hidden)), hidden,
                             static_cast<const T*>(a.x), d.input,
                             static_cast<T*>(dir == 0 ? a.gates.data[0] : a.gates.data[1]),
                             a.gates.row_stride, shared);
      bring_second<kGates, T>(a, split, dir, shared);
    }
    for (std::int64_t tile = range.first; tile < range.last; ++tile) {
      fill_level_rows(d, team, range, tile, m, rows);
      const TileThread<kLevelRows> t(d, split.groups, rows, dir, 0);
      S h[kLevelRows] = {}, c[kLevelRows] = {}, b[Shape::kBiases] = {};
      if (t.active) {
        S of_x[kGates], of_h[kGates];
#pragma unroll
        for (int g = 0; g < kGates; ++g) {
          const std::int64_t from = (t.dir * kGates + g) * d.hidden + t.unit;
          of_x[g] = widen(__ldg(static_cast<const T*>(a.bias_ih) + from));
          of_h[g] = widen(__ldg(static_cast<const T*>(a.bias_hh) + from));
        }
        Shape::combine_bias(of_x, of_h, b);
      }
      Steps::forward(a, t, weights, states, b, h, c);
      if (!t.active) continue;
#pragma unroll
      for (int j = 0; j < kLevelRows; ++j) {
        if (!t.exists(j)) continue;
        const std::int64_t row = level_row(d, team, tile * m + t.at + j);
        const std::int64_t i = row * d.width() + dir * d.hidden + t.unit;
        const T last = narrow<T>(h[j]);
        static_cast<T*>(a.outputs)[i] = last;
        if (a.kept != nullptr) static_cast<T*>(a.kept)[i] = last;
      }
    }
  }
}

/// A block's part of a level, backward. `dabove`: LevelBackward::dx of the level above, or null.
template <class Steps, class T>
__device__ __forceinline__ void backward_level(const LevelBackward& a, const state_t<T>* dabove,
                                               const LevelSplit& split, const Team& team, int ready,
                                               unsigned char* shared) {
  using S = state_t<T>;
  using Shape = typename Steps::Shape;
  constexpr int kGates = Shape::kGates;
  const Dims& d = a.dims;
  const int m = split.groups * kLevelRows;
  const std::int64_t outputs = d.cut.rows() * d.width();
  auto* weights = reinterpret_cast<T*>(shared + split.state_weights);
  auto* rows = reinterpret_cast<TileRow*>(shared + split.step_values);
  S* operand = reinterpret_cast<S*>(rows + m);
  for (int dir = 0; dir < static_cast<int>(d.dirs); ++dir) {
    const TileRange range(d, team, dir, m);
    if (range.first == range.last) continue;
    if (dir != ready) bring_first<kGates, T>(a, split, dir, shared);
    for (std::int64_t tile = range.first; tile < range.last; ++tile) {
      fill_level_rows(d, team, range, tile, m, rows);
      const TileThread<kLevelRows> t(d, split.groups, rows, dir, 0);
      S dh[kLevelRows] = {}, dc[kLevelRows] = {};
      if (t.active) {
#pragma unroll
        for (int j = 0; j < kLevelRows; ++j) {
          if (!t.exists(j)) continue;
          const std::int64_t row = level_row(d, team, tile * m + t.at + j);
          const std::int64_t i = row * d.width() + dir * d.hidden + t.unit;
          if (dabove != nullptr) {
            dh[j] = dabove[i];
            if (d.dirs == 2) dh[j] += dabove[outputs + i];
          }
          if (a.doutputs != nullptr) dh[j] += widen(static_cast<const T*>(a.doutputs)[i]);
        }
      }
      Steps::backward(a, t, weights, operand, dh, dc);
    }
    if (a.dx == nullptr) continue;
    bring_second<kGates, T>(a, split, dir, shared);
    const auto input = static_cast<int>(d.input);
    level_products<1>(
        d, team, range, m, split, input, kGates * static_cast<int>(d.hidden), input, 0,
        static_cast<const T*>(dir == 0 ? a.dgates.data[0] : a.dgates.data[1]), a.dgates.row_stride,
        static_cast<S*>(a.dx) + dir * d.cut.entries() * d.cut.batch * d.input, d.input, shared);
  }
}

// All levels, forward.
// Work split: a team of blocks per range of sequences (Team); at each level its blocks share the
// tiles of rows and the directions, and a thread takes a unit of kLevelRows rows. A block first
// computes W x for all steps of its tiles' rows (but for the network's lowest level), as many rows
// at a time as it has threads for, then takes the tiles through their steps. Traffic per (row,
// unit) and step, in elements: D of x per row out of the second cache, G of W x out and in again,
// and what tile_forward_kernel writes; the outputs twice where they are kept. Shared memory: W or
// R, and a few rows, whichever is more (levels_launch). Limits: H <= kLevelThreads, one block per
// multiprocessor; 64-bit offsets. Invariants: a block's W x and states are read by no other but
// after the team's barrier; a padded step's W x is not used. Launch: with_levels, cooperative where
// the grid is one team.
template <class Steps, class T>
__global__ void __launch_bounds__(kLevelThreads, 1)
    levels_forward_kernel(const __grid_constant__ Levels<LevelForward> a) {
  PENSTOCK_SHARED_MEMORY(unsigned char, shared);
  const Team team(a);
  for (int i = 0; i < a.count; ++i) {
    const int ready = bring_early<Steps::Shape::kGates, T>(a.level[i], a.split[i], team, shared);
    if (i > 0) team.barrier(a.word);
    forward_level<Steps, T>(a.level[i], a.split[i], team, ready, shared);
  }
}

// All levels, backward, from the uppermost to the lowest.
// Work split, launch: as forward. What a level leaves for the one below, the gates' gradients times
// W, each direction's apart, is in float32, so with 16-bit types it is rounded less than in
// launches of their own. Traffic: what tile_backward_kernel has; besides, per (row, unit) and step,
// the gates' gradients in again and dx out, D of it per row, and in at the level below. Shared
// memory: R or W, and G·H values of a few rows. Limits: as forward, and D <= kLevelThreads but at
// the lowest level. Invariants: gradients of padded steps are zeros, so they add nothing to dx.
template <class Steps, class T>
__global__ void __launch_bounds__(kLevelThreads, 1)
    levels_backward_kernel(const __grid_constant__ Levels<LevelBackward> a) {
  PENSTOCK_SHARED_MEMORY(unsigned char, shared);
  const Team team(a);
  for (int i = a.count - 1; i >= 0; --i) {
    const int ready = bring_early<Steps::Shape::kGates, T>(a.level[i], a.split[i], team, shared);
    const state_t<T>* dabove = nullptr;
    if (i + 1 < a.count) {
      team.barrier(a.word);
      dabove = static_cast<const state_t<T>*>(a.level[i + 1].dx);
    }
    backward_level<Steps, T>(a.level[i], dabove, a.split[i], team, ready, shared);
  }
}

// ---- launches ----------------------------------------------------------------------------------

/// PENSTOCK_CUDA_LEVELS: 0, no level in a launch with others; 1, all that can be; "grid" or
/// "blocks", these as one team or as many.
inline LevelsWish levels_wish() {
  const char* text = std::getenv("PENSTOCK_CUDA_LEVELS");
  if (text == nullptr) return LevelsWish::kNone;
  if (std::strcmp(text, "grid") == 0) return LevelsWish::kGrid;
  if (std::strcmp(text, "blocks") == 0) return LevelsWish::kBlocks;
  return text[0] == '0' ? LevelsWish::kApart : LevelsWish::kJoint;
}

inline LevelShape level_shape(const Dims& d) {
  LevelShape s;
  s.input = d.input;
  s.hidden = d.hidden;
  s.parts = d.cut.parts;
  s.steps = d.cut.steps;
  return s;
}

/// The planner's problem of levels that begin with one of dims `d`.
template <class Steps>
LevelsProblem levels_problem(const Context& ctx, const Dims& d, const LevelShape* shapes, int count,
                             bool backward) {
  LevelsProblem p;
  p.levels = shapes;
  p.count = count;
  p.backward = backward;
  p.independent = batch_invariant();
  p.batch = d.cut.batch;
  p.dirs = d.dirs;
  p.gates = Steps::Shape::kGates;
  p.products = Steps::kProducts;
  p.value_bytes = static_cast<int>(size_of(d.compute));
  p.shared_bytes = attribute(ctx, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  p.multiprocessors = attribute(ctx, cudaDevAttrMultiProcessorCount);
  return p;
}

template <class Steps>
int first_level(const Context& ctx, const Dims* levels, int count, bool backward) {
  if (levels[0].compute == DataType::kFloat64) return count;
  const DeviceGuard guard(ctx);
  std::vector<LevelShape> shapes;
  for (int i = 0; i < count; ++i) shapes.push_back(level_shape(levels[i]));
  const LevelsProblem p = levels_problem<Steps>(ctx, levels[0], shapes.data(), count, backward);
  return levels_plan(p, levels_wish()).first;
}

inline bool from_input(const LevelForward& level) { return level.x == nullptr; }
inline bool from_input(const LevelBackward&) { return true; }

/// Call f(LaunchShape, parameter) for levels that have been chosen.
template <class Steps, class Level, class F>
void with_levels(const Context& ctx, const Level* levels, int count, bool backward, void* scratch,
                 F&& f) {
  const DeviceGuard guard(ctx);
  std::vector<LevelShape> shapes;
  for (int i = 0; i < count; ++i) shapes.push_back(level_shape(levels[i].dims));
  LevelsProblem p = levels_problem<Steps>(ctx, levels[0].dims, shapes.data(), count, backward);
  p.from_input = from_input(levels[0]);
  const LevelsPlan plan = levels_launch(p, 0, levels_wish());
  if (plan.blocks == 0) throw Error(ErrorCode::kRuntime, "CUDA: levels that fit no launch");
  if (setting("PENSTOCK_CUDA_PLAN") != 0) {
    std::fprintf(stderr,
                 "penstock: %d levels at once, %s: %lld blocks of %d threads and %lld bytes, %s, "
                 "predicted %.1f us\n",
                 count, backward ? "backward" : "forward", static_cast<long long>(plan.blocks),
                 plan.threads, static_cast<long long>(plan.shared_bytes),
                 plan.grid ? "one team" : "a team each", plan.nanoseconds * 1e-3);
  }
  Levels<Level> a;
  for (int i = 0; i < count; ++i) {
    a.level[i] = levels[i];
    a.split[i] = plan.split[i];
  }
  a.count = count;
  a.sequences = plan.grid ? 0 : plan.sequences;
  a.word = static_cast<unsigned*>(scratch);
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(plan.blocks));
  shape.block = dim3(static_cast<unsigned>(plan.threads));
  shape.shared_bytes = static_cast<std::size_t>(plan.shared_bytes);
  shape.cooperative = plan.grid;
  if (plan.grid) ctx.backend().fill_zero(ctx, scratch, sizeof(unsigned));
  with_type(levels[0].dims.compute, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if constexpr (sizeof(T) <= 4) f(tag, shape, a);
  });
}

template <class Steps>
void forward_levels(const Context& ctx, const LevelForward* levels, int count, void* scratch) {
  with_levels<Steps>(ctx, levels, count, /*backward=*/false, scratch,
                     [&](auto tag, const LaunchShape& shape, const Levels<LevelForward>& a) {
                       using T = typename decltype(tag)::type;
                       launch(ctx, "levels_forward", levels_forward_kernel<Steps, T>, shape, a);
                     });
}

template <class Steps>
void backward_levels(const Context& ctx, const LevelBackward* levels, int count, void* scratch) {
  with_levels<Steps>(ctx, levels, count, /*backward=*/true, scratch,
                     [&](auto tag, const LaunchShape& shape, const Levels<LevelBackward>& a) {
                       using T = typename decltype(tag)::type;
                       launch(ctx, "levels_backward", levels_backward_kernel<Steps, T>, shape, a);
                     });
}

/// Of the barrier's word.
constexpr std::size_t kLevelsScratchBytes = sizeof(unsigned);

template <class Steps>
inline constexpr recurrent::LevelKernels kLevelKernels = {
    &first_level<Steps>, kLevelsScratchBytes, &forward_levels<Steps>, &backward_levels<Steps>};

}  // namespace penstock::cuda::mixing
