// Copies from global into shared memory that run while the threads go on.
//
// By thread: async_copy, commit_copies, wait_copies<N>; other threads see the data after the thread
// that copied has waited, and a barrier. By block: copy_block_async into a place that a CopyBarrier
// guards, one bulk copy where the device has them (compute capability 9.0), else each thread its
// share.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace penstock::cuda {

// Bulk copies, and waiting for an mbarrier without spinning.
#if !defined(__CUDACC__) || !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define PENSTOCK_CUDA_BULK_COPY
#endif

#if defined(__CUDACC__)
/// The address that instructions on shared memory take.
__device__ __forceinline__ unsigned shared_address(const void* shared) {
  return static_cast<unsigned>(__cvta_generic_to_shared(shared));
}
#endif

// ---- by thread ---------------------------------------------------------------------------------

/// Begin to copy 4, 8 or 16 bytes; both addresses are multiples of that. Of the source only `valid`
/// bytes are read, the others of the destination become zero.
template <int Bytes>
__device__ __forceinline__ void async_copy(void* shared, const void* global, int valid = Bytes) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16,
                "an asynchronous copy has 4, 8 or 16 bytes");
#if defined(__CUDACC__)
  const std::size_t from = __cvta_generic_to_global(global);
  if constexpr (Bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
                 "l"(from), "r"(valid)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)),
                 "l"(from), "n"(Bytes), "r"(valid)
                 : "memory");
  }
#else
  cuda_emulation::async_copy(shared, global, Bytes, static_cast<unsigned>(valid),
                             cuda_emulation::Place::here());
#endif
}

/// The thread's copies since the last commit become a group.
__device__ __forceinline__ void commit_copies() {
#if defined(__CUDACC__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  cuda_emulation::commit_copies();
#endif
}

/// Wait for the thread's groups, but for the newest `Pending`.
template <int Pending>
__device__ __forceinline__ void wait_copies() {
#if defined(__CUDACC__)
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
#else
  cuda_emulation::wait_copies(Pending);
#endif
}

/// Ask for what lies at a global address, to be in the second-level cache when it is read.
__device__ __forceinline__ void prefetch(const void* global) {
#if defined(__CUDACC__)
  asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(global)));
#else
  (void)global;
#endif
}

// ---- mbarriers ---------------------------------------------------------------------------------
// 8 bytes in shared memory. A phase is over after `count` arrivals, once the bytes that they
// announced are there; the next one then begins by itself.

/// By one thread; the others may use it after a barrier.
__device__ __forceinline__ void mbarrier_init(std::uint64_t* barrier, unsigned count) {
#if defined(__CUDACC__)
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count)
               : "memory");
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  // Bulk copies must see it initialised too.
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
#else
  cuda_emulation::mbarrier_init(barrier, count, cuda_emulation::Place::here());
#endif
}

__device__ __forceinline__ void mbarrier_arrive(std::uint64_t* barrier) {
#if defined(__CUDACC__)
  asm volatile(
      "{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(shared_address(barrier))
      : "memory");
#else
  cuda_emulation::mbarrier_arrive(barrier, 0, cuda_emulation::Place::here());
#endif
}

/// Arrive once this thread's copies so far are there; counts as one of the `count` arrivals.
__device__ __forceinline__ void mbarrier_arrive_after_copies(std::uint64_t* barrier) {
#if defined(__CUDACC__)
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(barrier))
               : "memory");
#else
  cuda_emulation::mbarrier_arrive_after_copies(barrier, cuda_emulation::Place::here());
#endif
}

/// Wait until the phase of this parity is over: 0 for the first one, then 1, 0, 1, …
__device__ __forceinline__ void mbarrier_wait(std::uint64_t* barrier, unsigned parity) {
#if defined(__CUDACC__)
  unsigned over;
  do {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile(
        "{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
        : "=r"(over)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
#else
    asm volatile(
        "{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
        : "=r"(over)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
#endif
  } while (over == 0);
#else
  cuda_emulation::mbarrier_wait(barrier, parity, cuda_emulation::Place::here());
#endif
}

#if defined(PENSTOCK_CUDA_BULK_COPY)
// Below 9.0 there is no such thing, and no such function.

/// Arrive, and announce that many bytes of bulk copies.
__device__ __forceinline__ void mbarrier_arrive_expecting(std::uint64_t* barrier, unsigned bytes) {
#if defined(__CUDACC__)
  asm volatile("{ .reg .b64 state; mbarrier.arrive.expect_tx.shared.b64 state, [%0], %1; }" ::"r"(
                   shared_address(barrier)),
               "r"(bytes)
               : "memory");
#else
  cuda_emulation::mbarrier_arrive(barrier, bytes, cuda_emulation::Place::here());
#endif
}

/// Begin to copy; addresses and `bytes` are multiples of 16. By one thread.
__device__ __forceinline__ void bulk_copy(void* shared, const void* global, unsigned bytes,
                                          std::uint64_t* barrier) {
#if defined(__CUDACC__)
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(shared)),
      "l"(__cvta_generic_to_global(global)), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
#else
  cuda_emulation::bulk_copy(shared, global, bytes, barrier, cuda_emulation::Place::here());
#endif
}
#endif

/// Put what threads did to shared memory before what bulk copies do to it from here on: each thread
/// that used a buffer calls it ahead of the barrier after which the buffer is filled again.
__device__ __forceinline__ void fence_before_bulk_copy() {
#if defined(__CUDACC__) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// ---- by block ----------------------------------------------------------------------------------

/// Guards one buffer in shared memory, which copy_block_async fills. All
/// threads of the block do the same in the same order: init, a barrier, then in turns copy, wait,
/// and once the data are used fence_before_bulk_copy and a barrier before the next copy.
struct CopyBarrier {
  std::uint64_t word;
};

/// 16 bytes a thread and turn.
struct ThreadWay {
  static __device__ __forceinline__ unsigned arrivals(unsigned threads) { return threads; }
  static __device__ __forceinline__ void copy(void* shared, const void* global, unsigned bytes,
                                              CopyBarrier* barrier, unsigned thread,
                                              unsigned threads) {
    for (unsigned at = thread * 16; at < bytes; at += threads * 16) {
      async_copy<16>(static_cast<char*>(shared) + at, static_cast<const char*>(global) + at);
    }
    mbarrier_arrive_after_copies(&barrier->word);
  }
};

/// One bulk copy, by thread 0; where the device has none, its sibling above. (One type for all
/// architectures, so that a kernel has one name.)
struct BulkWay {
#if defined(PENSTOCK_CUDA_BULK_COPY)
  static __device__ __forceinline__ unsigned arrivals(unsigned) { return 1; }
  static __device__ __forceinline__ void copy(void* shared, const void* global, unsigned bytes,
                                              CopyBarrier* barrier, unsigned thread, unsigned) {
    if (thread != 0) return;
    mbarrier_arrive_expecting(&barrier->word, bytes);
    bulk_copy(shared, global, bytes, &barrier->word);
  }
#else
  static __device__ __forceinline__ unsigned arrivals(unsigned threads) {
    return ThreadWay::arrivals(threads);
  }
  static __device__ __forceinline__ void copy(void* shared, const void* global, unsigned bytes,
                                              CopyBarrier* barrier, unsigned thread,
                                              unsigned threads) {
    ThreadWay::copy(shared, global, bytes, barrier, thread, threads);
  }
#endif
};

/// By thread 0 of `threads`; then a barrier.
template <class Way = BulkWay>
__device__ __forceinline__ void init_copy_barrier(CopyBarrier* barrier, unsigned threads) {
  mbarrier_init(&barrier->word, Way::arrivals(threads));
}

/// Begin to copy `bytes`, a multiple of 16 as both addresses are; all `threads` threads call it.
template <class Way = BulkWay>
__device__ __forceinline__ void copy_block_async(void* shared, const void* global, unsigned bytes,
                                                 CopyBarrier* barrier, unsigned thread,
                                                 unsigned threads) {
  Way::copy(shared, global, bytes, barrier, thread, threads);
}

/// Wait for copy number `turn` (0, 1, …) that this barrier guards.
__device__ __forceinline__ void wait_block_copy(CopyBarrier* barrier, unsigned turn) {
  mbarrier_wait(&barrier->word, turn & 1u);
}

}  // namespace penstock::cuda
