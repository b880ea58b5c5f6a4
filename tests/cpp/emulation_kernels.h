// Kernels made for the test that faults in kernels are found. Each is right as Fault::kNone and has
// one mistake otherwise; plain CUDA over the wrappers of src/cuda, so nvcc compiles them as well.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/async_copy.h"
#include "cuda/barriers.h"
#include "cuda/launch.h"
#include "cuda/matrix.h"

namespace penstock::tests {

enum class Fault {
  kNone,
  kMissingBarrier,
  kMissingSecondBarrier,
  kShiftedIndex,
  kBrokenTail,
  kWrongMask,
  kDivergentShuffle,
  kWrongWidth,
  kDroppedWait,
  kWaitForTooFew,
  kWrongParity,
  kBytesNotAnnounced,
  kNotCommitted,
  kWrongCount,
  kBarrierNotZeroed,
  kSwappedRegisters,
  kNotTransposed,
  kSharedTooSmall,
  kMisaligned,
  kUninitialised,
};

// ---- barriers of a block -----------------------------------------------------------------------

// out[b] = sum of in[b·threads …], which has n elements, by halves in shared memory, times two: the
// memory is used again for a second sum. Launch: blockDim.x a power of two; that many floats.
template <Fault F>
__global__ void block_sum_kernel(const float* in, std::int64_t n, float* out) {
  PENSTOCK_SHARED_MEMORY(float, part);
  const unsigned t = threadIdx.x;
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + t;
  const std::int64_t at = F == Fault::kShiftedIndex ? i + 1 : i;
  const bool inside = i < n;
  float total = 0.0f;
  for (int round = 0; round < 2; ++round) {
    if (inside) {
      part[t] = in[at];
    } else if (F != Fault::kUninitialised) {
      part[t] = 0.0f;
    }
    if (F != Fault::kMissingBarrier) __syncthreads();
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
      if (t < half) part[t] += part[t + half];
      __syncthreads();
    }
    total += part[0];
    if (F != Fault::kMissingSecondBarrier) __syncthreads();
  }
  if (t == blockDim.x - 1) out[blockIdx.x] = total;
}

// out[i] = in[i] + 1 for i < n. With the broken tail it writes one element more.
template <Fault F>
__global__ void increment_kernel(const float* in, std::int64_t n, float* out) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (F == Fault::kBrokenTail ? i <= n : i < n) out[i] = (i < n ? in[i] : 0.0f) + 1.0f;
}

// ---- the warp ----------------------------------------------------------------------------------

// out[w] = sum of warp w's 32 elements of in, which has n.
template <Fault F>
__global__ void warp_sum_kernel(const float* in, int n, float* out) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const unsigned lane = threadIdx.x % 32;
  float v = 0.0f;
  const unsigned all = F == Fault::kWrongMask ? 0x7fffffffu : 0xffffffffu;
  if (F == Fault::kBrokenTail && i >= n) return;
  if (i < n) v = in[i];
  if (F == Fault::kDivergentShuffle && lane >= 16) {
    // Half the warp goes on to the next barrier while the rest waits for its values.
  } else {
    for (int half = 16; half > 0; half /= 2) {
      v += F == Fault::kWrongWidth ? __shfl_xor_sync(all, v, half, 16)
                                   : __shfl_xor_sync(all, v, half);
    }
  }
  __syncwarp();
  if (lane == 0) out[i / 32] = v;
}

// out = in with the elements of each warp turned round, by way of shared memory.
// Launch: blockDim.x floats.
template <Fault F>
__global__ void warp_reverse_kernel(const float* in, float* out) {
  PENSTOCK_SHARED_MEMORY(float, values);
  const unsigned t = threadIdx.x;
  values[t] = in[t];
  if (F != Fault::kMissingBarrier) __syncwarp();
  out[t] = values[t ^ 31u];
}

// ---- asynchronous copies -----------------------------------------------------------------------

// out[t] = sum over k of in[k·threads + (threads - 1 - t)], through a ring of two buffers that each
// thread fills with its own element of row k while row k - 1 is summed. Launch: 2·threads floats.
template <Fault F>
__global__ void ring_sum_kernel(const float* in, int rows, float* out) {
  PENSTOCK_SHARED_MEMORY(float, ring);
  const int threads = static_cast<int>(blockDim.x), t = static_cast<int>(threadIdx.x);
  const auto fetch = [&](int k) {
    if (k < rows) cuda::async_copy<4>(ring + k % 2 * threads + t, in + k * threads + t);
    if (F != Fault::kNotCommitted) cuda::commit_copies();
  };
  fetch(0);
  float sum = 0.0f;
  for (int k = 0; k < rows; ++k) {
    fetch(k + 1);
    if (F == Fault::kWaitForTooFew) {
      cuda::wait_copies<2>();
    } else if (F != Fault::kDroppedWait) {
      cuda::wait_copies<1>();
    }
    if (F != Fault::kMissingBarrier) __syncthreads();
    sum += ring[k % 2 * threads + threads - 1 - t];
    if (F != Fault::kMissingSecondBarrier) __syncthreads();
  }
  out[t] = sum;
}

// The same with rows copied by the block as a whole, a multiple of 16 bytes each.
// Launch: 2·threads floats, then two copy barriers.
template <Fault F, class Way>
__global__ void block_copy_sum_kernel(const float* in, int rows, float* out) {
  PENSTOCK_SHARED_MEMORY(float, ring);
  const unsigned threads = blockDim.x, t = threadIdx.x;
  auto* barriers = reinterpret_cast<cuda::CopyBarrier*>(ring + 2 * threads);
  if (t < 2) cuda::init_copy_barrier<Way>(barriers + t, threads);
  __syncthreads();
  const auto fetch = [&](int k) {
    if (k >= rows) return;
    const unsigned buffer = static_cast<unsigned>(k) % 2;
    const unsigned from = static_cast<unsigned>(k) * threads + (F == Fault::kMisaligned ? 1 : 0);
    cuda::copy_block_async<Way>(ring + buffer * threads, in + from,
                                static_cast<unsigned>(threads * sizeof(float)), barriers + buffer,
                                t, threads);
  };
  fetch(0);
  float sum = 0.0f;
  for (int k = 0; k < rows; ++k) {
    fetch(k + 1);
    const unsigned buffer = static_cast<unsigned>(k) % 2, turn = static_cast<unsigned>(k) / 2;
    if (F != Fault::kDroppedWait) {
      cuda::wait_block_copy(barriers + buffer, F == Fault::kWrongParity ? turn + 1 : turn);
    }
    sum += ring[buffer * threads + threads - 1 - t];
    cuda::fence_before_bulk_copy();
    if (F != Fault::kMissingSecondBarrier) __syncthreads();
  }
  out[t] = sum;
}

// out = in, one bulk copy of all n floats; nothing below compute capability 9.0. Launch: n threads,
// n floats and an mbarrier.
template <Fault F>
__global__ void bulk_copy_kernel(const float* in, unsigned n, float* out) {
#if defined(PENSTOCK_CUDA_BULK_COPY)
  PENSTOCK_SHARED_MEMORY(float, buffer);
  auto* barrier = reinterpret_cast<std::uint64_t*>(buffer + n);
  if (threadIdx.x == 0) cuda::mbarrier_init(barrier, 1);
  __syncthreads();
  if (threadIdx.x == 0) {
    const auto bytes = static_cast<unsigned>(n * sizeof(float));
    cuda::bulk_copy(buffer, in, bytes, barrier);
    if (F == Fault::kBytesNotAnnounced) {
      cuda::mbarrier_arrive(barrier);
    } else {
      cuda::mbarrier_arrive_expecting(barrier, bytes);
    }
  }
  cuda::mbarrier_wait(barrier, 0);
  out[threadIdx.x] = buffer[threadIdx.x];
#endif
}

// ---- named barriers ----------------------------------------------------------------------------

// The first warp writes rows of 32 floats to shared memory, the second reads each of them.
// Barrier 1: the row is there; barrier 2: the row has been read. Launch: 64 threads, 32 floats.
template <Fault F>
__global__ void hand_over_kernel(const float* in, int rows, float* out) {
  PENSTOCK_SHARED_MEMORY(float, row);
  const unsigned lane = threadIdx.x % 32;
  const unsigned count = F == Fault::kWrongCount ? 96 : 64;
  if (threadIdx.x < 32) {
    for (int k = 0; k < rows; ++k) {
      if (k > 0 && F != Fault::kMissingSecondBarrier) cuda::named_barrier_sync(2, 64);
      row[lane] = in[k * 32 + static_cast<int>(lane)];
      if (F != Fault::kMissingBarrier) cuda::named_barrier_arrive(1, count);
    }
  } else {
    float sum = 0.0f;
    for (int k = 0; k < rows; ++k) {
      if (F != Fault::kMissingBarrier) cuda::named_barrier_sync(1, count);
      sum = sum * 2.0f + row[31 - lane];
      if (k + 1 < rows && F != Fault::kMissingSecondBarrier) cuda::named_barrier_arrive(2, 64);
    }
    out[lane] = sum;
  }
}

// ---- the grid ----------------------------------------------------------------------------------

// out[b] = part[b + 1 mod blocks], twice over with part[b] = in[b], then its double. `word` is the
// grid barrier's.
template <Fault F>
__global__ void neighbour_kernel(const float* in, float* part, float* out, unsigned* word) {
  const unsigned b = blockIdx.x, next = (b + 1) % gridDim.x;
  float sum = 0.0f;
  for (int round = 1; round <= 2; ++round) {
    if (threadIdx.x == 0) part[b] = in[b] * static_cast<float>(round);
    if (F != Fault::kMissingBarrier) cuda::grid_barrier(word);
    if (threadIdx.x == blockDim.x - 1) sum += __ldcg(part + next);
    if (F != Fault::kMissingSecondBarrier) cuda::grid_barrier(word);
  }
  if (threadIdx.x == blockDim.x - 1) out[b] = sum;
}

// ---- the cluster -------------------------------------------------------------------------------

// out[i] = in[i] of the thread's place in the cluster's next block, read from its shared memory.
// Launch: a cluster shape; blockDim.x floats.
template <Fault F>
__global__ void cluster_neighbour_kernel(const float* in, float* out) {
  PENSTOCK_SHARED_MEMORY(float, own);
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  own[threadIdx.x] = in[i];
  if (F == Fault::kMissingBarrier) {
    __syncthreads();
  } else {
    cuda::cluster_barrier();
  }
  const unsigned rank = F == Fault::kShiftedIndex
                            ? cuda::cluster_rank() + 1
                            : (cuda::cluster_rank() + 1) % cuda::cluster_size();
  const float* other = cuda::cluster_shared(own, rank);
  out[i] = other[blockDim.x - 1 - threadIdx.x];
  if (F != Fault::kMissingSecondBarrier) cuda::cluster_barrier();
}

// ---- matrix products ---------------------------------------------------------------------------

// c (16, 8) = a (16, depth) b (depth, 8), row-major, depth a multiple of 16, by one warp.
// Launch: 32 threads; (16·depth + depth·8) T.
template <class T, Fault F>
__global__ void product_kernel(const T* a, const T* b, int depth, float* c) {
  PENSTOCK_SHARED_MEMORY(T, tiles);
  const int lane = static_cast<int>(threadIdx.x);
  T* shared_a = tiles;
  T* shared_b = tiles + 16 * depth;
  for (int i = lane; i < 16 * depth; i += 32) shared_a[i] = a[i];
  for (int i = lane; i < depth * 8; i += 32) shared_b[i] = b[i];
  __syncwarp();
  float d[4] = {};
  for (int k = 0; k < depth; k += 16) {
    std::uint32_t fa[4], fb[2];
    // Lanes 0-7 and 8-15: rows 0-7 and 8-15 of columns k…k+7; 16-31: of columns k+8…k+15.
    cuda::load_matrices<4>(fa, shared_a + lane % 16 * depth + k + lane / 16 * 8);
    cuda::load_matrices<2, F != Fault::kNotTransposed>(fb, shared_b + (k + lane % 16) * 8);
    if (F == Fault::kSwappedRegisters) {
      const std::uint32_t swap = fa[1];
      fa[1] = fa[2];
      fa[2] = swap;
    }
    cuda::matrix_multiply<T>(d, fa, fb);
  }
  for (int i = 0; i < 4; ++i) c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];
}

// c (16, 8) = a (16, 8) b (8, 8) in tf32, from global memory, by one warp.
template <Fault F>
__global__ void product_tf32_kernel(const float* a, const float* b, float* c) {
  const int lane = static_cast<int>(threadIdx.x), g = lane / 4, i = lane % 4;
  const std::uint32_t fa[4] = {cuda::to_tf32(a[g * 8 + i]), cuda::to_tf32(a[(g + 8) * 8 + i]),
                               cuda::to_tf32(a[g * 8 + i + 4]),
                               cuda::to_tf32(a[(g + 8) * 8 + i + 4])};
  const std::uint32_t fb[2] = {cuda::to_tf32(b[i * 8 + g]), cuda::to_tf32(b[(i + 4) * 8 + g])};
  float d[4] = {};
  if (F == Fault::kBrokenTail && lane == 31) return;
  cuda::matrix_multiply_tf32(d, fa, fb);
  for (int e = 0; e < 4; ++e) {
    const int row = F == Fault::kSwappedRegisters ? g + e % 2 * 8 : g + e / 2 * 8;
    const int column = F == Fault::kSwappedRegisters ? i * 2 + e / 2 : i * 2 + e % 2;
    c[row * 8 + column] = d[e];
  }
}

}  // namespace penstock::tests
