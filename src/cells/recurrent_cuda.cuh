// What the CUDA kernels of the cells with state mixing share, and the path that fits any shape: at
// each step one product R h of cuBLAS, then a kernel over all rows and units.
// recurrent_cuda_table.cuh puts it together with the path of recurrent_cuda_tile.cuh.
//
// A cell comes as a Family:
//   Shape        its cell (src/cells/X_cell.h) with any activation, for kGates, kSaved, …
//   kSplit       gates from this one on find their products, when gates are replayed, and their
//                gradients of R h_prev in the last block (kSplit == kGates: none do)
//   with_cell    calls f(cell) with the cell of the options' activation
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cells/recurrent_cuda_plan.h"
#include "cells/recurrent_kernels.h"
#include "core/operands.h"
#include "core/workspace.h"
#include "cuda/gemm.h"
#include "cuda/graphs.h"
#include "cuda/launch.h"
#include "cuda/numeric.h"

namespace penstock::cuda::mixing {

using recurrent::BackwardScan;
using recurrent::Dims;
using recurrent::ForwardScan;
using recurrent::Options;
using recurrent::Plan;
using recurrent::Rows;
using recurrent::Scan;

constexpr int kThreads = 256;
constexpr std::size_t kAlignment = 256;

/// Everything in one chunk: one product over all time steps.
inline Plan plan(const Dims& d) {
  Plan p;
  p.parts = std::max<std::int64_t>(1, d.cut.parts);
  p.steps = std::max<std::int64_t>(1, d.cut.steps);
  p.tile_rows = std::max<std::int64_t>(1, d.cut.entries() * d.cut.batch);
  // No cell has more gates.
  p.tile_outputs = p.tile_units = p.sum_columns = std::max<std::int64_t>(1, 4 * d.hidden);
  return p;
}

inline bool empty(const Scan& a) { return a.dims.cut.rows() == 0 || a.step_end == a.step_begin; }

/// Whether a scan is over all parts and steps, and its arrays have no gaps between parts.
inline bool is_whole(const Scan& a) {
  const recurrent::Cut& cut = a.dims.cut;
  const auto whole = [&](const Rows& r) {
    return r.data[0] == nullptr || cut.parts == 1 || r.part_rows == cut.steps * cut.batch;
  };
  return a.part_begin == 0 && a.part_end == cut.parts && a.step_begin == 0 &&
         a.step_end == cut.steps && whole(a.gates) && whole(a.h_kept) && whole(a.c_kept);
}

// ---- places ------------------------------------------------------------------------------------

/// One unit of one row in one direction.
struct Site {
  std::int64_t dir = 0, part = 0, b = 0, unit = 0;
  std::int64_t row = 0;    // part * batch + b
  std::int64_t state = 0;  // index in (rows, dirs·H)
};

__device__ __forceinline__ void place(const Dims& d, std::int64_t row, Site* s) {
  s->row = row;
  s->part = d.cut.parts == 1 ? 0 : row / d.cut.batch;
  s->b = row - s->part * d.cut.batch;
  s->state = row * d.width() + s->dir * d.hidden + s->unit;
}

/// The site of a thread of a step_shape launch; false if it has none.
__device__ __forceinline__ bool find_site(const Dims& d, Site* s) {
  s->unit = static_cast<std::int64_t>(blockIdx.y) * blockDim.x + threadIdx.x;
  s->dir = blockIdx.z;
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (s->unit >= d.hidden || row >= d.cut.rows()) return false;
  place(d, row, s);
  return true;
}

/// Threads along units, so that a warp's accesses coalesce, and along rows.
inline LaunchShape step_shape(const Dims& d, std::int64_t rows) {
  const auto x = static_cast<unsigned>(std::min<std::int64_t>(128, (d.hidden + 31) / 32 * 32));
  const unsigned y = kThreads / x;
  LaunchShape shape = one_thread_each(rows, static_cast<int>(y));
  shape.grid.y = static_cast<unsigned>((d.hidden + x - 1) / x);
  shape.grid.z = static_cast<unsigned>(d.dirs);
  shape.block = dim3(x, y);
  return shape;
}

/// Whether no step is padding. Of an empty sequence all are.
PENSTOCK_HOST_DEVICE bool all_count(const recurrent::Cut& cut) {
  return !cut.skip || (cut.lengths == nullptr && cut.padded == cut.whole && cut.whole > 0);
}

__device__ __forceinline__ std::int64_t time_of(const Scan& a, std::int64_t dir, std::int64_t k) {
  return a.reversed(dir) ? a.dims.cut.steps - 1 - k : k;
}

/// Whether processing step k of a site's row counts.
__device__ __forceinline__ bool counts(const Scan& a, const Site& s, std::int64_t k) {
  if (all_count(a.dims.cut)) return true;
  std::int64_t begin = 0, end = 0;
  a.dims.cut.valid(s.part, s.b, &begin, &end);
  const std::int64_t time = time_of(a, s.dir, k);
  return begin <= time && time < end;
}

/// A site's element of `rows` at processing step k, first block; null where there is none.
template <class T>
__device__ __forceinline__ T* at(const Rows& rows, const Scan& a, const Site& s, std::int64_t k) {
  // Not data[dir], which would put the array on the stack.
  void* data = s.dir == 0 ? rows.data[0] : rows.data[1];
  if (data == nullptr) return nullptr;
  return static_cast<T*>(data) + a.row(rows, s.dir, s.part, k, s.b) * rows.row_stride + s.unit;
}

/// A site's index in (time, B, dirs·H) at processing step k; -1 outside of the array.
__device__ __forceinline__ std::int64_t y_index(const Scan& a, const Site& s, std::int64_t k) {
  const std::int64_t entry = a.entry(s.dir, s.part, k);
  if (entry < 0 || entry >= a.dims.cut.time) return -1;
  return (entry * a.dims.cut.batch + s.b) * a.dims.width() + s.dir * a.dims.hidden + s.unit;
}

// ---- what a step reads and leaves --------------------------------------------------------------

template <class Shape, class T>
__device__ __forceinline__ void keep_state(const ForwardScan& a, const Site& s, std::int64_t k,
                                           state_t<T> h_prev, state_t<T> c_prev) {
  if (T* kept = at<T>(a.h_kept, a, s, k)) *kept = narrow<T>(h_prev);
  if constexpr (Shape::kHasC) {
    if (state_t<T>* kept = at<state_t<T>>(a.c_kept, a, s, k)) *kept = c_prev;
  }
}

template <class T>
__device__ __forceinline__ void write_y(const ForwardScan& a, const Site& s, std::int64_t k,
                                        state_t<T> y) {
  if (a.y == nullptr) return;
  const std::int64_t i = y_index(a, s, k);
  if (i >= 0) static_cast<T*>(a.y)[i] = narrow<T>(y);
}

/// What backward reads at a step; zeros at a padded one, whose rows products over time still read.
template <int kSaved, class T>
__device__ __forceinline__ void write_blocks(T* at, std::int64_t hidden, const state_t<T>* values) {
#pragma unroll
  for (int g = 0; g < kSaved; ++g) at[g * hidden] = narrow<T>(values[g]);
}

/// dy of a step that counts.
template <class T>
__device__ __forceinline__ state_t<T> read_dy(const BackwardScan& a, const Site& s,
                                              std::int64_t k) {
  if (a.dy == nullptr) return state_t<T>(0);
  const std::int64_t i = y_index(a, s, k);
  return i < 0 ? state_t<T>(0) : widen(static_cast<const T*>(a.dy)[i]);
}

// ---- scratch memory ----------------------------------------------------------------------------

// Of a step's products: enough for cuBLAS to split their sums, and little beside what scans keep.
constexpr std::size_t kStepWorkspaceBytes = std::size_t{4} << 20;

inline std::size_t step_workspace_bytes(const Context& ctx) {
  return std::min(kStepWorkspaceBytes, ctx.backend().gemm_workspace_bytes());
}

/// Bytes that blocks of a cooperative grid hand each other, at most.
inline std::size_t exchanged(const Dims& d, std::int64_t depth) {
  return static_cast<std::size_t>(
      exchange_bytes(d.cut.rows(), d.dirs, depth, static_cast<std::int64_t>(size_of(d.compute))));
}

struct ForwardScratch {
  void* bias = nullptr;       // (dirs, biases, H) state type
  void* products = nullptr;   // (dirs, rows, G·H) state type: R h; or
  void* exchange = nullptr;   // what blocks of a cooperative grid hand each other
  void* operand = nullptr;    // (rows, dirs·H) compute type: h, where its type is another
  void* reset = nullptr;      // (rows, dirs·H) compute type: r * h, where R multiplies that
  void* workspace = nullptr;  // of products
  std::size_t bytes = 0;

  ForwardScratch(const Dims& d, int gates, int biases, bool resets, void* base) {
    Carver carver(base, kAlignment);
    const auto hidden = static_cast<std::size_t>(d.dirs * d.hidden);
    const auto values = static_cast<std::size_t>(d.cut.rows()) * hidden;
    bias = carver.take(hidden * static_cast<std::size_t>(biases) * size_of(d.state));
    workspace = carver.take(kStepWorkspaceBytes);
    products = exchange = carver.take(std::max(
        values * static_cast<std::size_t>(gates) * size_of(d.state), exchanged(d, d.hidden)));
    if (d.state != d.compute) operand = carver.take(values * size_of(d.compute));
    if (resets) reset = carver.take(values * size_of(d.compute));
    bytes = carver.bytes();
  }
};

struct BackwardScratch {
  void* operand = nullptr;   // (dirs, rows, G·H) compute type: gradients of R's products; or
  void* exchange = nullptr;  // as forward
  void* dreset = nullptr;    // (rows, dirs·H) state type: gradient of r * h, where there is one
  void* workspace = nullptr;
  std::size_t bytes = 0;

  BackwardScratch(const Dims& d, int gates, bool resets, void* base) {
    Carver carver(base, kAlignment);
    const auto values = static_cast<std::size_t>(d.cut.rows() * d.width());
    operand = exchange =
        carver.take(std::max(values * static_cast<std::size_t>(gates) * size_of(d.compute),
                             exchanged(d, gates * d.hidden)));
    if (resets) dreset = carver.take(values * size_of(d.state));
    workspace = carver.take(kStepWorkspaceBytes);
    bytes = carver.bytes();
  }
};

// The sums of both biases, as the cell's forward step takes them.
// Work split: a thread per (direction, unit). Launch: kThreads, no shared memory.
template <class Shape, class T>
__global__ void __launch_bounds__(kThreads)
    combine_bias_kernel(Dims d, const T* ih, const T* hh, state_t<T>* out) {
  using S = state_t<T>;
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= d.dirs * d.hidden) return;
  const std::int64_t dir = i / d.hidden, unit = i % d.hidden;
  S of_x[Shape::kGates], of_h[Shape::kGates], sum[Shape::kBiases];
#pragma unroll
  for (int g = 0; g < Shape::kGates; ++g) {
    const std::int64_t from = (dir * Shape::kGates + g) * d.hidden + unit;
    of_x[g] = widen(ih[from]);
    of_h[g] = widen(hh[from]);
  }
  Shape::combine_bias(of_x, of_h, sum);
#pragma unroll
  for (int g = 0; g < Shape::kBiases; ++g) {
    out[(dir * Shape::kBiases + g) * d.hidden + unit] = sum[g];
  }
}

template <class Shape>
void combine_bias(const Context& ctx, const Scan& a) {
  const Dims& d = a.dims;
  const DeviceGuard guard(ctx);
  with_type(d.compute, [&](auto tag) {
    using T = typename decltype(tag)::type;
    // The biases come first in the scratch, whichever path follows.
    launch(ctx, "combine_bias", combine_bias_kernel<Shape, T>,
           one_thread_each(d.dirs * d.hidden, kThreads), d, static_cast<const T*>(a.bias_ih),
           static_cast<const T*>(a.bias_hh), static_cast<state_t<T>*>(a.scratch));
  });
}

template <int kBiases, class S>
__device__ __forceinline__ void read_bias(const Dims& d, const Site& s, const S* bias, S* out) {
#pragma unroll
  for (int g = 0; g < kBiases; ++g) {
    out[g] = __ldg(bias + (s.dir * kBiases + g) * d.hidden + s.unit);
  }
}

// ---- products of a step ------------------------------------------------------------------------

/// Blocks [begin, end) of products (dirs, rows, G·H) = operand (rows, dirs·H) · R^T.
inline void multiply(const Context& ctx, const Scan& a, int gates, const void* operand, int begin,
                     int end, void* products, void* workspace) {
  const Dims& d = a.dims;
  const std::int64_t h = d.hidden;
  GemmArgs g;
  g.dtype = d.compute;
  g.trans_b = true;
  g.m = d.cut.rows();
  g.n = (end - begin) * h;
  g.k = h;
  g.a = operand;
  g.lda = d.width();
  g.stride_a = h;
  g.b = advance(a.weight_hh, begin * h * h, size_of(d.compute));
  g.ldb = h;
  g.stride_b = gates * h * h;
  g.c = advance(products, begin * h, size_of(d.state));
  g.ldc = gates * h;
  g.stride_c = d.cut.rows() * gates * h;
  g.batch = d.dirs;
  g.workspace = workspace;
  gemm_to(ctx, g, step_workspace_bytes(ctx), d.state);
}

/// out (rows, dirs·H) = beta * out + blocks [begin, end) of operand (dirs, rows, G·H) · R.
inline void multiply_back(const Context& ctx, const Scan& a, int gates, const void* operand,
                          int begin, int end, void* out, double beta, void* workspace) {
  const Dims& d = a.dims;
  const std::int64_t h = d.hidden;
  GemmArgs g;
  g.dtype = d.compute;
  g.m = d.cut.rows();
  g.n = h;
  g.k = (end - begin) * h;
  g.a = advance(operand, begin * h, size_of(d.compute));
  g.lda = gates * h;
  g.stride_a = d.cut.rows() * gates * h;
  g.b = advance(a.weight_hh, begin * h * h, size_of(d.compute));
  g.ldb = h;
  g.stride_b = gates * h * h;
  g.beta = beta;
  g.c = out;
  g.ldc = d.width();
  g.stride_c = h;
  g.batch = d.dirs;
  g.workspace = workspace;
  gemm_to(ctx, g, step_workspace_bytes(ctx), d.state);
}

/// Blocks [begin, end) of R times `from_block` of `from`, for all the scan's steps at once, added
/// to (`beta` = 1) or put into block `to_block` of the gates and those after it.
inline void replay_product(const Context& ctx, const ForwardScan& a, int gates, const Rows& from,
                           int from_block, int begin, int end, int to_block, double beta,
                           void* workspace) {
  const Dims& d = a.dims;
  const std::int64_t h = d.hidden;
  const std::int64_t part_rows = (a.step_end - a.step_begin) * d.cut.batch;
  const std::int64_t parts = a.part_end - a.part_begin;
  const bool even = parts == 1 || (from.part_rows == part_rows && a.gates.part_rows == part_rows);
  GemmArgs g;
  g.dtype = d.compute;
  g.trans_b = true;
  g.m = even ? parts * part_rows : part_rows;
  g.n = (end - begin) * h;
  g.k = h;
  g.lda = from.row_stride;
  g.stride_a = from.part_rows * from.row_stride;
  g.ldb = h;
  g.beta = beta;
  g.ldc = a.gates.row_stride;
  g.stride_c = a.gates.part_rows * a.gates.row_stride;
  g.batch = even ? 1 : parts;
  g.workspace = workspace;
  for (std::int64_t dir = 0; dir < d.dirs; ++dir) {
    g.a = advance(from.data[dir], from_block * h, size_of(d.compute));
    g.b = advance(a.weight_hh, (dir * gates + begin) * h * h, size_of(d.compute));
    g.c = advance(a.gates.data[dir], to_block * h, size_of(d.compute));
    gemm(ctx, g, step_workspace_bytes(ctx));
  }
}

// ---- graphs of all steps -----------------------------------------------------------------------

inline void add(GraphKey* key, const Rows& r) {
  key->add(r.data[0]).add(r.data[1]).add(r.row_stride).add(r.part_rows);
}

/// All that the launches of a scan depend on, but for what forward and backward have of their own.
inline GraphKey key_of(const Scan& a, int gates, bool forward) {
  const Dims& d = a.dims;
  const recurrent::Cut& c = d.cut;
  GraphKey key;
  key.add(gates).add(forward).add(d.input).add(d.hidden).add(d.dirs);
  key.add(c.time).add(c.batch).add(c.parts).add(c.steps).add(c.shift).add(c.skip).add(c.left);
  key.add(c.lengths).add(c.whole).add(c.padded).add(c.unit);
  key.add(d.options.activation).add(d.options.reset).add(d.dtype).add(d.compute).add(d.state);
  key.add(a.first_reverse).add(a.part_begin).add(a.part_end).add(a.step_begin).add(a.step_end);
  key.add(a.weight_hh).add(a.bias_ih).add(a.bias_hh).add(a.scratch);
  add(&key, a.gates);
  add(&key, a.h_kept);
  add(&key, a.c_kept);
  return key;
}
inline GraphKey key_of(const ForwardScan& a, int gates) {
  GraphKey key = key_of(a, gates, /*forward=*/true);
  key.add(a.save).add(a.zero_state).add(a.h).add(a.h_next).add(a.c).add(a.y);
  return key;
}
inline GraphKey key_of(const BackwardScan& a, int gates) {
  GraphKey key = key_of(a, gates, /*forward=*/false);
  add(&key, a.dgates);
  key.add(a.dy).add(a.dh).add(a.dc).add(a.want_first);
  return key;
}

// ---- one product a step ------------------------------------------------------------------------

// One step of every row, given R h.
// Work split: a thread per (row, direction, unit). Traffic per thread, in elements: G of W x, G of
// R h and h in (and c); h (c) out, y, the state before the step and the saved gates where they are
// asked for. Limits: 64-bit offsets. Invariants: a thread reads and writes its own elements alone;
// saved gates take the place of W x in the same row. A padded step's W x may be NaN and is not
// used. Launch: step_shape, no shared memory.
template <class Family, class T>
__global__ void __launch_bounds__(kThreads)
    step_forward_kernel(ForwardScan a, std::int64_t k, const state_t<T>* products,
                        const state_t<T>* bias, T* operand) {
  using S = state_t<T>;
  using Shape = typename Family::Shape;
  constexpr int kGates = Shape::kGates;
  Site s;
  if (!find_site(a.dims, &s)) return;
  const std::int64_t hidden = a.dims.hidden;
  S* h_at = static_cast<S*>(a.h) + s.state;
  S* c_at = Shape::kHasC ? static_cast<S*>(a.c) + s.state : nullptr;
  const S h_prev = *h_at;
  const S c_prev = Shape::kHasC ? *c_at : S(0);
  keep_state<Shape, T>(a, s, k, h_prev, c_prev);

  T* gates = at<T>(a.gates, a, s, k);
  S saved[Shape::kSaved] = {};
  S h = h_prev, y = S(0);
  if (counts(a, s, k)) {
    S wx[kGates], rh[kGates] = {}, b[Shape::kBiases], c = c_prev;
#pragma unroll
    for (int g = 0; g < kGates; ++g) wx[g] = widen(gates[g * hidden]);
    if (products != nullptr) {
      const S* product = products + (s.dir * a.dims.cut.rows() + s.row) * kGates * hidden + s.unit;
#pragma unroll
      for (int g = 0; g < kGates; ++g) rh[g] = product[g * hidden];
    }
    read_bias<Shape::kBiases>(a.dims, s, bias, b);
    Family::with_cell(a.dims.options,
                      [&](auto cell) { cell.forward(wx, rh, b, h_prev, c_prev, saved, &h, &c); });
    y = h;
    *h_at = h;
    if constexpr (Shape::kHasC) *c_at = c;
  }
  if (a.save) write_blocks<Shape::kSaved>(gates, hidden, saved);
  if (operand != nullptr) operand[s.state] = narrow<T>(h);
  write_y<T>(a, s, k, y);
}

// One step of every row, backward; the product with R follows.
// Work split: as forward. Traffic per thread, in elements: the saved gates, h_prev (c_prev) and dy
// in, dh (dc) in and out, the gates' gradients out, twice for those of R's products: once for the
// products over time, once for the one that follows. Limits, invariants, launch: as forward; a
// padded step's gradients are zeros, whatever dy holds.
template <class Family, class T>
__global__ void __launch_bounds__(kThreads)
    step_backward_kernel(BackwardScan a, std::int64_t k, T* operand) {
  using S = state_t<T>;
  using Shape = typename Family::Shape;
  constexpr int kGates = Shape::kGates, kGradients = Shape::kGradients;
  Site s;
  if (!find_site(a.dims, &s)) return;
  const std::int64_t hidden = a.dims.hidden;
  S gradients[kGradients] = {};
  if (counts(a, s, k)) {
    S* dh_at = static_cast<S*>(a.dh) + s.state;
    S* dc_at = Shape::kHasC ? static_cast<S*>(a.dc) + s.state : nullptr;
    const S dh = *dh_at + read_dy<T>(a, s, k);
    const S dc = Shape::kHasC ? *dc_at : S(0);
    const S h_prev = widen(*at<T>(a.h_kept, a, s, k));
    const S c_prev = Shape::kHasC ? *at<S>(a.c_kept, a, s, k) : S(0);
    const T* gates = at<T>(a.gates, a, s, k);
    S saved[Shape::kSaved], dh_prev = S(0), dc_prev = S(0);
#pragma unroll
    for (int g = 0; g < Shape::kSaved; ++g) saved[g] = widen(gates[g * hidden]);
    Family::with_cell(a.dims.options, [&](auto cell) {
      cell.backward(saved, h_prev, c_prev, dh, dc, gradients, &dh_prev, &dc_prev);
    });
    *dh_at = dh_prev;
    if constexpr (Shape::kHasC) *dc_at = dc_prev;
  }
  write_blocks<kGradients>(at<T>(a.dgates, a, s, k), hidden, gradients);
  T* out = operand + (s.dir * a.dims.cut.rows() + s.row) * kGates * hidden + s.unit;
#pragma unroll
  for (int g = 0; g < kGates; ++g) {
    out[g * hidden] = narrow<T>(gradients[g < Family::kSplit ? g : g + kGradients - kGates]);
  }
}

/// The site of a thread of a replay launch, a thread per (entry, sequence, direction, unit), and
/// the processing step.
__device__ __forceinline__ bool find_entry(const Scan& a, Site* s, std::int64_t* k) {
  const Dims& d = a.dims;
  const std::int64_t steps = a.step_end - a.step_begin;
  s->unit = static_cast<std::int64_t>(blockIdx.y) * blockDim.x + threadIdx.x;
  s->dir = blockIdx.z;
  std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (s->unit >= d.hidden || i >= (a.part_end - a.part_begin) * steps * d.cut.batch) return false;
  const std::int64_t b = i % d.cut.batch;
  i /= d.cut.batch;
  *k = a.step_begin + i % steps;
  place(d, (a.part_begin + i / steps) * d.cut.batch + b, s);
  return true;
}

inline LaunchShape replay_shape(const Scan& a) {
  return step_shape(a.dims,
                    (a.part_end - a.part_begin) * (a.step_end - a.step_begin) * a.dims.cut.batch);
}

// What forward saves, from W x + R h (gates before kSplit), W x and R h (gates from kSplit on, R h
// in the last block). Work split: a thread per (entry, sequence, direction, unit). Traffic per
// thread, in elements: blocks and c_prev in, blocks out. Invariants: in place, each thread its own
// elements; zeros at padded steps, whose blocks may hold NaN before. Launch: replay_shape, no
// shared memory.
template <class Family, class T>
__global__ void __launch_bounds__(kThreads) replay_kernel(ForwardScan a, const state_t<T>* bias) {
  using S = state_t<T>;
  using Shape = typename Family::Shape;
  constexpr int kGates = Shape::kGates, kSaved = Shape::kSaved;
  Site s;
  std::int64_t k = 0;
  if (!find_entry(a, &s, &k)) return;
  const std::int64_t hidden = a.dims.hidden;
  T* gates = at<T>(a.gates, a, s, k);
  S saved[kSaved] = {};
  if (counts(a, s, k)) {
    S wx[kGates], rh[kGates], b[Shape::kBiases], h = S(0), c = S(0);
#pragma unroll
    for (int g = 0; g < kGates; ++g) {
      wx[g] = widen(gates[g * hidden]);
      rh[g] = g < Family::kSplit ? S(0) : widen(gates[(g + kSaved - kGates) * hidden]);
    }
    read_bias<Shape::kBiases>(a.dims, s, bias, b);
    const S h_prev = widen(*at<T>(a.h_kept, a, s, k));
    const S c_prev = Shape::kHasC ? *at<S>(a.c_kept, a, s, k) : S(0);
    Family::with_cell(a.dims.options,
                      [&](auto cell) { cell.forward(wx, rh, b, h_prev, c_prev, saved, &h, &c); });
  }
  write_blocks<kSaved>(gates, hidden, saved);
}

/// What the first product of a scan multiplies: h itself, or its copy in compute type.
inline const void* first_operand(const Context& ctx, const ForwardScan& a, void* operand) {
  if (operand == nullptr) return a.h;
  if (!a.zero_state) {
    const Dims& d = a.dims;
    TensorView h(a.h, d.state, {d.cut.rows(), d.width()}, ctx.device());
    ctx.backend().convert(ctx, h, contiguous_like(h, operand, d.compute));
  }
  return operand;
}

template <class Family>
void forward_by_steps(const Context& given, const ForwardScan& a) {
  using Shape = typename Family::Shape;
  const Dims& d = a.dims;
  const ForwardScratch scratch(d, Shape::kGates, Shape::kBiases, /*resets=*/false, a.scratch);
  const std::int64_t launches = 2 * (a.step_end - a.step_begin);
  run_as_graph(given, key_of(a, Shape::kGates), launches, [&](const Context& ctx) {
    const void* operand = first_operand(ctx, a, scratch.operand);
    with_type(d.compute, [&](auto tag) {
      using T = typename decltype(tag)::type;
      using S = state_t<T>;
      const LaunchShape shape = step_shape(d, d.cut.rows());
      for (std::int64_t k = a.step_begin; k < a.step_end; ++k) {
        const bool zero = a.zero_state && k == a.step_begin;
        if (!zero) {
          multiply(ctx, a, Shape::kGates, operand, 0, Shape::kGates, scratch.products,
                   scratch.workspace);
        }
        launch(ctx, "step_forward", step_forward_kernel<Family, T>, shape, a, k,
               zero ? nullptr : static_cast<const S*>(scratch.products),
               static_cast<const S*>(scratch.bias), static_cast<T*>(scratch.operand));
      }
    });
  });
}

template <class Family>
void backward_by_steps(const Context& given, const BackwardScan& a) {
  using Shape = typename Family::Shape;
  const Dims& d = a.dims;
  const BackwardScratch scratch(d, Shape::kGates, /*resets=*/false, a.scratch);
  const std::int64_t launches = 2 * (a.step_end - a.step_begin);
  run_as_graph(given, key_of(a, Shape::kGates), launches, [&](const Context& ctx) {
    with_type(d.compute, [&](auto tag) {
      using T = typename decltype(tag)::type;
      const LaunchShape shape = step_shape(d, d.cut.rows());
      for (std::int64_t k = a.step_end - 1; k >= a.step_begin; --k) {
        launch(ctx, "step_backward", step_backward_kernel<Family, T>, shape, a, k,
               static_cast<T*>(scratch.operand));
        if (k == 0 && !a.want_first) continue;
        multiply_back(ctx, a, Shape::kGates, scratch.operand, 0, Shape::kGates, a.dh, 1.0,
                      scratch.workspace);
      }
    });
  });
}

template <class Family>
void replay(const Context& ctx, const ForwardScan& a) {
  using Shape = typename Family::Shape;
  const Dims& d = a.dims;
  if (empty(a)) return;
  const DeviceGuard guard(ctx);
  const ForwardScratch scratch(d, Shape::kGates, Shape::kBiases, /*resets=*/false, a.scratch);
  replay_product(ctx, a, Shape::kGates, a.h_kept, 0, 0, Family::kSplit, 0, 1.0, scratch.workspace);
  if (Family::kSplit < Shape::kGates) {
    replay_product(ctx, a, Shape::kGates, a.h_kept, 0, Family::kSplit, Shape::kGates,
                   Family::kSplit + Shape::kSaved - Shape::kGates, 0.0, scratch.workspace);
  }
  with_type(d.compute, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(ctx, "replay", replay_kernel<Family, T>, replay_shape(a), a,
           static_cast<const state_t<T>*>(scratch.bias));
  });
}

}  // namespace penstock::cuda::mixing
