// The SRU on CUDA: one thread takes one channel of one sequence through time, or through a chunk of
// it where channels are few.
//
// In chunks (v = 0 forward, and any backward scan, which is linear in the state's gradient): a
// first kernel folds each chunk's steps into one, state' = a * state + b; in the second one each
// thread finds the state before its chunk from those of the chunks before, in their order, and
// takes its steps as if alone. Sums over time are kept chunk by chunk and added up in the chunks'
// order. So the bits are a function of the cut, which is one of the shape and the device
// (sru_cuda_plan.h).

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <type_traits>

#include "cells/sru_cell.h"
#include "cells/sru_cuda_plan.h"
#include "cells/sru_kernels.h"
#include "cuda/launch.h"
#include "cuda/numeric.h"
#include "penstock/config.h"

namespace penstock::cuda {
namespace {

using sru::BackwardScan;
using sru::Dims;
using sru::ForwardScan;
using sru::Plan;
using sru::ScanArgs;

// Blocks are small because a whole device's worth of threads is only a few ten thousand channels.
constexpr int kThreads = 64;
// Steps whose inputs a thread holds in registers ahead of the one it works on. A step waits about
// 0.6 µs for memory and takes about 30 ns to compute; more double values would spill.
template <class T>
constexpr int kStepsAhead = sizeof(T) == 8 ? 2 : 6;
// The forward scan's first pass reads two values a step.
constexpr int kFoldAhead = 12;

/// The cut of a scan's steps in the order that threads take them: chunk j begins with step
/// j * steps of the walk over all of them.
struct Chunks {
  std::int64_t steps = 0;
  std::int64_t count = 1;
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
  std::int64_t c_at = 0, c_step = 0;      // the states' plane
  std::int64_t state_at = 0;              // (parts·B, dirs·H)
  std::int64_t param_at = 0;              // (dirs, 2, H), first gate

  sru_cell::Parameters<S> parameters = {};
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
  w.c_at = row * a.c.row_stride + local_dir * a.c.dir_stride + local_channel;
  w.c_step = time_step * batch * a.c.row_stride;
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
__device__ __forceinline__ sru_cell::Inputs<state_t<T>> inputs(const Walk<T>& w,
                                                               const Loaded<T>& l) {
  sru_cell::Inputs<state_t<T>> in;
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
// the last a and b.

template <class T>
__device__ __forceinline__ state_t<T>* fold_of(const ScanArgs& a, std::int64_t chunk) {
  return static_cast<state_t<T>*>(a.scratch) + chunk * 2 * walks(a);
}

/// The state before walk i's chunk, from what the first kernel left.
template <class T>
__device__ __forceinline__ state_t<T> joined(const ScanArgs& a, std::int64_t i,
                                             std::int64_t chunk) {
  using S = state_t<T>;
  const std::int64_t plane = walks(a);
  const S* fold = fold_of<T>(a, 0) + i;
  if (chunk == 0) return fold[0];
  S state = fold[plane];
#pragma unroll 8
  for (std::int64_t j = 1; j < chunk; ++j) {
    state = fold[2 * j * plane] * state + fold[(2 * j + 1) * plane];
  }
  return state;
}

// First kernel of a forward scan in chunks (v = 0).
// Work split: a thread per (walk, chunk but the last), chunk = blockIdx.y. Traffic per step and
// channel, in elements: u0 u1 in. Limits, launch: as the scan itself.
template <class T>
__global__ void __launch_bounds__(kThreads) sru_forward_fold_kernel(ForwardScan a, Chunks chunks) {
  using S = state_t<T>;
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= walks(a)) return;
  const std::int64_t chunk = blockIdx.y;
  const Walk<T> w = make_walk<T>(a, i, span_of(a, chunks, chunk, false), /*backward=*/false);
  const S c0 = static_cast<const S*>(a.c_state)[w.state_at];
  S total_a = S(1), total_b = chunk == 0 ? c0 : S(0);

  T u0[kFoldAhead] = {}, u1[kFoldAhead] = {};
  bool padded[kFoldAhead] = {};
  const auto fetch = [&](std::int64_t k, int j) {
    const T* u = w.u + k * w.u_step;
    u0[j] = __ldg(u);
    u1[j] = __ldg(u + w.gate);
    padded[j] = is_padded(w, k);
  };
#pragma unroll
  for (int j = 0; j < kFoldAhead; ++j) {
    if (j < w.count) fetch(j, j);
  }
  for (std::int64_t k0 = 0; k0 < w.count; k0 += kFoldAhead) {
#pragma unroll
    for (int j = 0; j < kFoldAhead; ++j) {
      const std::int64_t k = k0 + j;
      if (k >= w.count) break;
      sru_cell::Inputs<S> in = {};
      in.u0 = widen(u0[j]);
      in.u1 = widen(u1[j]);
      const bool skipped = padded[j];
      if (k + kFoldAhead < w.count) fetch(k + kFoldAhead, j);
      if (!skipped) {
        const auto step = sru_cell::forward_step<S>(in, w.parameters);
        total_a *= step.a;
        total_b = step.a * total_b + step.b;
      }
    }
  }
  S* fold = fold_of<T>(a, chunk) + i;
  fold[0] = chunk == 0 ? c0 : total_a;
  fold[walks(a)] = total_b;
}

// The recurrence over a range of steps, given u.
// Work split: a thread per (part, batch row, direction, channel) and chunk of the steps
// (blockIdx.y; one chunk of all steps unless v = 0, and always one with h_last, whose rows are
// independent); no thread reads what another one writes. Traffic per step and channel, in elements:
// u0 u1 u2 x' in, y out (or the last valid output alone), and c out (state type) when training. The
// next kStepsAhead steps' inputs are already in registers or on their way when a step is computed.
// Limits: 64-bit offsets; 2^31 - 1 blocks. Invariants: inputs do not overlap outputs; a padded
// step's u may be NaN and is not used. Launch: kThreads, no shared memory.
template <class T, Activation A>
__global__ void __launch_bounds__(kThreads) sru_forward_kernel(ForwardScan a, Chunks chunks) {
  using S = state_t<T>;
  constexpr int kAhead = kStepsAhead<T>;
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= walks(a)) return;
  const std::int64_t chunk = blockIdx.y;
  const Walk<T> w = make_walk<T>(a, i, span_of(a, chunks, chunk, false), /*backward=*/false);
  T* y = a.y == nullptr ? nullptr : static_cast<T*>(a.y) + w.row_at;
  T* h_last = a.h_last == nullptr ? nullptr : static_cast<T*>(a.h_last) + w.state_at;
  S* c_out = a.c.data == nullptr ? nullptr : static_cast<S*>(a.c.data) + w.c_at;
  S* state = static_cast<S*>(a.c_state) + w.state_at;
  S c = chunks.count == 1 ? *state : joined<T>(a, i, chunk);
  S last = h_last == nullptr ? S(0) : widen(*h_last);

  Loaded<T> ahead[kAhead] = {};
#pragma unroll
  for (int j = 0; j < kAhead; ++j) {
    if (j < w.count) ahead[j] = load(w, j);
  }
  for (std::int64_t k0 = 0; k0 < w.count; k0 += kAhead) {
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const std::int64_t k = k0 + j;
      if (k >= w.count) break;
      const Loaded<T> now = ahead[j];
      if (k + kAhead < w.count) ahead[j] = load(w, k + kAhead);
      S h = S(0);
      if (!now.padded) {
        const auto out = sru_cell::forward<A, S>(inputs(w, now), w.parameters, c);
        c = out.c;
        h = out.h;
        last = h;
      }
      if (y != nullptr) y[k * w.row_step] = narrow<T>(h);
      if (c_out != nullptr) c_out[k * w.c_step] = c;
    }
  }
  if (chunk == chunks.count - 1) *state = c;
  if (h_last != nullptr) *h_last = narrow<T>(last);
}

/// What a backward step reads besides `Loaded`, several steps ahead.
template <class T>
struct Gradients {
  using S = state_t<T>;
  const T* dy;
  std::int64_t dy_step;
  S dh_last;
  const S* c;  // of the walk's first step
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
  g.c = static_cast<const S*>(a.c.data) + w.c_at;
  g.c_step = w.c_step;
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

/// Where a backward scan in chunks keeps the sums for dmask, (chunks, parts·B, dirs·H).
template <class T>
__device__ __forceinline__ state_t<T>* mask_sums(const ScanArgs& a, const Chunks& chunks) {
  return fold_of<T>(a, chunks.count);
}

// First kernel of a backward scan in chunks.
// Work split: a thread per (walk, chunk but the last), chunk = blockIdx.y. Traffic per step and
// channel, in elements: u0 u1 u2 x' dy and c_prev in. Limits, launch: as the scan itself.
template <class T, Activation A>
__global__ void __launch_bounds__(kThreads)
    sru_backward_fold_kernel(BackwardScan a, Chunks chunks) {
  using S = state_t<T>;
  constexpr int kAhead = kStepsAhead<T>;
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= walks(a)) return;
  const std::int64_t chunk = blockIdx.y;
  const Span span = span_of(a, chunks, chunk, true);
  const Walk<T> w = make_walk<T>(a, i, span, /*backward=*/true);
  const Gradients<T> g = make_gradients(a, w, span);
  const S dc = static_cast<const S*>(a.dc_state)[w.state_at];
  S total_a = S(1), total_b = chunk == 0 ? dc : S(0);

  Loaded<T> ahead[kAhead] = {};
  LoadedGradients<T> gradients_ahead[kAhead] = {};
#pragma unroll
  for (int j = 0; j < kAhead; ++j) {
    if (j < w.count) {
      ahead[j] = load(w, j);
      gradients_ahead[j] = load(g, j);
    }
  }
  S c = *g.c;
  for (std::int64_t k0 = 0; k0 < w.count; k0 += kAhead) {
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const std::int64_t k = k0 + j;
      if (k >= w.count) break;
      const Loaded<T> now = ahead[j];
      const LoadedGradients<T> gradients = gradients_ahead[j];
      if (k + kAhead < w.count) {
        ahead[j] = load(w, k + kAhead);
        gradients_ahead[j] = load(g, k + kAhead);
      }
      S dh = widen(gradients.dy);
      if (k == w.valid_begin) dh += g.dh_last;
      if (!now.padded) {
        const auto step =
            sru_cell::backward_step<A, S>(inputs(w, now), w.parameters, gradients.c_prev, c, dh);
        total_a *= step.a;
        total_b = step.a * total_b + step.b;
      }
      c = gradients.c_prev;
    }
  }
  S* fold = fold_of<T>(a, chunk) + i;
  fold[0] = chunk == 0 ? dc : total_a;
  fold[walks(a)] = total_b;
}

// The gradients through a range of steps, from the last to the first.
// Work split: as forward. Traffic per step and channel, in elements: u0 u1 u2 x' dy and c_prev in,
// du0 du1 du2 dx' out; c is the previous turn's c_prev. The sums over time of dv, db and dmask
// stay in registers, in the state type, and are added to this thread's own places in dparams and
// dmask: no two threads share one, so the order is fixed. Limits, invariants, launch: as forward.
template <class T, Activation A>
__global__ void __launch_bounds__(kThreads) sru_backward_kernel(BackwardScan a, Chunks chunks) {
  using S = state_t<T>;
  constexpr int kAhead = kStepsAhead<T>;
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= walks(a)) return;
  const std::int64_t chunk = blockIdx.y;
  const Span span = span_of(a, chunks, chunk, true);
  const Walk<T> w = make_walk<T>(a, i, span, /*backward=*/true);
  const Gradients<T> g = make_gradients(a, w, span);
  T* du = static_cast<T*>(a.du.data) + w.u_at;
  T* dskip = nullptr;
  std::int64_t dskip_step = 0;
  if (a.dx_skip != nullptr) {
    dskip = static_cast<T*>(a.dx_skip) + w.row_at;
    dskip_step = w.row_step;
  } else if (a.dims.blocks == 4) {
    dskip = du + 3 * w.gate;
    dskip_step = w.u_step;
  }
  const S site = a.mask_site == MaskSite::kOutput ? S(1) : S(0);
  S* state = static_cast<S*>(a.dc_state) + w.state_at;
  S dc = chunks.count == 1 ? *state : joined<T>(a, i, chunk);
  S dv_f = S(0), dv_r = S(0), db_f = S(0), db_r = S(0), dmask = S(0);

  Loaded<T> ahead[kAhead] = {};
  LoadedGradients<T> gradients_ahead[kAhead] = {};
#pragma unroll
  for (int j = 0; j < kAhead; ++j) {
    if (j < w.count) {
      ahead[j] = load(w, j);
      gradients_ahead[j] = load(g, j);
    }
  }
  S c = *g.c;
  for (std::int64_t k0 = 0; k0 < w.count; k0 += kAhead) {
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const std::int64_t k = k0 + j;
      if (k >= w.count) break;
      const Loaded<T> now = ahead[j];
      const LoadedGradients<T> gradients = gradients_ahead[j];
      if (k + kAhead < w.count) {
        ahead[j] = load(w, k + kAhead);
        gradients_ahead[j] = load(g, k + kAhead);
      }
      S dh = widen(gradients.dy);
      if (k == w.valid_begin) dh += g.dh_last;
      const S c_prev = gradients.c_prev;
      sru_cell::Backward<S> out = {};
      if (!now.padded) {
        out = sru_cell::backward<A, S>(inputs(w, now), w.parameters, c_prev, c, dh, dc, site);
        dc = out.dc_prev;
        dv_f += out.du1 * c_prev;
        dv_r += out.du2 * c_prev;
        db_f += out.du1;
        db_r += out.du2;
        dmask += out.dmask;
      }
      T* at = du + k * w.u_step;
      at[0] = narrow<T>(out.du0);
      at[w.gate] = narrow<T>(out.du1);
      at[2 * w.gate] = narrow<T>(out.du2);
      if (dskip != nullptr) dskip[k * dskip_step] = narrow<T>(w.skip_scale * out.dskip);
      c = c_prev;
    }
  }
  if (chunk == chunks.count - 1) *state = dc;
  // (4, chunks, parts·B, dirs·H)
  const std::int64_t plane = a.dims.states() * a.dims.width();
  S* sums = static_cast<S*>(a.dparams) + chunk * plane + w.state_at;
  sums[0] += dv_f;
  sums[chunks.count * plane] += dv_r;
  sums[2 * chunks.count * plane] += db_f;
  sums[3 * chunks.count * plane] += db_r;
  if (a.dmask == nullptr) return;
  if (chunks.count == 1) {
    static_cast<S*>(a.dmask)[w.state_at] += dmask;
  } else {
    mask_sums<T>(a, chunks)[chunk * plane + w.state_at] = dmask;
  }
}

// dmask from the chunks' sums, in their order.
// Work split: a thread per state. Traffic: each sum once. Launch: kThreads, no shared memory.
template <class T>
__global__ void __launch_bounds__(kThreads) sru_mask_sum_kernel(BackwardScan a, Chunks chunks) {
  using S = state_t<T>;
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const std::int64_t plane = a.dims.states() * a.dims.width();
  if (i >= plane) return;
  const S* sums = mask_sums<T>(a, chunks) + i;
  S sum = static_cast<const S*>(a.dmask)[i];
  for (std::int64_t chunk = 0; chunk < chunks.count; ++chunk) sum += sums[chunk * plane];
  static_cast<S*>(a.dmask)[i] = sum;
}

constexpr int kReduceColumns = 32;
constexpr int kMostReduceRows = 32;
// Rows of threads in a block.
unsigned reduce_rows(std::int64_t rows) { return rows > 64 ? kMostReduceRows : 8; }

// dweight_c and dbias from the sums of each chunk of each part of each sequence, (4, rows, dirs·H)
// with rows = chunks · parts · B.
// Work split: a block per 32 columns and parameter (blockIdx.y: dv_f, dv_r, db_f, db_r); thread row
// ty sums rows ty, ty + blockDim.y, … in double, then row 0 adds the thread rows' sums in order, so
// the result depends on the shape alone. Traffic: each partial sum once. Launch: (32, reduce_rows)
// threads, a double of shared memory each.
template <class T>
__global__ void __launch_bounds__(kReduceColumns* kMostReduceRows)
    sru_reduce_kernel(Dims dims, std::int64_t rows, const state_t<T>* partial, T* dweight_c,
                      T* dbias) {
  PENSTOCK_SHARED_MEMORY(double, sums);
  const std::int64_t width = dims.width();
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * kReduceColumns + threadIdx.x;
  const std::int64_t parameter = blockIdx.y;
  const unsigned lane = threadIdx.y * kReduceColumns + threadIdx.x;
  double sum = 0.0;
  if (column < width) {
#pragma unroll 4
    for (std::int64_t i = threadIdx.y; i < rows; i += blockDim.y) {
      sum += static_cast<double>(__ldg(partial + (parameter * rows + i) * width + column));
    }
  }
  sums[lane] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= width) return;
  for (unsigned row = 1; row < blockDim.y; ++row) sum += sums[row * kReduceColumns + threadIdx.x];
  T* out = parameter < 2 ? dweight_c : dbias;
  if (out == nullptr) return;
  const std::int64_t dir = column / dims.hidden, channel = column % dims.hidden;
  out[(dir * 2 + parameter % 2) * dims.hidden + channel] = narrow<T>(static_cast<state_t<T>>(sum));
}

/// All channels and both directions in one group: one product, one launch.
Plan plan(const Dims& d) {
  Plan p;
  p.channels = d.hidden;
  p.dirs_per_group = d.dirs;
  p.chunk_parts = d.parts;
  p.chunk_steps = std::max<std::int64_t>(1, d.steps);
  p.pack_weight = false;
  p.dx_rows = std::max<std::int64_t>(1, d.rows());
  return p;
}

template <class Scan, class F>
void for_type_and_activation(const Scan& a, F&& f) {
  with_type(a.dims.compute, [&](auto tag) {
    switch (a.activation) {
      case Activation::kIdentity:
        return f(tag, std::integral_constant<Activation, Activation::kIdentity>{});
      case Activation::kTanh:
        return f(tag, std::integral_constant<Activation, Activation::kTanh>{});
      case Activation::kRelu:
        return f(tag, std::integral_constant<Activation, Activation::kRelu>{});
    }
  });
}

int setting(const char* name) {
  const char* text = std::getenv(name);
  return text == nullptr ? 0 : std::atoi(text);
}

/// How a scan's steps are cut: the same for all that a call asks about it.
Chunks chunks_of(const Context& ctx, const Dims& d, bool backward, bool report = false) {
  SruScanProblem p;
  p.backward = backward;
  p.linear = d.linear;
  p.independent = d.independent_rows || batch_invariant();
  p.steps = d.steps;
  p.walks = d.states() * d.width();
  p.value_bytes = static_cast<int>(size_of(d.compute));
  check(cudaDeviceGetAttribute(&p.multiprocessors, cudaDevAttrMultiProcessorCount,
                               ctx.device().index),
        "cudaDeviceGetAttribute");
  const SruScanPlan plan = sru_scan_plan(p, setting("PENSTOCK_CUDA_SRU_CHUNKS"));
  if (report && setting("PENSTOCK_CUDA_PLAN") != 0) {
    std::fprintf(stderr,
                 "penstock: sru %s %s: %lld steps, %lld channels, %d multiprocessors: %lld chunks "
                 "of %lld steps, predicted %.1f us\n",
                 backward ? "backward" : "forward", name_of(d.compute),
                 static_cast<long long>(p.steps), static_cast<long long>(p.walks),
                 p.multiprocessors, static_cast<long long>(plan.chunks),
                 static_cast<long long>(plan.chunk_steps), plan.nanoseconds * 1e-3);
  }
  Chunks chunks;
  chunks.steps = plan.chunk_steps;
  chunks.count = plan.chunks;
  return chunks;
}

LaunchShape thread_per_walk(const ScanArgs& a, std::int64_t chunks) {
  LaunchShape shape = one_thread_each(walks(a), kThreads);
  shape.grid.y = static_cast<unsigned>(chunks);
  return shape;
}

void forward(const Context& ctx, const ForwardScan& a) {
  if (walks(a) == 0) return;
  const DeviceGuard guard(ctx);
  const Chunks chunks = chunks_of(ctx, a.dims, /*backward=*/false, /*report=*/true);
  with_type(a.dims.compute, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (chunks.count == 1) return;
    launch(ctx, "sru_forward_fold", sru_forward_fold_kernel<T>,
           thread_per_walk(a, chunks.count - 1), a, chunks);
  });
  for_type_and_activation(a, [&](auto tag, auto activation) {
    using T = typename decltype(tag)::type;
    launch(ctx, "sru_forward", sru_forward_kernel<T, decltype(activation)::value>,
           thread_per_walk(a, chunks.count), a, chunks);
  });
}

void backward(const Context& ctx, const BackwardScan& a) {
  if (walks(a) == 0 || a.range.step_end == a.range.step_begin) return;
  const DeviceGuard guard(ctx);
  const Chunks chunks = chunks_of(ctx, a.dims, /*backward=*/true, /*report=*/true);
  for_type_and_activation(a, [&](auto tag, auto activation) {
    using T = typename decltype(tag)::type;
    constexpr Activation kActivation = decltype(activation)::value;
    if (chunks.count > 1) {
      launch(ctx, "sru_backward_fold", sru_backward_fold_kernel<T, kActivation>,
             thread_per_walk(a, chunks.count - 1), a, chunks);
    }
    launch(ctx, "sru_backward", sru_backward_kernel<T, kActivation>,
           thread_per_walk(a, chunks.count), a, chunks);
    if (chunks.count > 1 && a.dmask != nullptr) {
      launch(ctx, "sru_mask_sum", sru_mask_sum_kernel<T>, one_thread_each(walks(a), kThreads), a,
             chunks);
    }
  });
}

std::size_t scratch_bytes(const Context& ctx, const Dims& d, bool backward) {
  const std::int64_t chunks = chunks_of(ctx, d, backward).count;
  if (chunks == 1) return 0;
  // Backward, with those for dmask.
  const std::int64_t values = (backward ? 3 : 2) * chunks;
  return static_cast<std::size_t>(values * d.states() * d.width()) * size_of(d.state);
}

std::size_t param_partial_bytes(const Context& ctx, const Dims& d) {
  const std::int64_t rows = chunks_of(ctx, d, /*backward=*/true).count * d.states();
  return static_cast<std::size_t>(4 * rows * d.width()) * size_of(d.state);
}

void reduce_params(const Context& ctx, const Dims& d, const void* dparams, void* dweight_c,
                   void* dbias) {
  if (dweight_c == nullptr && dbias == nullptr) return;
  const DeviceGuard guard(ctx);
  const std::int64_t rows = chunks_of(ctx, d, /*backward=*/true).count * d.states();
  with_type(d.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    LaunchShape shape = one_thread_each(d.width(), kReduceColumns);
    shape.grid.y = 4;
    shape.block = dim3(kReduceColumns, reduce_rows(rows));
    shape.shared_bytes = shape.block.x * shape.block.y * sizeof(double);
    launch(ctx, "sru_reduce", sru_reduce_kernel<T>, shape, d, rows,
           static_cast<const state_t<T>*>(dparams), static_cast<T*>(dweight_c),
           static_cast<T*>(dbias));
  });
}

}  // namespace

const sru::Kernels& sru_kernels() {
  static constexpr sru::Kernels table = {
      &plan, &forward, &backward, &scratch_bytes, &param_partial_bytes, &reduce_params};
  return table;
}

}  // namespace penstock::cuda
