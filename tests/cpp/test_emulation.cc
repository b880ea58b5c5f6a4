// The stand-in for the CUDA runtime: what it must do for the kernels' tests to mean anything.

#include <gtest/gtest.h>

#include <cuda_runtime.h>

#include <numeric>
#include <string>
#include <vector>

#include "emulation_device.h"

namespace penstock::tests {
namespace {

using cuda::launch;
using cuda::LaunchShape;

__global__ void count_kernel(int* hits, dim3 grid, dim3 block) {
  if (gridDim.x != grid.x || gridDim.y != grid.y || gridDim.z != grid.z) return;
  if (blockDim.x != block.x || blockDim.y != block.y || blockDim.z != block.z) return;
  const unsigned b = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned t = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  ++hits[b * blockDim.x * blockDim.y * blockDim.z + t];
}

TEST(Emulation, EveryThreadRunsOnce) {
  const dim3 grid(3, 2, 4), block(5, 3, 2);
  std::vector<int> hits(24 * 30, 0);
  launch(Context::cpu(), "count", count_kernel, shape_of(grid, block), hits.data(), grid, block);
  EXPECT_EQ(hits, std::vector<int>(24 * 30, 1));
}

__global__ void order_kernel(std::vector<unsigned>* order) {
  order->push_back(blockIdx.x * blockDim.x + threadIdx.x);
}

TEST(Emulation, OrderIsShuffledDifferentlyEachLaunch) {
  const char* seed = std::getenv("PENSTOCK_EMULATION_SEED");
  std::vector<unsigned> sorted(200), first, second;
  std::iota(sorted.begin(), sorted.end(), 0u);
  const LaunchShape shape = shape_of(dim3(10), dim3(20));
  launch(Context::cpu(), "order", order_kernel, shape, &first);
  launch(Context::cpu(), "order", order_kernel, shape, &second);
  if (seed != nullptr && std::string(seed) == "0") {
    EXPECT_EQ(first, sorted);
    EXPECT_EQ(second, sorted);
  } else {
    EXPECT_NE(first, sorted);
    EXPECT_NE(first, second);
  }
}

/// Sums a block's numbers by halves, twice over; `faulty` leaves a barrier out.
__global__ void sum_kernel(const int* in, int* out, bool faulty) {
  PENSTOCK_SHARED_MEMORY(int, part);
  const unsigned t = threadIdx.x;
  for (int round = 0; round < 2; ++round) {
    part[t] = in[blockIdx.x * blockDim.x + t];
    __syncthreads();
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
      if (t < half) part[t] += part[t + half];
      if (!faulty) __syncthreads();
    }
    if (t == 0) out[blockIdx.x * 2 + static_cast<unsigned>(round)] = part[0];
    __syncthreads();
  }
}

std::vector<int> block_sums(bool faulty, int blocks, int threads) {
  std::vector<int> in(static_cast<std::size_t>(blocks * threads)),
      out(static_cast<std::size_t>(blocks) * 2, -1);
  std::iota(in.begin(), in.end(), 1);
  launch(Context::cpu(), "sum", sum_kernel,
         shape_of(dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(threads)),
                  static_cast<std::size_t>(threads) * sizeof(int)),
         in.data(), out.data(), faulty);
  return out;
}

TEST(Emulation, BarriersMeet) {
  const auto sums = block_sums(false, 5, 256);
  for (int b = 0; b < 5; ++b) {
    const int first = b * 256 + 1, last = (b + 1) * 256;
    EXPECT_EQ(sums[static_cast<std::size_t>(b) * 2], (first + last) * 128);
    EXPECT_EQ(sums[static_cast<std::size_t>(b) * 2 + 1], (first + last) * 128);
  }
}

TEST(Emulation, AMissingBarrierShows) {
  EXPECT_NE(block_sums(true, 5, 256), block_sums(false, 5, 256));
}

__global__ void early_return_kernel(int* out) {
  if (threadIdx.x % 3 == 0) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}

TEST(Emulation, BarriersDoNotWaitForThreadsThatReturned) {
  std::vector<int> out(64, 0);
  launch(Context::cpu(), "early", early_return_kernel, shape_of(dim3(1), dim3(64)), out.data());
  EXPECT_EQ(std::accumulate(out.begin(), out.end(), 0), 42);
}

__global__ void split_kernel() {
  if (threadIdx.x < 16) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

TEST(Emulation, MeetingAtTwoBarriersIsAFault) {
  try {
    launch(Context::cpu(), "split", split_kernel, shape_of(dim3(2), dim3(32)));
    ADD_FAILURE() << "no error";
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "CUDA: split: unspecified launch failure (cudaErrorLaunchFailure)");
  }
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

__global__ void shared_kernel(bool* fresh) {
  PENSTOCK_SHARED_MEMORY(unsigned char, bytes);
  for (int i = 0; i < 64; ++i) *fresh = *fresh && bytes[i] == 0xff;
  bytes[threadIdx.x] = 0;
}

TEST(Emulation, SharedMemoryIsNotZeroAndNotKept) {
  bool fresh = true;
  launch(Context::cpu(), "shared", shared_kernel, shape_of(dim3(4), dim3(1), 64), &fresh);
  EXPECT_TRUE(fresh);
}

__global__ void nothing_kernel() {}

TEST(Emulation, LaunchLimitsGiveTheRuntimesErrors) {
  struct Case {
    LaunchShape shape;
    const char* name;
  };
  const Case cases[] = {
      {shape_of(dim3(1), dim3(1025)), "cudaErrorInvalidConfiguration"},
      {shape_of(dim3(1), dim3(64, 32)), "cudaErrorInvalidConfiguration"},
      {shape_of(dim3(1), dim3(1, 1, 65)), "cudaErrorInvalidConfiguration"},
      {shape_of(dim3(1), dim3(0)), "cudaErrorInvalidConfiguration"},
      {shape_of(dim3(0), dim3(1)), "cudaErrorInvalidConfiguration"},
      {shape_of(dim3(1, 65536), dim3(1)), "cudaErrorInvalidConfiguration"},
      {shape_of(dim3(1), dim3(1), 227 * 1024 + 1), "cudaErrorInvalidValue"},
  };
  for (const Case& c : cases) {
    try {
      launch(Context::cpu(), "nothing", nothing_kernel, c.shape);
      ADD_FAILURE() << c.name << ": no error";
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find(c.name), std::string::npos) << e.what();
    }
  }
  EXPECT_NO_THROW(
      launch(Context::cpu(), "nothing", nothing_kernel, shape_of(dim3(2), dim3(1024), 227 * 1024)));
}

TEST(Emulation, MoreItemsThanALaunchHoldsAreRefused) {
  EXPECT_THROW(cuda::one_thread_each(std::int64_t{1} << 40, 64), Error);
  const LaunchShape s = cuda::grid_stride(std::int64_t{1} << 40, 256);
  EXPECT_LE(s.grid.x, 1u << 16);
}

TEST(Emulation, OtherDevicesDoNotExist) {
  EXPECT_THROW(cuda::DeviceGuard(1), Error);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

}  // namespace
}  // namespace penstock::tests
