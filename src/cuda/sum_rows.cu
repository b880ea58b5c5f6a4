#include "cuda/sum_rows.h"

#include "cuda/launch.h"
#include "cuda/numeric.h"

namespace penstock::cuda {
namespace {

constexpr int kThreads = 512;
// Columns of a block: one 32-byte sector of a row, so that even a narrow matrix gives many blocks.
template <class T>
constexpr int kColumns = 32 / static_cast<int>(sizeof(T));

// totals[j] = (accumulate ? totals[j] : 0) + sum over i of a[i * lda + j].
// Work split: a block per kColumns columns; thread row ty takes rows ty, ty + blockDim.y, …, in
// double, and a tree over the thread rows adds these, so the order depends on the shape alone.
// Traffic: each element once, a whole sector per row and block. Limits: 64-bit offsets; blockDim.y
// is a power of two. Invariant: totals and a do not overlap. Launch: (kColumns, kThreads /
// kColumns) threads, kThreads doubles of shared memory.
template <class T>
__global__ void __launch_bounds__(kThreads)
    sum_rows_kernel(const T* a, std::int64_t rows, std::int64_t columns, std::int64_t lda,
                    double* totals, bool accumulate) {
  PENSTOCK_SHARED_MEMORY(double, sums);
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  double sum = 0.0;
  if (column < columns) {
#pragma unroll 4
    for (std::int64_t i = threadIdx.y; i < rows; i += blockDim.y) {
      sum += static_cast<double>(widen(__ldg(a + i * lda + column)));
    }
  }
  const unsigned lane = threadIdx.y * blockDim.x + threadIdx.x;
  sums[lane] = sum;
  for (unsigned half = blockDim.y / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.y < half) sums[lane] += sums[lane + half * blockDim.x];
  }
  if (threadIdx.y != 0 || column >= columns) return;
  totals[column] = (accumulate ? totals[column] : 0.0) + sums[lane];
}

}  // namespace

void sum_rows(const Context& ctx, const void* a, DataType dtype, std::int64_t rows,
              std::int64_t columns, std::int64_t lda, double* totals, bool accumulate) {
  if (columns == 0 || (rows == 0 && accumulate)) return;
  const DeviceGuard guard(ctx);
  with_type(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    LaunchShape shape = one_thread_each(columns, kColumns<T>);
    shape.block = dim3(kColumns<T>, kThreads / kColumns<T>);
    shape.shared_bytes = kThreads * sizeof(double);
    launch(ctx, "sum_rows", sum_rows_kernel<T>, shape, static_cast<const T*>(a), rows, columns, lda,
           totals, accumulate);
  });
}

}  // namespace penstock::cuda
