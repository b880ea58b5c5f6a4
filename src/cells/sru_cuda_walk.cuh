// What the SRU's CUDA kernels share: the cut of a scan in time, and where a thread finds its
// channel.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cells/sru_cell.h"
#include "cells/sru_kernels.h"
#include "cuda/fast_float.h"
#include "cuda/launch.h"
#include "cuda/numeric.h"

namespace penstock::cuda::sru_scans {

using sru::BackwardScan;
using sru::ForwardScan;
using sru::ScanArgs;

// Blocks are small because a whole device's worth of threads is only a few ten thousand channels.
constexpr int kThreads = 64;
constexpr int kBlocks = 4;  // of a multiprocessor that registers must suffice for: 255 a thread
// Steps whose inputs a thread holds in registers ahead of the one it works on. A step waits about
// 0.6 µs for memory and takes about 30 ns to compute; more double values would spill.
template <class T>
constexpr int kStepsAhead = sizeof(T) == 8 ? 2 : 6;
// The forward scan's first pass reads two values a step.
constexpr int kFoldAhead = 12;

using Fast = FastFloat;

/// An activation that is known when the kernel runs.
struct AnyActivation {
  Activation which;
  template <class V>
  __device__ __forceinline__ V value(V c) const {
    V g = which == Activation::kRelu ? sru_cell::activate<Activation::kRelu>(c) : c;
    if (which == Activation::kTanh) g = sru_cell::activate<Activation::kTanh>(c);
    return g;
  }
  template <class V>
  __device__ __forceinline__ V gradient(V dy, V c, V g) const {
    const V of_tanh = sru_cell::activation_gradient<Activation::kTanh>(dy, c, g);
    const V of_relu = sru_cell::activation_gradient<Activation::kRelu>(dy, c, g);
    return which == Activation::kTanh ? of_tanh : which == Activation::kRelu ? of_relu : dy;
  }
};

/// What the cell computes with, for arrays of T.
template <class T>
using value_t = std::conditional_t<sizeof(T) == 8, double, Fast>;

/// The cut of a scan's steps in the order that threads take them: chunk j begins with step
/// j * steps of the walk over all of them.
struct Chunks {
  std::int64_t steps = 0;
  std::int64_t count = 1;
  std::int64_t kept = 1;       // states kept for backward in a chunk's steps, where not each is
  std::int64_t folds = 0;      // where the folds to join begin: fold_of's number of the first
  unsigned* failed = nullptr;  // set where the states before chunks turn out to be wrong; or null:
                               // they cannot be
  bool fallback = false;       // all steps from the start, but only if `failed` is set
};

/// A part of a scan's steps, in processing order.
struct Span {
  std::int64_t begin = 0, end = 0;
};

__device__ __forceinline__ Span span_of(const ScanArgs& a, const Chunks& chunks, std::int64_t chunk,
                                        bool backward) {
  const std::int64_t steps = a.range.step_end - a.range.step_begin;
  const std::int64_t from = chunk * chunks.steps;
  const std::int64_t to = from + chunks.steps < steps ? from + chunks.steps : steps;
  Span s;
  s.begin = backward ? a.range.step_end - to : a.range.step_begin + from;
  s.end = backward ? a.range.step_end - from : a.range.step_begin + to;
  return s;
}

/// The first state that a forward walk keeps, counted from the sequence's first.
__device__ __forceinline__ std::int64_t first_kept(const ScanArgs& a, const Chunks& chunks,
                                                   std::int64_t chunk, const Span& span) {
  if (a.dims.keep == 1) return span.begin;
  return chunk == 0 ? 0 : chunk * chunks.kept - 1;
}
/// Steps of a chunk until the first before which the state is kept, where not each state is.
__device__ __forceinline__ int steps_to_kept(const ScanArgs& a, std::int64_t chunk) {
  return chunk == 0 ? static_cast<int>(a.dims.keep) : 0;
}

/// One channel of one sequence: where its elements are, and how far apart in processing order.
/// Step k of the walk is the k-th that the thread works on: the forward kernel goes through the
/// span's steps from first to last, the backward kernel from last to first.
template <class T>
struct Walk {
  using S = state_t<T>;

  const T* u = nullptr;  // u0 of the walk's first step; u1 and u2 lie `gate` further on each
  std::int64_t u_step = 0;
  std::int64_t gate = 0;
  const T* skip = nullptr;  // x' before scaling, or null
  std::int64_t skip_step = 0;
  S skip_scale = S(1);
  const std::uint8_t* pad = nullptr;
  std::int64_t pad_step = 0;
  std::int64_t count = 0;         // steps
  std::int64_t valid_begin = 0;   // steps [valid_begin, valid_begin + valid_count) of
  std::uint64_t valid_count = 0;  // the walk count, but for pad

  // Offsets of the first step in arrays of these layouts, and the distance between steps.
  std::int64_t u_at = 0;                  // like u and du
  std::int64_t row_at = 0, row_step = 0;  // (rows, dirs·H)
  std::int64_t c_at = 0, c_step = 0;      // the states' plane: of the first kept, and to the next
  std::int64_t state_at = 0;              // (parts·B, dirs·H)
  std::int64_t param_at = 0;              // (dirs, 2, H), first gate

  sru_cell::Parameters<value_t<T>> parameters = {};
  S mask = S(1), mask_skip = S(1);
};

/// Number of walks of a scan: threads that have work.
__host__ __device__ __forceinline__ std::int64_t walks(const ScanArgs& a) {
  return (a.range.part_end - a.range.part_begin) * a.dims.batch *
         (a.range.dir_end - a.range.dir_begin) * (a.range.channel_end - a.range.channel_begin);
}

/// Walk number i; neighbours in i are neighbouring channels, so that a warp's accesses coalesce.
template <class T>
__device__ __forceinline__ Walk<T> make_walk(const ScanArgs& a, std::int64_t i, const Span& span,
                                             bool backward) {
  using S = state_t<T>;
  const std::int64_t channels = a.range.channel_end - a.range.channel_begin;
  const std::int64_t columns = (a.range.dir_end - a.range.dir_begin) * channels;
  const std::int64_t state_row = a.range.part_begin * a.dims.batch + i / columns;
  const std::int64_t part = state_row / a.dims.batch;
  const std::int64_t b = state_row % a.dims.batch;
  const std::int64_t local_dir = i % columns / channels;
  const std::int64_t local_channel = i % channels;
  const std::int64_t dir = a.range.dir_begin + local_dir;
  const std::int64_t channel = a.range.channel_begin + local_channel;
  const std::int64_t width = a.dims.width(), batch = a.dims.batch;

  Walk<T> w;
  const bool reversed = a.reversed(dir);
  const std::int64_t first = backward ? span.end - 1 : span.begin;
  const std::int64_t time_step = reversed != backward ? -1 : 1;
  const std::int64_t time = a.time(first, dir);
  const std::int64_t row = a.row(part, time, b);
  w.count = span.end - span.begin;

  std::int64_t begin = 0, end = 0;
  a.valid(part, b, &begin, &end);
  w.valid_begin = time_step > 0 ? begin - time : time - (end - 1);
  w.valid_count = static_cast<std::uint64_t>(end > begin ? end - begin : 0);

  w.u_at = (row - a.first_row(dir)) * a.u.row_stride + local_dir * a.u.dir_stride + local_channel;
  w.u_step = time_step * batch * a.u.row_stride;
  w.u = static_cast<const T*>(a.u.data) + w.u_at;
  w.gate = a.gate_stride;
  w.state_at = state_row * width + dir * a.dims.hidden + channel;
  w.row_at = row * width + dir * a.dims.hidden + channel;
  w.row_step = time_step * batch * width;
  // In processing order, whatever the direction.
  w.c_at = (part * a.dims.kept_steps * batch + b) * a.c.row_stride + local_dir * a.c.dir_stride +
           local_channel;
  w.c_step = batch * a.c.row_stride;
  if (a.dims.skip_from_x) {
    w.skip = static_cast<const T*>(a.x) + w.row_at;
    w.skip_step = w.row_step;
    w.skip_scale = static_cast<S>(a.scale_x);
  } else if (a.dims.blocks == 4) {
    w.skip = w.u + 3 * w.gate;
    w.skip_step = w.u_step;
  }
  if (a.pad != nullptr) {
    w.pad = a.pad + row;
    w.pad_step = time_step * batch;
  }

  w.param_at = dir * 2 * a.dims.hidden + channel;
  const T* v = static_cast<const T*>(a.weight_c) + w.param_at;
  const T* bias = static_cast<const T*>(a.bias) + w.param_at;
  w.parameters = {widen(v[0]), widen(v[a.dims.hidden]), widen(bias[0]), widen(bias[a.dims.hidden])};
  if (a.mask_c != nullptr) {
    w.mask = widen(static_cast<const T*>(a.mask_c)[w.state_at]);
    if (a.mask_site == MaskSite::kOutput) w.mask_skip = w.mask;
  }
  return w;
}

/// What a step reads, as it lies in memory.
template <class T>
struct Loaded {
  T u0, u1, u2, skip;
  bool padded;
};

template <class T>
__device__ __forceinline__ bool is_padded(const Walk<T>& w, std::int64_t k) {
  return static_cast<std::uint64_t>(k - w.valid_begin) >= w.valid_count ||
         (w.pad != nullptr && __ldg(w.pad + k * w.pad_step) != 0);
}

template <class T>
__device__ __forceinline__ Loaded<T> load(const Walk<T>& w, std::int64_t k) {
  Loaded<T> l;
  const T* u = w.u + k * w.u_step;
  l.u0 = __ldg(u);
  l.u1 = __ldg(u + w.gate);
  l.u2 = __ldg(u + 2 * w.gate);
  l.skip = w.skip == nullptr ? T{} : __ldg(w.skip + k * w.skip_step);
  l.padded = is_padded(w, k);
  return l;
}

template <class T>
__device__ __forceinline__ sru_cell::Inputs<value_t<T>> inputs(const Walk<T>& w,
                                                               const Loaded<T>& l) {
  sru_cell::Inputs<value_t<T>> in;
  in.u0 = widen(l.u0);
  in.u1 = widen(l.u1);
  in.u2 = widen(l.u2);
  in.skip = w.skip_scale * widen(l.skip);
  in.mask = w.mask;
  in.mask_skip = w.mask_skip;
  return in;
}

// What a scan in chunks keeps between its kernels, in ScanArgs::scratch: two values of state type
// per chunk and walk, [chunk][2][walk]. Of chunk 0 the state before and after it, of the others but
// the last a and b. By Newton's method, twice that, then each chunk's largest state, then the word
// that Chunks::failed points to.

template <class T>
__device__ __forceinline__ state_t<T>* fold_of(const ScanArgs& a, std::int64_t chunk) {
  return static_cast<state_t<T>*>(a.scratch) + chunk * 2 * walks(a);
}

/// The state before walk i's chunk, from folds.
template <class T>
__device__ __forceinline__ state_t<T> joined(const ScanArgs& a, const Chunks& chunks,
                                             std::int64_t i, std::int64_t chunk) {
  using S = state_t<T>;
  const std::int64_t plane = walks(a);
  const S* fold = fold_of<T>(a, chunks.folds) + i;
  if (chunk == 0) return fold[0];
  S state = fold[plane];
#pragma unroll 8
  for (std::int64_t j = 1; j < chunk; ++j) {
    state = fold[2 * j * plane] * state + fold[(2 * j + 1) * plane];
  }
  return state;
}

/// The state that walk i's chunk begins with; `state` is where the scan's own is.
template <class T>
__device__ __forceinline__ state_t<T> state_before(const ScanArgs& a, const Chunks& chunks,
                                                   std::int64_t i, std::int64_t chunk,
                                                   const state_t<T>* state) {
  if (chunks.count > 1) return joined<T>(a, chunks, i, chunk);
  return chunks.fallback ? fold_of<T>(a, chunks.folds)[i] : *state;
}

/// Whether there is nothing to do.
__device__ __forceinline__ bool needless(const Chunks& chunks) {
  return chunks.fallback && *chunks.failed == 0;
}

template <class T>
__device__ __forceinline__ state_t<T>* largest_states(const ScanArgs& a, const Chunks& chunks) {
  return fold_of<T>(a, 2 * chunks.count);
}

/// After walk i's chunk, whose last state is c: is that what the next chunk began with?
template <class T>
__device__ __forceinline__ void check_joint(const ScanArgs& a, const Chunks& chunks, std::int64_t i,
                                            std::int64_t chunk, state_t<T> c) {
  using S = state_t<T>;
  if (chunks.failed == nullptr || chunk + 1 >= chunks.count) return;
  constexpr S kTolerance = sizeof(S) == 8 ? S(1e-14) : S(4e-6);
  const S difference = c - joined<T>(a, chunks, i, chunk + 1);
  const S most = kTolerance * largest_states<T>(a, chunks)[chunk * walks(a) + i];
  // Also where it is NaN.
  if (!(difference <= most && -difference <= most)) atomicOr(chunks.failed, 1u);
}

/// What a backward step reads besides `Loaded`, several steps ahead.
template <class T>
struct Gradients {
  using S = state_t<T>;
  const T* dy;
  std::int64_t dy_step;
  S dh_last;
  const S* c;  // after the walk's first step; where not each state is kept, the last one kept
  std::int64_t c_step;
  const S* before;     // the state before the walk's last step, if it is not the next one in c
  std::int64_t first;  // that step
};

template <class T>
__device__ __forceinline__ Gradients<T> make_gradients(const BackwardScan& a, const Walk<T>& w,
                                                       const Span& span) {
  using S = state_t<T>;
  Gradients<T> g;
  g.dy = a.dy == nullptr ? nullptr : static_cast<const T*>(a.dy) + w.row_at;
  g.dy_step = w.row_step;
  // In a walk from the last step to the first, the last valid step is the first that counts.
  g.dh_last = a.dh_last == nullptr ? S(0) : widen(static_cast<const T*>(a.dh_last)[w.state_at]);
  const std::int64_t newest = a.dims.keep == 1 ? span.end - 1 : a.dims.kept_steps - 1;
  g.c = static_cast<const S*>(a.c.data) + w.c_at + newest * w.c_step;
  g.c_step = -w.c_step;
  // What came before the sequence's first step is c0, else one step further on the walk.
  g.before = static_cast<const S*>(a.c0) + w.state_at;
  g.first = span.begin == 0 ? w.count - 1 : -1;
  return g;
}

template <class T>
struct LoadedGradients {
  T dy;
  state_t<T> c_prev;
};

template <class T>
__device__ __forceinline__ LoadedGradients<T> load(const Gradients<T>& g, std::int64_t k) {
  LoadedGradients<T> l;
  l.dy = g.dy == nullptr ? T{} : __ldg(g.dy + k * g.dy_step);
  l.c_prev = __ldg(k == g.first ? g.before : g.c + (k + 1) * g.c_step);
  return l;
}

/// Where the skip term's gradient goes, of the walk's first step; null where there is none.
template <class T>
struct SkipGradient {
  T* first = nullptr;
  std::int64_t step = 0;
};

template <class T>
__device__ __forceinline__ SkipGradient<T> skip_gradient(const BackwardScan& a, const Walk<T>& w) {
  if (a.dx_skip != nullptr) return {static_cast<T*>(a.dx_skip) + w.row_at, w.row_step};
  if (a.dims.blocks == 4) return {static_cast<T*>(a.du.data) + w.u_at + 3 * w.gate, w.u_step};
  return {};
}

/// Where a backward scan in chunks keeps the sums for dmask, (chunks, parts·B, dirs·H).
template <class T>
__device__ __forceinline__ state_t<T>* mask_sums(const ScanArgs& a, const Chunks& chunks) {
  return fold_of<T>(a, chunks.count);
}

/// What a thread of a backward scan sums up over time, for each of its channels.
template <class T, int W>
struct ParameterSums {
  using S = state_t<T>;
  S dv_f[W] = {}, dv_r[W] = {}, db_f[W] = {}, db_r[W] = {}, dmask[W] = {};

  __device__ __forceinline__ void add(int j, const sru_cell::Backward<value_t<T>>& out, S c_prev) {
    dv_f[j] += out.du1 * value_t<T>(c_prev);
    dv_r[j] += out.du2 * value_t<T>(c_prev);
    db_f[j] += out.du1;
    db_r[j] += out.du2;
    dmask[j] += out.dmask;
  }
  /// dparams is (4, chunks, parts·B, dirs·H).
  __device__ __forceinline__ void store(const BackwardScan& a, const Chunks& chunks,
                                        std::int64_t chunk, const Walk<T>& w) const {
    const std::int64_t plane = a.dims.states() * a.dims.width();
    S* sums = static_cast<S*>(a.dparams) + chunk * plane + w.state_at;
#pragma unroll
    for (int j = 0; j < W; ++j) {
      sums[j] += dv_f[j];
      sums[chunks.count * plane + j] += dv_r[j];
      sums[2 * chunks.count * plane + j] += db_f[j];
      sums[3 * chunks.count * plane + j] += db_r[j];
      if (a.dmask == nullptr) continue;
      if (chunks.count == 1) {
        static_cast<S*>(a.dmask)[w.state_at + j] += dmask[j];
      } else {
        mask_sums<T>(a, chunks)[chunk * plane + w.state_at + j] = dmask[j];
      }
    }
  }
};

/// A step's gradients to their places: `du` is the step's.
template <class T>
__device__ __forceinline__ void store_gradients(const Walk<T>& w, const SkipGradient<T>& dskip,
                                                std::int64_t k,
                                                const sru_cell::Backward<value_t<T>>& out, T* du) {
  du[0] = narrow<T>(out.du0);
  du[w.gate] = narrow<T>(out.du1);
  du[2 * w.gate] = narrow<T>(out.du2);
  if (dskip.first != nullptr) {
    dskip.first[k * dskip.step] = narrow<T>(value_t<T>(w.skip_scale) * out.dskip);
  }
}

}  // namespace penstock::cuda::sru_scans
