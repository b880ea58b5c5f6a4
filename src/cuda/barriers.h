// Barriers between parts of a block, the blocks of a cluster and those of a grid, and the shared
// memory of a cluster's other blocks. Each wrapper is its instruction on a device, and a call of
// the stand-in under tests/cuda_emulation. __syncthreads and __syncwarp need none.
#pragma once

#include <cuda_runtime.h>

namespace penstock::cuda {

/// Barrier `id` (1 to 15; 0 is __syncthreads) of `threads` threads: whole warps, a multiple of 32.
__device__ __forceinline__ void named_barrier_sync(unsigned id, unsigned threads) {
#if defined(__CUDACC__)
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
  cuda_emulation::named_barrier(id, threads, true, cuda_emulation::Place::here());
#endif
}

/// Count as one of the barrier's threads without waiting: what producers do.
__device__ __forceinline__ void named_barrier_arrive(unsigned id, unsigned threads) {
#if defined(__CUDACC__)
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
  cuda_emulation::named_barrier(id, threads, false, cuda_emulation::Place::here());
#endif
}

/// A barrier of all threads of a cooperative launch (LaunchShape::cooperative); what was written
/// before it is seen after it, past caches if read with __ldcg or plain loads, not with __ldg.
/// `word` is in global memory, one for each grid that runs at the time, and zero before the launch;
/// it is zero but for its top bit afterwards, so it serves any number of barriers and launches.
__device__ __forceinline__ void grid_barrier(unsigned* word) {
#if defined(__CUDACC__)
  __syncthreads();
  if (threadIdx.x == 0 && threadIdx.y == 0 && threadIdx.z == 0) {
    __threadfence();
    // Each block adds 1, and the first one what makes the sum of all 2^31: the top bit changes when
    // the last one comes, and the others are zero again.
    const unsigned blocks = gridDim.x * gridDim.y * gridDim.z;
    const bool first = blockIdx.x == 0 && blockIdx.y == 0 && blockIdx.z == 0;
    const unsigned before = atomicAdd(word, first ? 0x80000000u - (blocks - 1) : 1u);
    unsigned now;
    do {
      asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(now) : "l"(word) : "memory");
    } while (((now ^ before) & 0x80000000u) == 0);
    __threadfence();
  }
  __syncthreads();
#else
  cuda_emulation::grid_barrier(word, cuda_emulation::Place::here());
#endif
}

/// The first half of a grid_barrier: what was written before it is seen after its grid_wait, which
/// takes what this returned. All threads of the grid call both.
__device__ __forceinline__ unsigned grid_arrive(unsigned* word) {
#if defined(__CUDACC__)
  __syncthreads();
  unsigned before = 0;
  if (threadIdx.x == 0 && threadIdx.y == 0 && threadIdx.z == 0) {
    __threadfence();
    const unsigned blocks = gridDim.x * gridDim.y * gridDim.z;
    const bool first = blockIdx.x == 0 && blockIdx.y == 0 && blockIdx.z == 0;
    before = atomicAdd(word, first ? 0x80000000u - (blocks - 1) : 1u);
  }
  return before;
#else
  // All of it, so that what is written from here on is not there early.
  cuda_emulation::grid_barrier(word, cuda_emulation::Place::here());
  return 0;
#endif
}

/// The second half.
__device__ __forceinline__ void grid_wait(unsigned* word, unsigned before) {
#if defined(__CUDACC__)
  if (threadIdx.x == 0 && threadIdx.y == 0 && threadIdx.z == 0) {
    unsigned now;
    do {
      asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(now) : "l"(word) : "memory");
    } while (((now ^ before) & 0x80000000u) == 0);
    __threadfence();
  }
#else
  (void)word;
  (void)before;
#endif
  __syncthreads();
}

// ---- clusters ----------------------------------------------------------------------------------
// Below compute capability 9.0 there are none: there a block is a cluster of its own.

#if defined(__CUDACC__) && (!defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900)
#define PENSTOCK_CUDA_CLUSTERS
#endif

/// This block's number in its cluster.
__device__ __forceinline__ unsigned cluster_rank() {
#if defined(PENSTOCK_CUDA_CLUSTERS)
  unsigned rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#elif defined(__CUDACC__)
  return 0;
#else
  return cuda_emulation::cluster_rank();
#endif
}

/// Blocks of this cluster.
__device__ __forceinline__ unsigned cluster_size() {
#if defined(PENSTOCK_CUDA_CLUSTERS)
  unsigned size;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
#elif defined(__CUDACC__)
  return 1;
#else
  return cuda_emulation::cluster_size();
#endif
}

/// First half of a barrier of all threads of the cluster: what was written before it is seen by
/// every thread after its cluster_wait.
__device__ __forceinline__ void cluster_arrive() {
#if defined(PENSTOCK_CUDA_CLUSTERS)
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
#elif !defined(__CUDACC__)
  cuda_emulation::cluster_arrive(cuda_emulation::Place::here());
#endif
}

/// Second half: back when all threads have arrived. Below 9.0 this is __syncthreads.
__device__ __forceinline__ void cluster_wait() {
#if defined(PENSTOCK_CUDA_CLUSTERS)
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#elif defined(__CUDACC__)
  __syncthreads();
#else
  cuda_emulation::cluster_wait(cuda_emulation::Place::here());
#endif
}

/// Also the first thing that a kernel does that touches other blocks' shared memory, which must
/// have begun, and the last thing: a block must not end before the others are done with its memory.
__device__ __forceinline__ void cluster_barrier() {
  cluster_arrive();
  cluster_wait();
}

/// The place of `own`, which is in this block's shared memory, in that of block `rank`.
template <class T>
__device__ __forceinline__ T* cluster_shared(T* own, unsigned rank) {
#if defined(PENSTOCK_CUDA_CLUSTERS)
  T* other;
  asm volatile("mapa.u64 %0, %1, %2;" : "=l"(other) : "l"(own), "r"(rank));
  return other;
#elif defined(__CUDACC__)
  (void)rank;
  return own;
#else
  return static_cast<T*>(cuda_emulation::cluster_shared(own, rank, cuda_emulation::Place::here()));
#endif
}

}  // namespace penstock::cuda
