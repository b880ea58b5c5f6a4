// The SRU on CUDA: one thread takes one channel of one sequence through time, or through a chunk of
// it where channels are few.
//
// In chunks, where a scan is linear in its state (forward with v = 0, and any backward scan): a
// first kernel folds each chunk's steps into one, state' = a * state + b; in the second one each
// thread finds the state before its chunk from those of the chunks before, in their order, and
// takes its steps as if alone. Sums over time are kept chunk by chunk and added up in the chunks'
// order. So the bits are a function of the cut, which is one of the shape and the device
// (sru_cuda_plan.h).
//
// Where channels are many, forward keeps some of its states only (Dims::keep), and backward finds
// the others again from the same u, with forward's own arithmetic and so its bits.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <type_traits>

#include "cells/sru_cell.h"
#include "cells/sru_cuda_plan.h"
#include "cells/sru_cuda_ring.cuh"
#include "cells/sru_cuda_walk.cuh"
#include "cells/sru_kernels.h"
#include "cuda/device.h"
#include "cuda/launch.h"
#include "cuda/numeric.h"
#include "cuda/settings.h"
#include "penstock/config.h"

namespace penstock::cuda {
namespace {

using namespace sru_scans;
using sru::Dims;
using sru::Plan;

/// A walk's steps as a forward scan's first pass reads them, u0 and u1, some ahead of the one at
/// work: `visit(inputs)` for each that is not padding.
template <class T, class Visit>
__device__ __forceinline__ void fold_steps(const Walk<T>& w, Visit visit) {
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
      sru_cell::Inputs<value_t<T>> in = {};
      in.u0 = widen(u0[j]);
      in.u1 = widen(u1[j]);
      const bool skipped = padded[j];
      if (k + kFoldAhead < w.count) fetch(k + kFoldAhead, j);
      if (!skipped) visit(in);
    }
  }
}

// First kernel of a forward scan in chunks (v = 0).
// Work split: a thread per (walk, chunk but the last), chunk = blockIdx.y. Traffic per step and
// channel, in elements: u0 u1 in. Limits, launch: as the scan itself.
template <class T>
__global__ void __launch_bounds__(kThreads) sru_forward_fold_kernel(ForwardScan a, Chunks chunks) {
  using S = state_t<T>;
  using V = value_t<T>;
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= walks(a)) return;
  const std::int64_t chunk = blockIdx.y;
  const Walk<T> w = make_walk<T>(a, i, span_of(a, chunks, chunk, false), /*backward=*/false);
  const S c0 = static_cast<const S*>(a.c_state)[w.state_at];
  S total_a = S(1), total_b = chunk == 0 ? c0 : S(0);

  fold_steps(w, [&](const sru_cell::Inputs<V>& in) {
    const auto step = sru_cell::forward_step<V>(in, w.parameters);
    total_a *= step.a;
    total_b = step.a * V(total_b) + step.b;
  });
  S* fold = fold_of<T>(a, chunk) + i;
  fold[0] = chunk == 0 ? c0 : total_a;
  fold[walks(a)] = total_b;
}

// A turn of Newton's method for the states before the chunks of a forward scan with v != 0.
// Each chunk's steps are taken from the state that the turn before found, along with the derivative
// of the last state by the first, a; the chunk as a function of its first state is then nearly
// a * state + b, which is joined as a linear scan's folds are. As f < 1, states forget how they
// began, and a few turns do; whether they did the scan's kernels see at each joint (check_joint).
// Work split, traffic, limits, launch: as the first kernel of a linear scan; a and b go to
// fold_of(to) on, and the first turn, which has nothing before it, begins with zeros.
template <class T>
__global__ void __launch_bounds__(kThreads)
    sru_forward_shoot_kernel(ForwardScan a, Chunks chunks, bool first, std::int64_t to) {
  using S = state_t<T>;
  using V = value_t<T>;
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= walks(a)) return;
  const std::int64_t chunk = blockIdx.y;
  if (first && i == 0 && chunk == 0) *chunks.failed = 0;
  const Walk<T> w = make_walk<T>(a, i, span_of(a, chunks, chunk, false), /*backward=*/false);
  const S c0 = static_cast<const S*>(a.c_state)[w.state_at];
  S start = c0;
  if (chunk > 0) start = first ? S(0) : joined<T>(a, chunks, i, chunk);
  S c = start, total_a = S(1), largest = c < S(0) ? -c : c;

  fold_steps(w, [&](const sru_cell::Inputs<V>& in) {
    const auto step = sru_cell::forward_tangent<V>(in, w.parameters, c);
    total_a *= step.a;
    c = step.b;
    largest = largest < c ? c : largest < -c ? -c : largest;
  });
  S* fold = fold_of<T>(a, to + chunk) + i;
  fold[0] = chunk == 0 ? c0 : total_a;
  fold[walks(a)] = chunk == 0 ? c : c - total_a * start;
  largest_states<T>(a, chunks)[chunk * walks(a) + i] = largest;
}

// The recurrence over a range of steps, given u.
// Work split: a thread per (part, batch row, direction, channel) and chunk of the steps
// (blockIdx.y; always one chunk with h_last, whose rows are independent); no thread reads what
// another one writes. Traffic per step and channel, in elements: u0 u1 u2 x' in, y out (or the last
// valid output alone), and c out (state type) when training. The next kStepsAhead steps' inputs are
// already in registers or on their way when a step is computed. Limits: 64-bit offsets; 2^31 - 1
// blocks. Invariants: inputs do not overlap outputs; a padded step's u may be NaN and is not used.
// Launch: kThreads, no shared memory.
template <class T, Activation A>
__global__ void __launch_bounds__(kThreads, kBlocks)
    sru_forward_kernel(ForwardScan a, Chunks chunks) {
  using S = state_t<T>;
  using V = value_t<T>;
  constexpr int kAhead = kStepsAhead<T>;
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= walks(a) || needless(chunks)) return;
  const std::int64_t chunk = blockIdx.y;
  const Span span = span_of(a, chunks, chunk, false);
  const Walk<T> w = make_walk<T>(a, i, span, /*backward=*/false);
  T* y = a.y == nullptr ? nullptr : static_cast<T*>(a.y) + w.row_at;
  T* h_last = a.h_last == nullptr ? nullptr : static_cast<T*>(a.h_last) + w.state_at;
  S* c_out = a.c.data == nullptr ? nullptr : static_cast<S*>(a.c.data) + w.c_at;
  S* state = static_cast<S*>(a.c_state) + w.state_at;
  S c = state_before<T>(a, chunks, i, chunk, state);
  S last = h_last == nullptr ? S(0) : widen(*h_last);
  // Where not each state is kept: steps until one before which it is.
  int until = steps_to_kept(a, chunk);
  if (c_out != nullptr) c_out += first_kept(a, chunks, chunk, span) * w.c_step;

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
      if (a.dims.keep > 1 && c_out != nullptr && until-- == 0) {
        *c_out = c;
        c_out += w.c_step;
        until = static_cast<int>(a.dims.keep) - 1;
      }
      S h = S(0);
      if (!now.padded) {
        const auto out = sru_cell::forward<A, V>(inputs(w, now), w.parameters, c);
        c = out.c;
        h = out.h;
        last = h;
      }
      if (y != nullptr) y[k * w.row_step] = narrow<T>(h);
      if (a.dims.keep == 1 && c_out != nullptr) c_out[k * w.c_step] = c;
    }
  }
  check_joint<T>(a, chunks, i, chunk, c);
  if (chunk == chunks.count - 1) *state = c;
  if (h_last != nullptr) *h_last = narrow<T>(last);
}

// First kernel of a backward scan in chunks.
// Work split: a thread per (walk, chunk but the last), chunk = blockIdx.y. Traffic per step and
// channel, in elements: u0 u1 u2 x' dy and c_prev in. Limits, launch: as the scan itself.
template <class T, Activation A>
__global__ void __launch_bounds__(kThreads, kBlocks)
    sru_backward_fold_kernel(BackwardScan a, Chunks chunks) {
  using S = state_t<T>;
  using V = value_t<T>;
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
            sru_cell::backward_step<A, V>(inputs(w, now), w.parameters, gradients.c_prev, c, dh);
        total_a *= step.a;
        total_b = step.a * V(total_b) + step.b;
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
  using V = value_t<T>;
  constexpr int kAhead = kStepsAhead<T>;
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= walks(a)) return;
  const std::int64_t chunk = blockIdx.y;
  const Span span = span_of(a, chunks, chunk, true);
  const Walk<T> w = make_walk<T>(a, i, span, /*backward=*/true);
  const Gradients<T> g = make_gradients(a, w, span);
  T* du = static_cast<T*>(a.du.data) + w.u_at;
  const SkipGradient<T> dskip = skip_gradient(a, w);
  const S site = a.mask_site == MaskSite::kOutput ? S(1) : S(0);
  S* state = static_cast<S*>(a.dc_state) + w.state_at;
  S dc = state_before<T>(a, chunks, i, chunk, state);
  ParameterSums<T, 1> sums;

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
      sru_cell::Backward<V> out = {};
      if (!now.padded) {
        out = sru_cell::backward<A, V>(inputs(w, now), w.parameters, c_prev, c, dh, dc, site);
        dc = out.dc_prev;
        sums.add(0, out, c_prev);
      }
      store_gradients(w, dskip, k, out, du + k * w.u_step);
      c = c_prev;
    }
  }
  if (chunk == chunks.count - 1) *state = dc;
  sums.store(a, chunks, chunk, w);
}

/// What a step of the kernel below reads, and what it finds again.
template <class T>
struct KeptStep {
  Loaded<T> in;
  T dy;
  state_t<T> c_prev, f;
};

// sru_backward_kernel where forward kept one state every `keep` steps, for arrays that a ring
// cannot take: those that begin at odd addresses. Work split: a thread per walk. It reads the
// inputs of the steps between two states kept at once, finds their states again in one turn over
// them, and takes them from the last to the first in another one. Traffic, invariants: as
// sru_backward_kernel, but a state is read every `keep` steps only. Limits: the range has all
// steps. Launch: kThreads, a KeptStep of shared memory for each thread and step, at most
// kRingMostSteps of these.
template <class T>
__global__ void __launch_bounds__(kThreads) sru_backward_kept_kernel(BackwardScan a) {
  using S = state_t<T>;
  using V = value_t<T>;
  PENSTOCK_SHARED_MEMORY(KeptStep<T>, entries);
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= walks(a)) return;
  const Chunks whole = {a.dims.steps};
  const Span span = span_of(a, whole, 0, true);
  const Walk<T> w = make_walk<T>(a, i, span, /*backward=*/true);
  const Gradients<T> g = make_gradients(a, w, span);
  KeptStep<T>* entry = entries + threadIdx.x;  // of the next step kThreads further on
  T* du = static_cast<T*>(a.du.data) + w.u_at;
  const SkipGradient<T> dskip = skip_gradient(a, w);
  const AnyActivation activation = {a.activation};
  const S site = a.mask_site == MaskSite::kOutput ? S(1) : S(0);
  S* state = static_cast<S*>(a.dc_state) + w.state_at;
  S dc = *state, c = S(0);
  ParameterSums<T, 1> sums;

  const std::int64_t keep = a.dims.keep;
  const S* kept = g.c;
  int count = 0;
  for (std::int64_t k0 = 0; k0 < w.count; k0 += count, kept += g.c_step) {
    const std::int64_t left = w.count - k0;
    count = static_cast<int>((left - 1) & (keep - 1)) + 1;
#pragma unroll
    for (int n = 0; n < kRingMostSteps; ++n) {
      if (n >= count) break;
      entry[n * kThreads].in = load(w, k0 + n);
      entry[n * kThreads].dy = g.dy == nullptr ? T{} : __ldg(g.dy + (k0 + n) * g.dy_step);
    }
    S again = left == count ? *g.before : *kept;
    for (int n = count - 1; n >= 0; --n) {
      KeptStep<T>& step = entry[n * kThreads];
      const auto in = inputs(w, step.in);
      const V c_prev = again;
      const V f = sru_cell::forget_gate(in, w.parameters, c_prev);
      step.c_prev = again;
      step.f = f;
      if (!step.in.padded) again = sru_cell::next_state(in, c_prev, f);
    }
    if (k0 == 0) c = again;
    for (int n = 0; n < count; ++n) {
      const KeptStep<T> step = entry[n * kThreads];
      const std::int64_t k = k0 + n;
      S dh = widen(step.dy);
      if (k == w.valid_begin) dh += g.dh_last;
      sru_cell::Backward<V> out = {};
      if (!step.in.padded) {
        out = sru_cell::backward_of_gate<AnyActivation, V>(
            activation, inputs(w, step.in), w.parameters, step.c_prev, c, step.f, dh, dc, site);
        dc = out.dc_prev;
        sums.add(0, out, step.c_prev);
      }
      store_gradients(w, dskip, k, out, du + k * w.u_step);
      c = step.c_prev;
    }
  }
  *state = dc;
  sums.store(a, whole, 0, w);
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

/// Whether rows of so many channels fit a ring: they begin at multiples of 16 bytes, and as blocks
/// have channels of one sequence alone, the last one is not too empty.
template <class T>
bool ring_takes(std::int64_t channels) {
  if constexpr (sizeof(T) > 4) {
    return false;
  } else {
    const std::int64_t tiles = (channels + kRingChannels<T> - 1) / kRingChannels<T>;
    return channels % (16 / static_cast<int>(sizeof(T))) == 0 &&
           4 * channels >= 3 * tiles * kRingChannels<T>;
  }
}

/// Whether a scan goes through a ring, by its shape.
bool ring_takes(const Dims& d) {
  bool takes = false;
  with_type(d.compute,
            [&](auto tag) { takes = ring_takes<typename decltype(tag)::type>(d.hidden); });
  return takes;
}

std::int64_t keep(const Context&, const Dims& d) {
  return sru_keep_steps(ring_takes(d), d.states() * d.width(), setting("PENSTOCK_CUDA_SRU_KEEP"));
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
  p.ring = ring_takes(d);
  p.keep = static_cast<int>(d.keep);
  p.multiprocessors = attribute(ctx, cudaDevAttrMultiProcessorCount);
  const SruScanPlan plan = sru_scan_plan(p, setting("PENSTOCK_CUDA_SRU_CHUNKS"));
  if (report && setting("PENSTOCK_CUDA_PLAN") != 0) {
    std::fprintf(stderr,
                 "penstock: sru %s %s: %lld steps, %lld channels, %d multiprocessors: %lld chunks "
                 "of %lld steps, a state kept every %d, predicted %.1f us\n",
                 backward ? "backward" : "forward", name_of(d.compute),
                 static_cast<long long>(p.steps), static_cast<long long>(p.walks),
                 p.multiprocessors, static_cast<long long>(plan.chunks),
                 static_cast<long long>(plan.chunk_steps), p.keep, plan.nanoseconds * 1e-3);
  }
  Chunks chunks;
  chunks.steps = plan.chunk_steps;
  chunks.kept = plan.chunk_steps / d.keep;
  chunks.count = plan.chunks;
  return chunks;
}

/// Arrays that the skip term is read from.
int has_skip(const ScanArgs& a) { return a.dims.skip_from_x || a.dims.blocks == 4 ? 1 : 0; }

bool aligned(const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; }

/// What of a backward scan a ring must be able to reach.
bool aligned(const BackwardScan& a) {
  return aligned(a.dy) && aligned(a.c0) && aligned(a.du.data) && aligned(a.dx_skip);
}
bool aligned(const ForwardScan& a) { return aligned(a.y); }

/// How to launch a scan through a ring, if it can go through one: `states` of `sources` arrays have
/// values of state type. A thread takes W channels. A backward scan that is `to_find` states again
/// has stages of as many steps as lie between those kept.
template <class T, int W, class Scan>
RingShape ring_of(const Context& ctx, const Scan& a, const Chunks& chunks, int sources, int states,
                  bool to_find, LaunchShape* shape) {
  RingShape ring;
  if constexpr (sizeof(T) <= 4) {
    const std::int64_t channels = a.range.channel_end - a.range.channel_begin;
    const std::int64_t tiles = (channels + kRingChannels<T, W> - 1) / kRingChannels<T, W>;
    const int wanted = setting("PENSTOCK_CUDA_SRU_RING", -1);
    if (wanted == 0 || !ring_takes<T>(channels) || !aligned(a) || !aligned(a.u.data) ||
        !aligned(a.x) || !aligned(a.c.data)) {
      return ring;
    }
    const std::int64_t rows = walks(a) / channels;
    const auto step_bytes = static_cast<std::size_t>((sources - states) * kRingRow<T, W> +
                                                     states * kRingChannels<T, W> *
                                                         static_cast<int>(sizeof(state_t<T>)));
    if (to_find) {
      ring.stage_steps = static_cast<int>(a.dims.keep);
    } else if (wanted == 2 || wanted == 4 || wanted == 8) {
      ring.stage_steps = wanted;
    } else {
      ring.stage_steps =
          sru_ring_steps(rows * tiles * chunks.count, static_cast<std::int64_t>(step_bytes),
                         attribute(ctx, cudaDevAttrMaxSharedMemoryPerMultiprocessor),
                         attribute(ctx, cudaDevAttrMultiProcessorCount));
    }
    ring.bulk = capability(ctx) >= 90 && setting("PENSTOCK_CUDA_BULK_COPY", 1) != 0;
    *shape = one_thread_each(rows * tiles, 1);
    shape->block = dim3(ring.threads());
    shape->grid.y = static_cast<unsigned>(chunks.count);
    shape->shared_bytes = ring_bytes(ring.stage_steps, step_bytes) +
                          (to_find ? ring_found_bytes<T, W>(ring.stage_steps) : 0);
    if (setting("PENSTOCK_CUDA_PLAN") != 0) {
      std::fprintf(stderr, "penstock: sru: a ring of %d stages of %d steps, %zu bytes, %s\n",
                   kRingStages, ring.stage_steps, shape->shared_bytes,
                   ring.bulk ? "bulk copies" : "16 bytes a thread");
    }
  }
  return ring;
}

LaunchShape thread_per_walk(const ScanArgs& a, std::int64_t chunks) {
  LaunchShape shape = one_thread_each(walks(a), kThreads);
  shape.grid.y = static_cast<unsigned>(chunks);
  return shape;
}

/// The scan itself, in chunks or not.
void take_steps(const Context& ctx, const ForwardScan& a, const Chunks& chunks) {
  for_type_and_activation(a, [&](auto tag, auto activation) {
    using T = typename decltype(tag)::type;
    constexpr Activation kActivation = decltype(activation)::value;
    LaunchShape shape;
    const RingShape ring =
        ring_of<T, kRingWidth<T>>(ctx, a, chunks, 3 + has_skip(a), 0, /*to_find=*/false, &shape);
    if constexpr (sizeof(T) <= 4) {
      if (ring.stage_steps > 0) {
        return launch(ctx, "sru_forward_ring", sru_forward_ring_kernel<T, kActivation>, shape, a,
                      chunks, ring);
      }
    }
    launch(ctx, "sru_forward", sru_forward_kernel<T, kActivation>, thread_per_walk(a, chunks.count),
           a, chunks);
  });
}

/// A forward scan in chunks with v != 0: turns of Newton's method, the steps, and the steps again
/// without chunks if a joint was wrong.
void forward_by_newton(const Context& ctx, const ForwardScan& a, Chunks chunks) {
  chunks.failed = reinterpret_cast<unsigned*>(
      static_cast<char*>(a.scratch) +
      static_cast<std::size_t>(5 * chunks.count * walks(a)) * size_of(a.dims.state));
  with_type(a.dims.compute, [&](auto tag) {
    using T = typename decltype(tag)::type;
    for (int turn = 0; turn < kSruNewtonTurns; ++turn) {
      // Folds are read from one half and written to the other.
      const std::int64_t to = turn % 2 * chunks.count;
      launch(ctx, "sru_forward_shoot", sru_forward_shoot_kernel<T>,
             thread_per_walk(a, chunks.count - 1), a, chunks, turn == 0, to);
      chunks.folds = to;
    }
  });
  take_steps(ctx, a, chunks);
  chunks.steps = a.dims.steps;
  chunks.count = 1;
  chunks.fallback = true;
  take_steps(ctx, a, chunks);
}

void forward(const Context& ctx, const ForwardScan& a) {
  if (walks(a) == 0) return;
  const DeviceGuard guard(ctx);
  const Chunks chunks = chunks_of(ctx, a.dims, /*backward=*/false, /*report=*/true);
  if (chunks.count > 1 && !a.dims.linear) return forward_by_newton(ctx, a, chunks);
  if (chunks.count > 1) {
    with_type(a.dims.compute, [&](auto tag) {
      using T = typename decltype(tag)::type;
      launch(ctx, "sru_forward_fold", sru_forward_fold_kernel<T>,
             thread_per_walk(a, chunks.count - 1), a, chunks);
    });
  }
  take_steps(ctx, a, chunks);
}

/// From states of which forward kept a few, through a ring; false if it cannot go through one.
template <class T, int W>
bool backward_through_ring(const Context& ctx, const BackwardScan& a) {
  LaunchShape shape;
  const int sources = 3 + has_skip(a) + (a.dy != nullptr ? 1 : 0);
  const RingShape ring = ring_of<T, W>(ctx, a, Chunks(), sources, 0, /*to_find=*/true, &shape);
  if (ring.stage_steps == 0) return false;
  launch(ctx, "sru_backward_kept_ring", sru_backward_kept_ring_kernel<T, W>, shape, a, ring);
  return true;
}

void backward_from_kept(const Context& ctx, const BackwardScan& a) {
  with_type(a.dims.compute, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if constexpr (sizeof(T) <= 4) {
      const int width = sru_ring_width(static_cast<int>(sizeof(T)), walks(a),
                                       attribute(ctx, cudaDevAttrMultiProcessorCount));
      if (width == 1 ? backward_through_ring<T, 1>(ctx, a)
                     : backward_through_ring<T, kRingWidth<T>>(ctx, a)) {
        return;
      }
    }
    LaunchShape shape = thread_per_walk(a, 1);
    shape.shared_bytes = static_cast<std::size_t>(a.dims.keep * kThreads) * sizeof(KeptStep<T>);
    launch(ctx, "sru_backward_kept", sru_backward_kept_kernel<T>, shape, a);
  });
}

void backward(const Context& ctx, const BackwardScan& a) {
  if (walks(a) == 0 || a.range.step_end == a.range.step_begin) return;
  const DeviceGuard guard(ctx);
  const Chunks chunks = chunks_of(ctx, a.dims, /*backward=*/true, /*report=*/true);
  if (a.dims.keep > 1) return backward_from_kept(ctx, a);
  for_type_and_activation(a, [&](auto tag, auto activation) {
    using T = typename decltype(tag)::type;
    constexpr Activation kActivation = decltype(activation)::value;
    if (chunks.count > 1) {
      launch(ctx, "sru_backward_fold", sru_backward_fold_kernel<T, kActivation>,
             thread_per_walk(a, chunks.count - 1), a, chunks);
    }
    LaunchShape shape;
    const int sources = 4 + has_skip(a) + (a.dy != nullptr ? 1 : 0);
    const RingShape ring =
        ring_of<T, kRingWidth<T>>(ctx, a, chunks, sources, 1, /*to_find=*/false, &shape);
    if constexpr (sizeof(T) <= 4) {
      if (ring.stage_steps > 0) {
        launch(ctx, "sru_backward_ring", sru_backward_ring_kernel<T, kActivation>, shape, a, chunks,
               ring);
      }
    }
    if (ring.stage_steps == 0) {
      launch(ctx, "sru_backward", sru_backward_kernel<T, kActivation>,
             thread_per_walk(a, chunks.count), a, chunks);
    }
    if (chunks.count > 1 && a.dmask != nullptr) {
      launch(ctx, "sru_mask_sum", sru_mask_sum_kernel<T>, one_thread_each(walks(a), kThreads), a,
             chunks);
    }
  });
}

std::size_t scratch_bytes(const Context& ctx, const Dims& d, bool backward) {
  const std::int64_t chunks = chunks_of(ctx, d, backward).count;
  if (chunks == 1) return 0;
  // Backward, with those for dmask; by Newton's method, with a second half, the largest states and
  // a word.
  const bool newton = !backward && !d.linear;
  const std::int64_t values = (newton ? 5 : backward ? 3 : 2) * chunks;
  return static_cast<std::size_t>(values * d.states() * d.width()) * size_of(d.state) +
         (newton ? sizeof(unsigned) : 0);
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
      &plan, &keep, &forward, &backward, &scratch_bytes, &param_partial_bytes, &reduce_params};
  return table;
}

}  // namespace penstock::cuda
