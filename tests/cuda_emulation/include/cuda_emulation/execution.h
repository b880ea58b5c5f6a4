// What a running kernel may ask of the stand-in: barriers, exchanges within a warp, asynchronous
// copies, clusters. The intrinsics of device_functions.h and the wrappers in src/cuda are made of
// these. Every misuse that has no defined result on a device is reported on stderr with its place,
// ends the launch, and is its error.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace cuda_emulation {

/// Where a kernel called something, for reports.
struct Place {
  const char* file;
  int line;
  static constexpr Place here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
  bool same_as(const Place& other) const {
    return line == other.line && (file == other.file || std::strcmp(file, other.file) == 0);
  }
};

// ---- the block ---------------------------------------------------------------------------------

/// Back when every thread of the block that has not returned waits at this place too.
void block_barrier(Place);

/// block_barrier that also tells for how many of its threads `predicate` holds.
int block_count(bool predicate, Place);

/// Barrier `id` (1 to 15) of `threads` threads, whole warps; with wait = false only count as one of
/// them and go on.
void named_barrier(unsigned id, unsigned threads, bool wait, Place);

/// The launch's dynamic shared memory: exactly as long as asked for, and full of 0xff (NaN) at a
/// block's beginning.
void* dynamic_shared_memory();

/// Let other threads run, for loops that wait for a value in memory.
void yield();

// ---- the warp ----------------------------------------------------------------------------------

/// What the threads of `mask` do together: the last one to come calls operation(lanes), where
/// lanes[i] is the `data` of lane i, null for lanes that are not in the mask or have returned.
/// `name` must be the same for all.
void warp_together(const char* name, unsigned mask, void* data, void (*operation)(void* const*),
                   Place);
unsigned lane();

/// For use in operations: end the launch with this report.
[[noreturn]] void fault(const char* format, ...) __attribute__((format(printf, 1, 2)));

// ---- the grid and the cluster ------------------------------------------------------------------

/// All threads of a cooperative launch. `word` is in global memory, zero before the launch's first
/// barrier.
void grid_barrier(unsigned* word, Place);

unsigned cluster_rank();
unsigned cluster_size();
void cluster_arrive(Place);
void cluster_wait(Place);
/// The same place as `own`, which lies in this block's shared memory, in that of block `rank`.
void* cluster_shared(void* own, unsigned rank, Place);

// ---- asynchronous copies -----------------------------------------------------------------------
// The destination is overwritten with 0xff at once, and gets its values when the copy is waited for
// (wait_copies, mbarrier_wait), never before. The source is read then too.

/// cp.async: `valid` of `bytes` (4, 8 or 16) bytes, the rest zero, into shared memory.
void async_copy(void* shared, const void* global, unsigned bytes, unsigned valid, Place);
void commit_copies();
/// Wait for the thread's committed groups but the newest `pending`.
void wait_copies(unsigned pending);

/// mbarrier objects are 8 bytes in shared memory; each phase ends after `count` arrivals, and when
/// all bytes it expects are there.
void mbarrier_init(std::uint64_t* barrier, unsigned count, Place);
void mbarrier_arrive(std::uint64_t* barrier, unsigned bytes, Place);
/// Arrive when this thread's copies so far are there, whether committed or not.
void mbarrier_arrive_after_copies(std::uint64_t* barrier, Place);
/// Wait until the phase of this parity (0 for the first) is over.
void mbarrier_wait(std::uint64_t* barrier, unsigned parity, Place);
/// A copy of a multiple of 16 bytes into shared memory, reported to `barrier` in bytes.
void bulk_copy(void* shared, const void* global, unsigned bytes, std::uint64_t* barrier, Place);

// ---- warp matrix products ----------------------------------------------------------------------
// With the fragment layouts of the PTX manual (mma.sync, ldmatrix). All 32 lanes take part.

enum class MatrixType { kFloat16, kBFloat16, kTf32 };

/// d (16, 8) += a (16, K) b (K, 8); K is 16, for kTf32 8.
void matrix_multiply(MatrixType, float* d, const std::uint32_t* a, const std::uint32_t* b, Place);

/// Load `count` (1, 2, 4) matrices of 8 rows of 16 bytes; lane 8 i + j holds the address of row j
/// of matrix i.
void load_matrices(std::uint32_t* registers, int count, bool transposed, const void* row, Place);

}  // namespace cuda_emulation
