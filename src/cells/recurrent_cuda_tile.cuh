// The path for weights R that fit into a block's shared memory: a block takes a tile of rows
// through all steps, with R and the tile's states on chip. No block waits for another, and what
// goes through device memory is W x in, gates and y out.
//
// A thread owns one unit of kRows neighbouring rows; a group of H threads owns all units of these
// rows, and a block has several groups. The sum over h_prev of a (row, unit) runs in order in one
// thread, so a row's result depends on nothing but the row.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <type_traits>

#include "cells/recurrent_cuda.cuh"
#include "cells/recurrent_cuda_plan.h"
#include "cuda/device.h"
#include "cuda/settings.h"
#include "penstock/config.h"

namespace penstock::cuda::mixing {

template <class T>
constexpr int kManyRows = many_rows(sizeof(state_t<T>));

/// A row of a tile: what its threads must know of it.
struct alignas(16) TileRow {
  std::int64_t first = -1;  // its row of `Rows` at time 0; -1: the tile is not full
  std::int32_t begin = 0;   // steps in time [begin, end) count
  std::int32_t end = 0;
};
static_assert(sizeof(TileRow) == kTileRowBytes, "as the planner counts them");

/// A scan as the planner sees it.
inline RecurrentProblem problem_of(const Context& ctx, const Scan& a, int gates, bool backward) {
  const Dims& d = a.dims;
  RecurrentProblem p;
  p.backward = backward;
  p.independent = batch_invariant();
  p.whole = is_whole(a);
  p.rows = d.cut.rows();
  p.steps = d.cut.steps;
  p.hidden = d.hidden;
  p.dirs = static_cast<int>(d.dirs);
  p.gates = gates;
  p.value_bytes = static_cast<int>(size_of(d.compute));
  p.multiprocessors = attribute(ctx, cudaDevAttrMultiProcessorCount);
  p.shared_bytes = attribute(ctx, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  p.most_cluster = capability(ctx) >= 90 && attribute(ctx, cudaDevAttrClusterLaunch) != 0 ? 16 : 1;
  p.cooperative = attribute(ctx, cudaDevAttrCooperativeLaunch) != 0;
  return p;
}

/// The planner's choice, or what PENSTOCK_CUDA_RECURRENT asks for.
inline RecurrentPlan choose(const RecurrentProblem& p) {
  return recurrent_plan(p, recurrent_wish(std::getenv("PENSTOCK_CUDA_RECURRENT")));
}

/// Say on stderr what was chosen, where PENSTOCK_CUDA_PLAN asks for it.
inline void report(const RecurrentProblem& p, const RecurrentPlan& plan) {
  if (setting("PENSTOCK_CUDA_PLAN") == 0) return;
  std::fprintf(stderr,
               "penstock: recurrent %s, %d gates, %d bytes: %lld rows, %lld steps, H %lld, %d "
               "multiprocessors: %s",
               p.backward ? "backward" : "forward", p.gates, p.value_bytes,
               static_cast<long long>(p.rows * p.dirs), static_cast<long long>(p.steps),
               static_cast<long long>(p.hidden), p.multiprocessors, name_of(plan.path));
  if (plan.path == RecurrentPath::kTile) {
    std::fprintf(stderr, " of %d rows", plan.tile_groups * plan.per_thread);
  } else if (plan.path != RecurrentPath::kSteps) {
    std::fprintf(stderr, ", %d groups of %d blocks take %d rows each, %lld bytes of shared memory",
                 plan.groups * p.dirs, plan.blocks, plan.rows,
                 static_cast<long long>(plan.shared_bytes));
  }
  std::fprintf(stderr, ", predicted %.1f us\n", plan.nanoseconds * 1e-3);
}

/// How a tile kernel is launched.
struct TileLaunch {
  int groups = 0;
  LaunchShape shape;
};

inline TileLaunch tile_launch(const Dims& d, const RecurrentPlan& plan) {
  TileLaunch t;
  t.groups = plan.tile_groups;
  t.shape = one_thread_each(d.cut.rows(), t.groups * plan.per_thread);
  t.shape.grid.y = static_cast<unsigned>(d.dirs);
  t.shape.block = dim3(static_cast<unsigned>((t.groups * d.hidden + 31) / 32 * 32));
  t.shape.shared_bytes = static_cast<std::size_t>(plan.shared_bytes);
  return t;
}

/// As many values as a shared-memory access may have.
template <class S, int kCount>
struct alignas(kCount * sizeof(S)) Packed {
  S v[kCount];
};
template <class S, int kRows>
using Pack = Packed<S, (kRows * sizeof(S) < 16 ? kRows : static_cast<int>(16 / sizeof(S)))>;

template <int kRows, class S>
__device__ __forceinline__ void load_rows(const S* from, S* out) {
  using P = Pack<S, kRows>;
  constexpr int kCount = sizeof(P) / sizeof(S);
#pragma unroll
  for (int i = 0; i < kRows / kCount; ++i) {
    const P p = reinterpret_cast<const P*>(from)[i];
#pragma unroll
    for (int j = 0; j < kCount; ++j) out[i * kCount + j] = p.v[j];
  }
}

template <int kRows, class S>
__device__ __forceinline__ void store_rows(const S* values, S* to) {
  using P = Pack<S, kRows>;
  constexpr int kCount = sizeof(P) / sizeof(S);
#pragma unroll
  for (int i = 0; i < kRows / kCount; ++i) {
    P p;
#pragma unroll
    for (int j = 0; j < kCount; ++j) p.v[j] = values[i * kCount + j];
    reinterpret_cast<P*>(to)[i] = p;
  }
}

/// sum[g][j] += over i < count: weights[i * pitch + g * gate] * x[i * m + j].
template <int kGates, int kRows, class T, class S>
__device__ __forceinline__ void multiply_tile(const T* weights, int pitch, int gate, const S* x,
                                              int m, int count, S (&sum)[kGates][kRows]) {
#pragma unroll 4
  for (int i = 0; i < count; ++i) {
    S values[kRows];
    load_rows<kRows>(x + i * m, values);
#pragma unroll
    for (int g = 0; g < kGates; ++g) {
      const S weight = widen(weights[i * pitch + g * gate]);
#pragma unroll
      for (int j = 0; j < kRows; ++j) sum[g][j] += weight * values[j];
    }
  }
}

/// A thread's part of a tile.
template <int kRows>
struct TileThread {
  int hidden, m;            // H; rows of the tile
  int unit, at;             // its unit; its first row in the tile
  bool active;              // threads beyond the last group only wait
  std::int64_t dir, state;  // state: its index in (rows, dirs·H), first row
  const TileRow* rows;      // of its first row on

  __device__ __forceinline__ TileThread(const Dims& d, int groups, const TileRow* tile_rows,
                                        std::int64_t direction, std::int64_t first_row) {
    hidden = static_cast<int>(d.hidden);
    m = groups * kRows;
    const int thread = static_cast<int>(threadIdx.x), group = thread / hidden;
    unit = thread - group * hidden;
    at = group * kRows;
    active = group < groups;
    dir = direction;
    state = (first_row + at) * d.width() + dir * d.hidden + unit;
    rows = tile_rows + at;
  }
  /// Of a tile for each block, and blockIdx.y the direction.
  __device__ __forceinline__ TileThread(const Dims& d, int groups, const TileRow* tile_rows)
      : TileThread(d, groups, tile_rows, blockIdx.y,
                   static_cast<std::int64_t>(blockIdx.x) * groups * kRows) {}
  __device__ __forceinline__ bool exists(int j) const { return rows[j].first >= 0; }
  __device__ __forceinline__ bool counts(int j, std::int64_t time) const {
    return rows[j].begin <= time && time < rows[j].end;
  }
  /// Its element of the first block, row j; the row must exist.
  template <class T>
  __device__ __forceinline__ T* at_row(const Rows& r, const Dims& d, int j,
                                       std::int64_t time) const {
    void* data = dir == 0 ? r.data[0] : r.data[1];
    const std::int64_t row = rows[j].first + time * d.cut.batch;
    return static_cast<T*>(data) + row * r.row_stride + unit;
  }
  /// Its index in (time, B, dirs·H), row j; -1 outside.
  __device__ __forceinline__ std::int64_t y_index(const Dims& d, int j, std::int64_t time) const {
    const std::int64_t row = rows[j].first + (time - d.cut.shift) * d.cut.batch;
    if (row < 0 || row >= d.cut.time * d.cut.batch) return -1;
    return row * d.width() + dir * d.hidden + unit;
  }
  template <class S>
  __device__ __forceinline__ void load_states(const Dims& d, const void* from, S* out) const {
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      out[j] = exists(j) ? static_cast<const S*>(from)[state + j * d.width()] : S(0);
    }
  }
  template <class S>
  __device__ __forceinline__ void store_states(const Dims& d, const S* values, void* to) const {
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      if (exists(j)) static_cast<S*>(to)[state + j * d.width()] = values[j];
    }
  }
};

__device__ __forceinline__ TileRow tile_row(const recurrent::Cut& cut, std::int64_t part,
                                            std::int64_t b) {
  std::int64_t begin = 0, end = cut.steps;
  if (!all_count(cut)) cut.valid(part, b, &begin, &end);
  TileRow t;
  t.first = part * cut.steps * cut.batch + b;
  t.begin = static_cast<std::int32_t>(begin);
  t.end = static_cast<std::int32_t>(end);
  return t;
}

/// Fill the places of m rows from `first` on. Every thread of the block calls it; a barrier must
/// follow.
__device__ __forceinline__ void fill_rows(const Scan& a, std::int64_t first, int m, TileRow* out) {
  const recurrent::Cut& cut = a.dims.cut;
  for (int r = static_cast<int>(threadIdx.x); r < m; r += static_cast<int>(blockDim.x)) {
    const std::int64_t row = first + r, part = row / cut.batch;
    out[r] = row < cut.rows() ? tile_row(cut, part, row - part * cut.batch) : TileRow();
  }
}

__device__ __forceinline__ void fill_tile_rows(const Scan& a, int m, TileRow* out) {
  fill_rows(a, static_cast<std::int64_t>(blockIdx.x) * m, m, out);
}

/// A matrix (rows, columns) as (column, row), `pitch` elements from one column to the next.
template <class T>
__device__ __forceinline__ void load_columns(const T* from, int rows, int columns, int pitch,
                                             T* out) {
  // Steps of the block's width, without a division for each.
  const int threads = static_cast<int>(blockDim.x), count = rows * columns;
  const int more_rows = threads / columns, more_columns = threads - more_rows * columns;
  int row = static_cast<int>(threadIdx.x) / columns;
  int column = static_cast<int>(threadIdx.x) - row * columns;
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < count; i += threads) {
    out[column * pitch + row] = __ldg(from + i);
    row += more_rows;
    column += more_columns;
    if (column >= columns) {
      column -= columns;
      ++row;
    }
  }
}

template <class T>
__device__ __forceinline__ void load_as_it_is(const T* from, int count, T* out) {
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
    out[i] = __ldg(from + i);
  }
}

/// R of a direction as (h_prev, gate and unit), tile_pitch elements from one h_prev to the next.
template <class T>
__device__ __forceinline__ void load_transposed(const Scan& a, int gates, std::int64_t dir,
                                                T* out) {
  const int hidden = static_cast<int>(a.dims.hidden), rows = gates * hidden;
  load_columns(static_cast<const T*>(a.weight_hh) + dir * rows * hidden, rows, hidden,
               static_cast<int>(tile_pitch(gates, hidden)), out);
}

/// R of a direction as it is.
template <class T>
__device__ __forceinline__ void load_weights(const Scan& a, int gates, std::int64_t dir, T* out) {
  const int hidden = static_cast<int>(a.dims.hidden), count = gates * hidden * hidden;
  load_as_it_is(static_cast<const T*>(a.weight_hh) + dir * count, count, out);
}

/// The pieces of a tile kernel's shared memory, in the order that tile_launch counts them.
template <class T>
__device__ __forceinline__ void cut_shared(unsigned char* shared, std::int64_t weights, int m,
                                           T** w, TileRow** rows, state_t<T>** values) {
  *w = reinterpret_cast<T*>(shared);
  *rows = reinterpret_cast<TileRow*>(shared + (weights * sizeof(T) + 15) / 16 * 16);
  *values = reinterpret_cast<state_t<T>*>(*rows + m);
}

/// All steps of a tile, from the states before them in h and c and, unless they are zero, in the
/// first buffer of `states`, to those after them. Every thread of the block calls it; a barrier has
/// been before it, and comes last.
template <class Family, class T, int kRows>
__device__ __forceinline__ void tile_forward_steps(const ForwardScan& a, const TileThread<kRows>& t,
                                                   const T* weights, state_t<T>* states,
                                                   const state_t<T>* b, state_t<T> (&h)[kRows],
                                                   state_t<T> (&c)[kRows]) {
  using S = state_t<T>;
  using Shape = typename Family::Shape;
  constexpr int kGates = Shape::kGates;
  const Dims& d = a.dims;
  const std::int64_t pitch = tile_pitch(kGates, d.hidden);
  const int own = t.unit * t.m + t.at;  // its rows in a buffer
  for (std::int64_t k = 0; k < d.cut.steps; ++k) {
    const std::int64_t time = time_of(a, t.dir, k);
    const S* before = states + (k % 2) * d.hidden * t.m;
    S* after = states + (1 - k % 2) * d.hidden * t.m;
    if (t.active) {
      T wx[kGates][kRows] = {};
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        if (!t.counts(j, time)) continue;
        const T* from = t.template at_row<T>(a.gates, d, j, time);
#pragma unroll
        for (int g = 0; g < kGates; ++g) wx[g][j] = from[g * d.hidden];
      }
      S sum[kGates][kRows] = {};
      if (k > 0 || !a.zero_state) {
        multiply_tile(weights + t.unit, static_cast<int>(pitch), t.hidden, before + t.at, t.m,
                      t.hidden, sum);
      }
      Family::with_cell(d.options, [&](auto cell) {
#pragma unroll
        for (int j = 0; j < kRows; ++j) {
          if (!t.exists(j)) continue;
          if (a.h_kept.data[0] != nullptr) {
            *t.template at_row<T>(a.h_kept, d, j, time) = narrow<T>(h[j]);
            if constexpr (Shape::kHasC) *t.template at_row<S>(a.c_kept, d, j, time) = c[j];
          }
          S saved[Shape::kSaved] = {}, y = S(0);
          if (t.counts(j, time)) {
            S x[kGates], r[kGates];
#pragma unroll
            for (int g = 0; g < kGates; ++g) {
              x[g] = widen(wx[g][j]);
              r[g] = sum[g][j];
            }
            cell.forward(x, r, b, h[j], c[j], saved, &h[j], &c[j]);
            y = h[j];
          }
          if (a.save) {
            write_blocks<Shape::kSaved>(t.template at_row<T>(a.gates, d, j, time), d.hidden, saved);
          }
          if (a.y != nullptr) {
            const std::int64_t i = t.y_index(d, j, time);
            if (i >= 0) static_cast<T*>(a.y)[i] = narrow<T>(y);
          }
        }
      });
      store_rows<kRows>(h, after + own);
    }
    __syncthreads();
  }
}

// All steps of a tile of rows.
// Work split: a block per tile and direction (blockIdx.y); a thread per unit and kRows rows. h_prev
// of the tile lies in two buffers in shared memory that steps read and write in turn, so one
// barrier per step is enough. Traffic per (row, unit) and step, in elements: G of W x in, issued
// before the product that hides their latency; y, h_prev (c_prev) and the saved gates out where
// asked for. Shared memory: R once (transposed), 2·H states per row. Limits: H <= kTileThreads,
// what tile_launch counts fits; 64-bit offsets. Invariants: saved gates take the place of W x,
// each thread its own elements; a padded step's W x may be NaN and is not used. Launch:
// tile_launch.
template <class Family, class T, int kRows>
__global__ void __launch_bounds__(kTileThreads, 1)
    tile_forward_kernel(ForwardScan a, const state_t<T>* bias, int groups) {
  using S = state_t<T>;
  using Shape = typename Family::Shape;
  constexpr int kGates = Shape::kGates;
  PENSTOCK_SHARED_MEMORY(unsigned char, shared);
  const Dims& d = a.dims;
  const std::int64_t pitch = tile_pitch(kGates, d.hidden);
  T* weights = nullptr;
  S* states = nullptr;
  TileRow* rows = nullptr;
  cut_shared<T>(shared, d.hidden * pitch, groups * kRows, &weights, &rows, &states);
  const TileThread<kRows> t(d, groups, rows);
  fill_tile_rows(a, t.m, rows);
  load_transposed(a, kGates, t.dir, weights);
  __syncthreads();

  S h[kRows] = {}, c[kRows] = {}, b[Shape::kBiases] = {};
  const int own = t.unit * t.m + t.at;  // its rows in a buffer
  if (t.active) {
    t.load_states(d, a.h, h);
    if constexpr (Shape::kHasC) t.load_states(d, a.c, c);
#pragma unroll
    for (int g = 0; g < Shape::kBiases; ++g) {
      b[g] = __ldg(bias + (t.dir * Shape::kBiases + g) * d.hidden + t.unit);
    }
    store_rows<kRows>(h, states + own);
  }
  __syncthreads();

  tile_forward_steps<Family>(a, t, weights, states, b, h, c);
  if (!t.active) return;
  t.store_states(d, h, a.h);
  if constexpr (Shape::kHasC) t.store_states(d, c, a.c);
}

/// All steps of a tile backward, from the states' gradients after them in dh and dc to those before
/// them; without want_first those are not whole. Every thread of the block calls it; a barrier has
/// been before it, and another must come before `operand` or the tile's rows are written again.
template <class Family, class T, int kRows>
__device__ __forceinline__ void tile_backward_steps(const BackwardScan& a,
                                                    const TileThread<kRows>& t, const T* weights,
                                                    state_t<T>* operand, state_t<T> (&dh)[kRows],
                                                    state_t<T> (&dc)[kRows]) {
  using S = state_t<T>;
  using Shape = typename Family::Shape;
  constexpr int kGates = Shape::kGates, kSaved = Shape::kSaved, kGradients = Shape::kGradients;
  const Dims& d = a.dims;
  T saved[kSaved][kRows] = {}, h_prev[kRows] = {}, dy[kRows] = {};
  S c_prev[kRows] = {};
  const auto fetch = [&](std::int64_t k) {
    const std::int64_t time = time_of(a, t.dir, k);
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      if (!t.counts(j, time)) continue;
      const T* from = t.template at_row<T>(a.gates, d, j, time);
#pragma unroll
      for (int g = 0; g < kSaved; ++g) saved[g][j] = from[g * d.hidden];
      h_prev[j] = *t.template at_row<T>(a.h_kept, d, j, time);
      if constexpr (Shape::kHasC) c_prev[j] = *t.template at_row<S>(a.c_kept, d, j, time);
      const std::int64_t i = a.dy == nullptr ? -1 : t.y_index(d, j, time);
      dy[j] = i < 0 ? T{} : static_cast<const T*>(a.dy)[i];
    }
  };
  if (t.active) fetch(d.cut.steps - 1);

  for (std::int64_t k = d.cut.steps - 1; k >= 0; --k) {
    const std::int64_t time = time_of(a, t.dir, k);
    if (t.active) {
      S through[kGates][kRows] = {};
      Family::with_cell(d.options, [&](auto cell) {
#pragma unroll
        for (int j = 0; j < kRows; ++j) {
          S gradients[kGradients] = {};
          if (t.counts(j, time)) {
            S now[kSaved], dh_prev = S(0), dc_prev = S(0);
#pragma unroll
            for (int g = 0; g < kSaved; ++g) now[g] = widen(saved[g][j]);
            cell.backward(now, widen(h_prev[j]), c_prev[j], dh[j] + widen(dy[j]), dc[j], gradients,
                          &dh_prev, &dc_prev);
            dh[j] = dh_prev;
            dc[j] = dc_prev;
          }
          if (t.exists(j)) {
            write_blocks<kGradients>(t.template at_row<T>(a.dgates, d, j, time), d.hidden,
                                     gradients);
          }
#pragma unroll
          for (int g = 0; g < kGates; ++g) {
            through[g][j] = gradients[g < Family::kSplit ? g : g + kGradients - kGates];
          }
        }
      });
#pragma unroll
      for (int g = 0; g < kGates; ++g) {
        store_rows<kRows>(through[g], operand + (g * t.hidden + t.unit) * t.m + t.at);
      }
    }
    if (k == 0 && !a.want_first) break;
    __syncthreads();
    if (t.active) {
      if (k > 0) fetch(k - 1);
      S sum[1][kRows] = {};
      multiply_tile(weights + t.unit, t.hidden, 0, operand + t.at, t.m, kGates * t.hidden, sum);
#pragma unroll
      for (int j = 0; j < kRows; ++j) dh[j] += sum[0][j];
    }
    __syncthreads();
  }
}

// All steps of a tile of rows, backward.
// Work split: as forward. dh (and dc) stay in registers; the gradients of R's products go through
// shared memory, where all units meet, so two barriers per step. Traffic per (row, unit) and step,
// in elements: saved gates, h_prev (c_prev) and dy in, loaded for the next step before the product
// that hides their latency; the gates' gradients out, once. Shared memory: R once, G·H values per
// row. Limits, launch: as forward. Invariants: gradients of padded steps are zeros, whatever dy
// holds.
template <class Family, class T, int kRows>
__global__ void __launch_bounds__(kTileThreads, 1)
    tile_backward_kernel(BackwardScan a, int groups) {
  using S = state_t<T>;
  using Shape = typename Family::Shape;
  constexpr int kGates = Shape::kGates;
  PENSTOCK_SHARED_MEMORY(unsigned char, shared);
  const Dims& d = a.dims;
  T* weights = nullptr;
  S* operand = nullptr;
  TileRow* rows = nullptr;
  cut_shared<T>(shared, kGates * d.hidden * d.hidden, groups * kRows, &weights, &rows, &operand);
  const TileThread<kRows> t(d, groups, rows);
  fill_tile_rows(a, t.m, rows);
  load_weights(a, kGates, t.dir, weights);
  __syncthreads();

  S dh[kRows] = {}, dc[kRows] = {};
  if (t.active) {
    t.load_states(d, a.dh, dh);
    if constexpr (Shape::kHasC) t.load_states(d, a.dc, dc);
  }
  tile_backward_steps<Family>(a, t, weights, operand, dh, dc);
  if (!t.active) return;
  t.store_states(d, dh, a.dh);
  if constexpr (Shape::kHasC) t.store_states(d, dc, a.dc);
}

/// Call f(std::integral_constant<int, rows per thread>, TileLaunch).
template <class T, class F>
void with_tile(const Dims& d, const RecurrentPlan& plan, F&& f) {
  const TileLaunch t = tile_launch(d, plan);
  if (plan.per_thread == kFewRows) {
    f(std::integral_constant<int, kFewRows>{}, t);
  } else {
    f(std::integral_constant<int, kManyRows<T>>{}, t);
  }
}

template <class Family>
void forward_by_tiles(const Context& ctx, const ForwardScan& a, const RecurrentPlan& plan) {
  with_type(a.dims.compute, [&](auto tag) {
    using T = typename decltype(tag)::type;
    with_tile<T>(a.dims, plan, [&](auto rows, const TileLaunch& t) {
      launch(ctx, "tile_forward", tile_forward_kernel<Family, T, decltype(rows)::value>, t.shape, a,
             static_cast<const state_t<T>*>(a.scratch), t.groups);
    });
  });
}

template <class Family>
void backward_by_tiles(const Context& ctx, const BackwardScan& a, const RecurrentPlan& plan) {
  with_type(a.dims.compute, [&](auto tag) {
    using T = typename decltype(tag)::type;
    with_tile<T>(a.dims, plan, [&](auto rows, const TileLaunch& t) {
      launch(ctx, "tile_backward", tile_backward_kernel<Family, T, decltype(rows)::value>, t.shape,
             a, t.groups);
    });
  });
}

}  // namespace penstock::cuda::mixing
