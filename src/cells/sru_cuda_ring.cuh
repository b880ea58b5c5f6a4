// The SRU's scans with what the steps read on its way through a ring in shared memory.
//
// A block takes neighbouring channels of one sequence: at each step its share of every array is one
// run of 256 bytes. The ring holds kRingStages stages of some steps each, and while one stage is
// worked on the others fill. So the bytes in flight do not depend on registers, and a step waits
// for its arithmetic alone. It is filled in one of two ways:
//   threads   each thread copies the same 16 or 32 bytes of every step, so a copy costs it an
//             addition; a block barrier per stage
//   bulk      a warp of its own issues a bulk copy per array and step (compute capability 9.0); it
//             and the others wait for each other at two mbarriers per stage
#pragma once

#include <cstdint>

#include "cells/sru_cuda_walk.cuh"
#include "cuda/async_copy.h"

namespace penstock::cuda::sru_scans {

constexpr int kRingThreads = 64;  // that have channels
constexpr int kRingWarps = kRingThreads / 32;
/// Threads of a block: in the bulk way, one more warp.
constexpr int kRingBlockThreads = kRingThreads + 32;
constexpr int kRingStages = 4;
constexpr int kRingBlocks = 5;     // of a multiprocessor that registers must suffice for
constexpr int kRingMostSteps = 8;  // of a stage
constexpr int kRingMostSources = 6;
/// Channels of a thread: as many as four bytes hold, or one (sru_ring_width). Below, W.
template <class T>
constexpr int kRingWidth = static_cast<int>(4 / sizeof(T));
/// Channels of a block.
template <class T, int W = kRingWidth<T>>
constexpr int kRingChannels = kRingThreads * W;
/// Bytes of a block's share of an array of T.
template <class T, int W = kRingWidth<T>>
constexpr int kRingRow = kRingChannels<T, W> * static_cast<int>(sizeof(T));

/// How a kernel is to use its ring.
struct RingShape {
  int stage_steps = 0;  // 0: it is not to
  bool bulk = false;    // filled by bulk copies
  unsigned threads() const { return bulk ? kRingBlockThreads : kRingThreads; }
};

/// An array that steps read: the block's share of it at the walk's first step.
struct RingSource {
  const char* first;
  std::int64_t step;  // bytes from step to step
  unsigned bytes;     // at a step, a multiple of 16
  unsigned at;        // where they lie among a step's bytes in the ring
};

/// The start of the shared memory; the ring follows.
struct alignas(128) RingHeader {
  std::uint64_t full[kRingStages], empty[kRingStages];  // mbarriers; `empty` in the bulk way
  RingSource sources[kRingMostSources];
  const char* before;  // for the last source at one step, in place of the array
};

/// Bytes of shared memory for a ring with so many bytes per step.
inline std::size_t ring_bytes(int stage_steps, std::size_t step_bytes) {
  return sizeof(RingHeader) + kRingStages * static_cast<std::size_t>(stage_steps) * step_bytes;
}

/// A block's ring, first the arrays (add), then start(). The threads with channels then take the
/// stages in order: wait(stage), at(stage, place) for its steps, release(stage).
///
/// A stage has stage_steps() places. The last one may have fewer steps than that, in its first
/// places; or the first one may, in its last places, with `lead` empty ones before them.
class Ring {
 public:
  __device__ __forceinline__ Ring(RingHeader* header, const RingShape& shape, std::int64_t steps,
                                  int lead = 0)
      : header_(header),
        slots_(reinterpret_cast<char*>(header + 1)),
        stage_steps_(shape.stage_steps),
        lead_(lead),
        bulk_(shape.bulk),
        places_(lead + steps),
        stages_((lead + steps + shape.stage_steps - 1) / shape.stage_steps) {}

  /// Add an array, by all threads alike; returns where a step has it. Thread 0's pointers count,
  /// and its channel is the block's first. `row` bytes are kept for it, of which `bytes` come.
  __device__ __forceinline__ unsigned add(const void* first, std::int64_t step_elements,
                                          unsigned size, unsigned row, unsigned bytes) {
    if (threadIdx.x == 0) {
      RingSource& s = header_->sources[sources_];
      s.first = static_cast<const char*>(first);
      s.step = step_elements * size;
      s.bytes = bytes;
      s.at = step_bytes_;
    }
    const unsigned at = step_bytes_;
    ++sources_;
    step_bytes_ += row;
    copied_ += bytes;
    return at;
  }
  /// The source added last comes from `before` at this step.
  __device__ __forceinline__ void exception(std::int64_t step, const void* before) {
    special_ = step;
    if (threadIdx.x == 0) header_->before = static_cast<const char*>(before);
  }

  /// Begin to fill. False: this thread has filled the ring, to the end, and has nothing else to do.
  __device__ __forceinline__ bool start() {
    if (threadIdx.x == 0) {
      for (int i = 0; i < kRingStages; ++i) {
        mbarrier_init(&header_->full[i], bulk_ ? 1 : kRingThreads);
        if (bulk_) mbarrier_init(&header_->empty[i], kRingWarps);
      }
    }
    __syncthreads();
#if defined(PENSTOCK_CUDA_BULK_COPY)
    if (bulk_) {
      if (threadIdx.x < kRingThreads) return true;
      fill_all();
      return false;
    }
#endif
    // Places of the ring's rows, 16 bytes at a time, go round the threads.
    for (int n = 0; n < kPieces; ++n) {
      const unsigned place = (threadIdx.x + static_cast<unsigned>(n) * kRingThreads) * 16;
      for (int i = 0; i < sources_; ++i) {
        const RingSource& s = header_->sources[i];
        if (place < s.at || place - s.at >= s.bytes) continue;
        pieces_[n].from = s.first + (place - s.at);
        pieces_[n].step = s.step;
        pieces_[n].last = i == sources_ - 1;
      }
    }
    for (int i = 0; i < kRingStages && i < stages_; ++i) fill(i);
    return true;
  }

  __device__ __forceinline__ std::int64_t stages() const { return stages_; }
  __device__ __forceinline__ int stage_steps() const { return stage_steps_; }
  /// A stage's steps are in places [begin_of, end_of).
  __device__ __forceinline__ int begin_of(std::int64_t stage) const {
    return stage == 0 ? lead_ : 0;
  }
  __device__ __forceinline__ int end_of(std::int64_t stage) const {
    const std::int64_t left = places_ - stage * stage_steps_;
    return left < stage_steps_ ? static_cast<int>(left) : stage_steps_;
  }
  /// The walk's step in a stage's place 0; before the walk's first one if that place is empty.
  __device__ __forceinline__ std::int64_t first_of(std::int64_t stage) const {
    return stage * stage_steps_ - lead_;
  }
  __device__ __forceinline__ void wait(std::int64_t stage) const {
    mbarrier_wait(&header_->full[stage % kRingStages], turn(stage) & 1u);
  }
  __device__ __forceinline__ const char* at(std::int64_t stage, int place) const {
    return slot(stage) + static_cast<unsigned>(place) * step_bytes_;
  }
  /// Where the ring ends, once all arrays are added.
  __device__ __forceinline__ char* end() const {
    return slots_ + static_cast<unsigned>(kRingStages * stage_steps_) * step_bytes_;
  }
  /// The stage is used; its place may be filled again.
  __device__ __forceinline__ void release(std::int64_t stage) {
    if (stage + kRingStages >= stages_) return;
    if (bulk_) {
      fence_before_bulk_copy();
      __syncwarp();
      if (threadIdx.x % 32 == 0) mbarrier_arrive(&header_->empty[stage % kRingStages]);
    } else {
      __syncthreads();
      fill(stage + kRingStages);
    }
  }

 private:
  static constexpr int kPieces = 2;
  struct Piece {
    const char* from = nullptr;  // null: there is none
    std::int64_t step = 0;
    bool last = false;  // of the source added last
  };

  __device__ __forceinline__ static unsigned turn(std::int64_t stage) {
    return static_cast<unsigned>(stage / kRingStages);
  }
  __device__ __forceinline__ char* slot(std::int64_t stage) const {
    return slots_ + static_cast<unsigned>(stage % kRingStages) *
                        static_cast<unsigned>(stage_steps_) * step_bytes_;
  }

  __device__ __forceinline__ void fill(std::int64_t stage) const {
    const int begin = begin_of(stage), end = end_of(stage);
    const std::int64_t first = first_of(stage);
#pragma unroll
    for (int n = 0; n < kPieces; ++n) {
      const Piece& piece = pieces_[n];
      if (piece.from == nullptr) continue;
      const unsigned place = (threadIdx.x + static_cast<unsigned>(n) * kRingThreads) * 16;
      char* to = slot(stage) + static_cast<unsigned>(begin) * step_bytes_ + place;
      const char* from = piece.from + (first + begin) * piece.step;
      for (int step = begin; step < end; ++step) {
        const bool special = piece.last && first + step == special_;
        async_copy<16>(
            to, special ? header_->before + (place - header_->sources[sources_ - 1].at) : from);
        to += step_bytes_;
        from += piece.step;
      }
    }
    mbarrier_arrive_after_copies(&header_->full[stage % kRingStages]);
  }

#if defined(PENSTOCK_CUDA_BULK_COPY)
  /// By the warp that has no channels: lane i copies array i.
  __device__ __forceinline__ void fill_all() const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    RingSource source = {};
    if (lane < sources_) source = header_->sources[lane];
    for (std::int64_t stage = 0; stage < stages_; ++stage) {
      std::uint64_t* full = &header_->full[stage % kRingStages];
      const int begin = begin_of(stage), end = end_of(stage);
      if (stage >= kRingStages) {
        mbarrier_wait(&header_->empty[stage % kRingStages], (turn(stage) - 1) & 1u);
      }
      if (lane == 0) mbarrier_arrive_expecting(full, static_cast<unsigned>(end - begin) * copied_);
      __syncwarp();
      if (lane >= sources_) continue;
      char* to = slot(stage) + static_cast<unsigned>(begin) * step_bytes_ + source.at;
      for (int step = begin; step < end; ++step) {
        const std::int64_t k = first_of(stage) + step;
        const bool special = lane == sources_ - 1 && k == special_;
        bulk_copy(to, special ? header_->before : source.first + k * source.step, source.bytes,
                  full);
        to += step_bytes_;
      }
    }
  }
#endif

  RingHeader* header_;
  char* slots_;
  int stage_steps_, lead_;
  bool bulk_;
  std::int64_t places_, stages_;
  std::int64_t special_ = -1;
  int sources_ = 0;
  unsigned step_bytes_ = 0, copied_ = 0;
  Piece pieces_[kPieces];
};

/// Neighbouring values, read and written as one.
template <class T, int kCount>
struct alignas(kCount * sizeof(T)) RingValues {
  T v[kCount];
};

/// A thread's channels: the walk of the first, and what the others have of their own.
template <class T, int W = kRingWidth<T>>
struct RingLane {
  using S = state_t<T>;
  std::int64_t i = 0;     // the first channel's walk
  bool active = false;    // else it only helps to copy, from the block's first channels
  unsigned channels = 0;  // of the block
  Walk<T> walk;
  sru_cell::Parameters<value_t<T>> parameters[W];
  S mask[W], mask_skip[W];
};

template <class T, int W = kRingWidth<T>>
__device__ __forceinline__ RingLane<T, W> make_ring_lane(const ScanArgs& a, const Span& span,
                                                         bool backward) {
  using S = state_t<T>;
  RingLane<T, W> lane;
  const std::int64_t channels = a.range.channel_end - a.range.channel_begin;
  const std::int64_t tiles = (channels + kRingChannels<T, W> - 1) / kRingChannels<T, W>;
  const std::int64_t first = blockIdx.x % tiles * kRingChannels<T, W>;
  const std::int64_t left = channels - first;
  const unsigned own = threadIdx.x * W;
  lane.channels = static_cast<unsigned>(left < kRingChannels<T, W> ? left : kRingChannels<T, W>);
  lane.active = own < lane.channels;  // not in the warp that only copies
  lane.i = blockIdx.x / tiles * channels + first + (lane.active ? own : 0);
  lane.walk = make_walk<T>(a, lane.i, span, backward);
  const std::int64_t hidden = a.dims.hidden;
#pragma unroll
  for (int j = 0; j < W; ++j) {
    const T* v = static_cast<const T*>(a.weight_c) + lane.walk.param_at + j;
    const T* bias = static_cast<const T*>(a.bias) + lane.walk.param_at + j;
    lane.parameters[j] = {widen(v[0]), widen(v[hidden]), widen(bias[0]), widen(bias[hidden])};
    lane.mask[j] = lane.mask_skip[j] = S(1);
    if (a.mask_c != nullptr) {
      lane.mask[j] = widen(static_cast<const T*>(a.mask_c)[lane.walk.state_at + j]);
      if (a.mask_site == MaskSite::kOutput) lane.mask_skip[j] = lane.mask[j];
    }
  }
  return lane;
}

/// Bit g: whether step k + g is padded, or before the walk's first; g < count.
template <class T>
__device__ __forceinline__ unsigned ring_padding(const Walk<T>& w, std::int64_t k, int count) {
  unsigned bits = 0;
#pragma unroll
  for (int g = 0; g < kRingMostSteps; ++g) {
    if (g < count && is_padded(w, k + g)) bits |= 1u << g;
  }
  return bits;
}

/// Where a step's bytes have the arrays.
struct RingPlaces {
  unsigned u0 = 0, u1 = 0, u2 = 0, skip = 0, dy = 0, c_prev = 0;
};

template <class T, int W>
__device__ __forceinline__ RingPlaces add_inputs(Ring& ring, const RingLane<T, W>& lane) {
  const Walk<T>& w = lane.walk;
  const unsigned bytes = lane.channels * sizeof(T);
  RingPlaces p;
  p.u0 = ring.add(w.u, w.u_step, sizeof(T), kRingRow<T, W>, bytes);
  p.u1 = ring.add(w.u + w.gate, w.u_step, sizeof(T), kRingRow<T, W>, bytes);
  p.u2 = ring.add(w.u + 2 * w.gate, w.u_step, sizeof(T), kRingRow<T, W>, bytes);
  if (w.skip != nullptr) p.skip = ring.add(w.skip, w.skip_step, sizeof(T), kRingRow<T, W>, bytes);
  return p;
}

/// What a step reads, this thread's channels.
template <class T, int W = kRingWidth<T>>
struct RingLoaded {
  RingValues<T, W> u0, u1, u2, skip;
};

template <class V>
__device__ __forceinline__ V ring_load(const char* step, unsigned at) {
  return *reinterpret_cast<const V*>(step + at + threadIdx.x * sizeof(V));
}

template <class T, int W>
__device__ __forceinline__ RingLoaded<T, W> ring_load_inputs(const RingLane<T, W>& lane,
                                                             const RingPlaces& p,
                                                             const char* step) {
  using V = RingValues<T, W>;
  RingLoaded<T, W> l;
  l.u0 = ring_load<V>(step, p.u0);
  l.u1 = ring_load<V>(step, p.u1);
  l.u2 = ring_load<V>(step, p.u2);
  l.skip = V{};
  if (lane.walk.skip != nullptr) l.skip = ring_load<V>(step, p.skip);
  return l;
}

template <class T, int W>
__device__ __forceinline__ sru_cell::Inputs<value_t<T>> ring_inputs(const RingLane<T, W>& lane,
                                                                    const RingLoaded<T, W>& l,
                                                                    int j) {
  sru_cell::Inputs<value_t<T>> in;
  in.u0 = widen(l.u0.v[j]);
  in.u1 = widen(l.u1.v[j]);
  in.u2 = widen(l.u2.v[j]);
  in.skip = lane.walk.skip_scale * widen(l.skip.v[j]);
  in.mask = lane.mask[j];
  in.mask_skip = lane.mask_skip[j];
  return in;
}

// The forward scan (sru_forward_kernel says what it computes) through a ring.
// Work split: a block of kRingThreads per (part, batch row, direction, kRingChannels channels) and
// chunk of the steps (blockIdx.y), kRingWidth channels a thread. Traffic: as there. Limits: rows of
// the arrays, and the arrays, at multiples of 16 bytes. Invariants: as there. Launch:
// RingShape::threads, ring_bytes of shared memory.
template <class T, Activation A>
__global__ void __launch_bounds__(kRingBlockThreads, kRingBlocks)
    sru_forward_ring_kernel(ForwardScan a, Chunks chunks, RingShape shape) {
  using S = state_t<T>;
  constexpr int kWidth = kRingWidth<T>;
  PENSTOCK_SHARED_MEMORY(RingHeader, header);
  const std::int64_t chunk = blockIdx.y;
  if (needless(chunks)) return;
  const Span span = span_of(a, chunks, chunk, false);
  const RingLane<T> lane = make_ring_lane<T>(a, span, false);
  const Walk<T>& w = lane.walk;
  Ring ring(header, shape, w.count);
  const RingPlaces places = add_inputs(ring, lane);
  if (!ring.start()) return;

  T* y = a.y == nullptr ? nullptr : static_cast<T*>(a.y) + w.row_at;
  S* c_out = a.c.data == nullptr ? nullptr : static_cast<S*>(a.c.data) + w.c_at;
  T* h_last = a.h_last == nullptr ? nullptr : static_cast<T*>(a.h_last) + w.state_at;
  S* state = static_cast<S*>(a.c_state) + w.state_at;
  RingValues<S, kWidth> c;
  RingValues<T, kWidth> last = {};
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    c.v[j] = state_before<T>(a, chunks, lane.i + j, chunk, state + j);
    if (h_last != nullptr) last.v[j] = h_last[j];
  }

  const bool store_y = lane.active && y != nullptr;
  const bool store_c = lane.active && c_out != nullptr;
  const bool store_each = store_c && a.dims.keep == 1;
  std::int64_t y_at = 0, c_at = first_kept(a, chunks, chunk, span) * w.c_step;
  const auto take = [&](const RingLoaded<T>& now, bool padded) {
    RingValues<T, kWidth> h = {};
    if (!padded) {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const auto out =
            sru_cell::forward<A, Fast>(ring_inputs(lane, now, j), lane.parameters[j], c.v[j]);
        c.v[j] = out.c;
        h.v[j] = narrow<T>(out.h);
      }
      last = h;
    }
    if (store_y) *reinterpret_cast<RingValues<T, kWidth>*>(y + y_at) = h;
    if (store_each) *reinterpret_cast<RingValues<S, kWidth>*>(c_out + c_at) = c;
    y_at += w.row_step;
    if (store_each) c_at += w.c_step;
  };

  // Steps until one before which the state is kept, if not each state is; an even number.
  const bool keep_some = c_out != nullptr && a.dims.keep > 1;
  int until = keep_some ? steps_to_kept(a, chunk) : 0;
  for (std::int64_t stage = 0; stage < ring.stages(); ++stage) {
    const int count = ring.end_of(stage);
    const unsigned padding = ring_padding(w, ring.first_of(stage), count);
    ring.wait(stage);
    for (int begin = 0, end = 0; begin < count; begin = end) {
      end = count;
      if (keep_some) {
        if (until == 0) {
          if (store_c) *reinterpret_cast<RingValues<S, kWidth>*>(c_out + c_at) = c;
          c_at += w.c_step;
          until = static_cast<int>(a.dims.keep);
        }
        if (until < count - begin) end = begin + until;
        until -= end - begin;
      }
      if (padding == 0 && (end - begin) % 2 == 0) {
        // Two steps without a branch, so that loads, stores and addresses find their place in the
        // waits of the recurrence; the next two are loaded meanwhile.
        RingLoaded<T> next[2];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          next[j] = ring_load_inputs(lane, places, ring.at(stage, begin + j));
        }
        for (int g = begin; g < end; g += 2) {
          const RingLoaded<T> now[2] = {next[0], next[1]};
          const int ahead = g + 2 < end ? g + 2 : g;
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            next[j] = ring_load_inputs(lane, places, ring.at(stage, ahead + j));
          }
          take(now[0], false);
          take(now[1], false);
        }
      } else {
        for (int g = begin; g < end; ++g) {
          take(ring_load_inputs(lane, places, ring.at(stage, g)), (padding >> g & 1u) != 0);
        }
      }
    }
    ring.release(stage);
  }
  if (!lane.active) return;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    check_joint<T>(a, chunks, lane.i + j, chunk, c.v[j]);
    if (chunk == chunks.count - 1) state[j] = c.v[j];
    if (h_last != nullptr) h_last[j] = last.v[j];
  }
}

/// Where a backward scan's thread writes a step's gradients.
template <class T, int W = kRingWidth<T>>
struct RingGradients {
  using Values = RingValues<T, W>;
  T* du;  // of the present step; so is what follows
  T* dskip;
  std::int64_t dskip_step;
  bool store_du, store_dskip;

  __device__ __forceinline__ RingGradients(const BackwardScan& a, const Walk<T>& w, bool active)
      : du(static_cast<T*>(a.du.data) + w.u_at), store_du(active) {
    const SkipGradient<T> skip = skip_gradient(a, w);
    dskip = skip.first;
    dskip_step = skip.step;
    store_dskip = active && dskip != nullptr;
  }
  /// Then goes to the next step.
  __device__ __forceinline__ void store(const Walk<T>& w, const Values& du0, const Values& du1,
                                        const Values& du2, const Values& dx) {
    if (store_du) *reinterpret_cast<Values*>(du) = du0;
    if (store_du) *reinterpret_cast<Values*>(du + w.gate) = du1;
    if (store_du) *reinterpret_cast<Values*>(du + 2 * w.gate) = du2;
    if (store_dskip) *reinterpret_cast<Values*>(dskip) = dx;
    du += w.u_step;
    dskip += dskip_step;
  }
};

// The backward scan (sru_backward_kernel) through a ring. Work split, limits, launch: as forward.
template <class T, Activation A>
__global__ void __launch_bounds__(kRingBlockThreads, kRingBlocks)
    sru_backward_ring_kernel(BackwardScan a, Chunks chunks, RingShape shape) {
  using S = state_t<T>;
  using Values = RingValues<T, kRingWidth<T>>;
  using States = RingValues<S, kRingWidth<T>>;
  constexpr int kWidth = kRingWidth<T>;
  PENSTOCK_SHARED_MEMORY(RingHeader, header);
  const std::int64_t chunk = blockIdx.y;
  const Span span = span_of(a, chunks, chunk, true);
  const RingLane<T> lane = make_ring_lane<T>(a, span, true);
  const Walk<T>& w = lane.walk;
  const Gradients<T> gradients = make_gradients(a, w, span);
  Ring ring(header, shape, w.count);
  RingPlaces places = add_inputs(ring, lane);
  if (gradients.dy != nullptr) {
    places.dy = ring.add(gradients.dy, gradients.dy_step, sizeof(T), kRingRow<T>,
                         lane.channels * sizeof(T));
  }
  places.c_prev = ring.add(gradients.c + gradients.c_step, gradients.c_step, sizeof(S),
                           kRingChannels<T> * sizeof(S), lane.channels * sizeof(S));
  ring.exception(gradients.first, gradients.before);
  if (!ring.start()) return;

  RingGradients<T> to(a, w, lane.active);
  ParameterSums<T, kRingWidth<T>> sums;
  const S site = a.mask_site == MaskSite::kOutput ? S(1) : S(0);
  S* state = static_cast<S*>(a.dc_state) + w.state_at;
  S dc[kWidth], dh_last[kWidth];
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    dc[j] = state_before<T>(a, chunks, lane.i + j, chunk, state + j);
    dh_last[j] =
        a.dh_last == nullptr ? S(0) : widen(static_cast<const T*>(a.dh_last)[w.state_at + j]);
  }
  States c = *reinterpret_cast<const States*>(gradients.c);

  for (std::int64_t stage = 0; stage < ring.stages(); ++stage) {
    const std::int64_t k0 = ring.first_of(stage);
    const int count = ring.end_of(stage);
    const unsigned padding = ring_padding(w, k0, count);
    ring.wait(stage);
    for (int g = 0; g < count; ++g) {
      const char* step = ring.at(stage, g);
      const RingLoaded<T> now = ring_load_inputs(lane, places, step);
      const States c_prev = ring_load<States>(step, places.c_prev);
      Values dy = {};
      if (gradients.dy != nullptr) dy = ring_load<Values>(step, places.dy);
      const std::int64_t k = k0 + g;
      Values du0 = {}, du1 = {}, du2 = {}, dx = {};
      if ((padding >> g & 1u) == 0) {
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
          S dh = widen(dy.v[j]);
          if (k == w.valid_begin) dh += dh_last[j];
          const auto out = sru_cell::backward<A, Fast>(
              ring_inputs(lane, now, j), lane.parameters[j], c_prev.v[j], c.v[j], dh, dc[j], site);
          dc[j] = out.dc_prev;
          sums.add(j, out, c_prev.v[j]);
          du0.v[j] = narrow<T>(out.du0);
          du1.v[j] = narrow<T>(out.du1);
          du2.v[j] = narrow<T>(out.du2);
          dx.v[j] = narrow<T>(Fast(w.skip_scale) * out.dskip);
        }
      }
      c = c_prev;
      to.store(w, du0, du1, du2, dx);
    }
    ring.release(stage);
  }
  if (!lane.active) return;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    if (chunk == chunks.count - 1) state[j] = dc[j];
  }
  sums.store(a, chunks, chunk, w);
}

/// As kRingBlocks, of the kernel below, which needs more registers. More blocks of 256 bytes a row
/// would not find room for their stages either.
constexpr int kKeptRingBlocks = 4;

/// What is found again of a step, each of the thread's channels: the state before it, and then its
/// forget gate.
template <class T, int W>
using RingFound = RingValues<state_t<T>, 2 * W>;

/// Shared memory that it takes, after the ring.
template <class T, int W>
std::size_t ring_found_bytes(int stage_steps) {
  return static_cast<std::size_t>(stage_steps) * kRingThreads * sizeof(RingFound<T, W>);
}

// The backward scan through a ring, from states of which forward kept one every stage_steps steps.
//
// A stage of the ring is the steps between two states kept, so the first stage may be short. While
// the steps of one stage are taken, from the last to the first, those of the next stage are gone
// through from its first to its last: their states are found again from the one kept before them,
// by forward's own arithmetic, so with its bits. The two have nothing to do with each other, and
// each waits out the other's latency; the forget gate is kept along with the state, so it is
// computed once. In turn g both use one entry of `found`: the step at place g of this stage reads
// what was found, and then the step at place stage_steps - 1 - g of the next leaves its own there,
// which makes the entries' order the other way round from stage to stage.
//
// Work split: as forward, and no chunks of time. Traffic per step and channel, in elements: u0 u1
// u2 x' dy in, du0 du1 du2 dx' out, and 1 / stage_steps of a state in. Limits: as forward; the
// range has all steps. Invariants: as sru_backward_kernel. Launch: RingShape::threads, ring_bytes
// and then ring_found_bytes of shared memory. The activation is a branch at run time that all
// threads take alike, so there is one kernel for each element type and W.
template <class T, int W>
__global__ void __launch_bounds__(kRingBlockThreads, kKeptRingBlocks)
    sru_backward_kept_ring_kernel(BackwardScan a, RingShape shape) {
  using S = state_t<T>;
  using V = value_t<T>;
  using Values = RingValues<T, W>;
  using States = RingValues<S, W>;
  using Found = RingFound<T, W>;
  PENSTOCK_SHARED_MEMORY(RingHeader, header);
  const Chunks whole = {a.dims.steps};
  const Span span = span_of(a, whole, 0, true);
  const RingLane<T, W> lane = make_ring_lane<T, W>(a, span, true);
  const Walk<T>& w = lane.walk;
  const Gradients<T> gradients = make_gradients(a, w, span);
  const int steps = shape.stage_steps;
  // What is missing to whole stages, of a power of two of steps.
  Ring ring(header, shape, w.count, static_cast<int>(-w.count & (steps - 1)));
  RingPlaces places = add_inputs(ring, lane);
  if (gradients.dy != nullptr) {
    places.dy = ring.add(gradients.dy, gradients.dy_step, sizeof(T), kRingRow<T, W>,
                         lane.channels * sizeof(T));
  }
  Found* found = reinterpret_cast<Found*>(ring.end()) + threadIdx.x;
  if (!ring.start()) return;

  RingGradients<T, W> to(a, w, lane.active);
  ParameterSums<T, W> sums;
  const AnyActivation activation = {a.activation};
  const S site = a.mask_site == MaskSite::kOutput ? S(1) : S(0);
  S* state = static_cast<S*>(a.dc_state) + w.state_at;
  S dc[W], dh_last[W];
#pragma unroll
  for (int j = 0; j < W; ++j) {
    dc[j] = state[j];
    dh_last[j] =
        a.dh_last == nullptr ? S(0) : widen(static_cast<const T*>(a.dh_last)[w.state_at + j]);
  }

  // The state before a stage's steps.
  const auto kept_before = [&](std::int64_t stage) {
    const bool first_steps = stage + 1 >= ring.stages();
    return *reinterpret_cast<const States*>(first_steps ? gradients.before
                                                        : gradients.c + stage * gradients.c_step);
  };
  States again = kept_before(0);  // where finding again has come to
  const auto find = [&](const Values& u0, const Values& u1, bool padded, Found* entry) {
    Found here;
#pragma unroll
    for (int j = 0; j < W; ++j) {
      sru_cell::Inputs<V> in = {};
      in.u0 = widen(u0.v[j]);
      in.u1 = widen(u1.v[j]);
      const V c_prev = again.v[j];
      const V f = sru_cell::forget_gate(in, lane.parameters[j], c_prev);
      here.v[j] = c_prev;
      here.v[W + j] = f;
      if (!padded) again.v[j] = sru_cell::next_state(in, c_prev, f);
    }
    *entry = here;
  };

  struct Loaded {
    RingLoaded<T, W> in;
    Values dy = {};
  };
  const auto load = [&](const char* step) {
    Loaded l;
    l.in.u0 = ring_load<Values>(step, places.u0);
    l.in.u2 = ring_load<Values>(step, places.u2);
    l.in.u1 = l.in.skip = {};
    if (w.skip != nullptr) l.in.skip = ring_load<Values>(step, places.skip);
    if (gradients.dy != nullptr) l.dy = ring_load<Values>(step, places.dy);
    return l;
  };
  States c = {};
  const auto take = [&](const Loaded& now, const Found& here, bool padded, bool last) {
    Values du0 = {}, du1 = {}, du2 = {}, dx = {};
#pragma unroll
    for (int j = 0; j < W; ++j) {
      const S c_prev = here.v[j];
      if (!padded) {
        S dh = widen(now.dy.v[j]);
        if (last) dh += dh_last[j];
        const auto out = sru_cell::backward_of_gate<AnyActivation, V>(
            activation, ring_inputs(lane, now.in, j), lane.parameters[j], c_prev, c.v[j],
            here.v[W + j], dh, dc[j], site);
        dc[j] = out.dc_prev;
        sums.add(j, out, c_prev);
        du0.v[j] = narrow<T>(out.du0);
        du1.v[j] = narrow<T>(out.du1);
        du2.v[j] = narrow<T>(out.du2);
        dx.v[j] = narrow<T>(Fast(w.skip_scale) * out.dskip);
      }
      c.v[j] = c_prev;
    }
    to.store(w, du0, du1, du2, dx);
  };

  // The first stage's states are found ahead of all, those kept are on their way two stages ahead.
  unsigned padding = ring_padding(w, ring.first_of(0), steps);
  States kept = {}, kept_after = {};
  if (ring.stages() > 1) kept = kept_before(1);
  if (ring.stages() > 2) kept_after = kept_before(2);
  ring.wait(0);
  for (int place = steps - 1; place >= ring.begin_of(0); --place) {
    const char* step = ring.at(0, place);
    find(ring_load<Values>(step, places.u0), ring_load<Values>(step, places.u1),
         (padding >> place & 1u) != 0, found + place * kRingThreads);
  }
  c = again;

  for (std::int64_t stage = 0; stage < ring.stages(); ++stage) {
    const bool more = stage + 1 < ring.stages();
    const bool turned = stage % 2 != 0;
    const std::int64_t k0 = ring.first_of(stage);
    int last = -1;  // the place that dh_last belongs to
    if (a.dh_last != nullptr && w.valid_begin >= k0 && w.valid_begin < k0 + steps) {
      last = static_cast<int>(w.valid_begin - k0);
    }
    unsigned padding_next = 0;
    again = kept;
    kept = kept_after;
    if (stage + 3 < ring.stages()) kept_after = kept_before(stage + 3);
    if (more) {
      padding_next = ring_padding(w, ring.first_of(stage + 1), steps);
      ring.wait(stage + 1);
    }
    if (more && padding == 0 && padding_next == 0) {
      // Two steps at a time; what they read is loaded while the two before them are taken.
      const int way = turned ? -kRingThreads : kRingThreads;
      Found* entry = found + (turned ? (steps - 1) * kRingThreads : 0);
      struct Both {
        Loaded own;
        Found here;
        Values u0, u1;
      };
      const auto load_both = [&](int g) {
        const char* other = ring.at(stage + 1, steps - 1 - g);
        Both b;
        b.own = load(ring.at(stage, g));
        b.here = found[(turned ? steps - 1 - g : g) * kRingThreads];
        b.u0 = ring_load<Values>(other, places.u0);
        b.u1 = ring_load<Values>(other, places.u1);
        return b;
      };
      Both next[2] = {load_both(0), load_both(1)};
      for (int g = 0; g < steps; g += 2) {
        const Both now[2] = {next[0], next[1]};
        const int ahead = g + 2 < steps ? g + 2 : g;
#pragma unroll
        for (int j = 0; j < 2; ++j) next[j] = load_both(ahead + j);
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          find(now[j].u0, now[j].u1, false, entry);
          take(now[j].own, now[j].here, false, g + j == last);
          entry += way;
        }
      }
    } else {
      for (int g = 0; g < steps; ++g) {
        Found* entry = found + (turned ? steps - 1 - g : g) * kRingThreads;
        if (g >= ring.begin_of(stage)) {
          take(load(ring.at(stage, g)), *entry, (padding >> g & 1u) != 0, g == last);
        }
        if (!more) continue;
        const int place = steps - 1 - g;
        const char* step = ring.at(stage + 1, place);
        find(ring_load<Values>(step, places.u0), ring_load<Values>(step, places.u1),
             (padding_next >> place & 1u) != 0, entry);
      }
    }
    padding = padding_next;
    ring.release(stage);
  }
  if (!lane.active) return;
#pragma unroll
  for (int j = 0; j < W; ++j) state[j] = dc[j];
  sums.store(a, whole, 0, w);
}

}  // namespace penstock::cuda::sru_scans
