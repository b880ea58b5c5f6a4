// That the wrappers in src/cuda do what they say: sound kernels alone, and CUDA's API alone around
// them, so that this file says the same of a device (docs/emulation.md has the command).

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "emulation_trials.h"

namespace penstock::tests {
namespace {

#if defined(__CUDACC__)
bool has_clusters() {
  int major = 0;
  cuda::check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0),
              "cudaDeviceGetAttribute");
  return major >= 9;
}
#else
bool has_clusters() { return true; }
#endif

TEST(Wrappers, Barriers) {
  EXPECT_TRUE(block_sum<Fault::kNone>());
  EXPECT_TRUE(increment<Fault::kNone>());
  EXPECT_TRUE(warp_sum<Fault::kNone>());
  EXPECT_TRUE(warp_reverse<Fault::kNone>());
  EXPECT_TRUE(hand_over<Fault::kNone>());
  EXPECT_TRUE(neighbour<Fault::kNone>());
}

TEST(Wrappers, Clusters) {
  if (!has_clusters()) GTEST_SKIP() << "no clusters below compute capability 9.0";
  EXPECT_TRUE(cluster_neighbour<Fault::kNone>());
}

TEST(Wrappers, AsynchronousCopies) {
  EXPECT_TRUE(ring_sum<Fault::kNone>());
  EXPECT_TRUE((block_copy_sum<Fault::kNone, cuda::ThreadWay>()));
  EXPECT_TRUE((block_copy_sum<Fault::kNone, cuda::BulkWay>()));
  if (has_clusters()) {
    EXPECT_TRUE(bulk_copy<Fault::kNone>());
  }
}

TEST(Wrappers, MatrixProducts) {
  EXPECT_TRUE((product<__half, Fault::kNone>()));
  EXPECT_TRUE((product<__nv_bfloat16, Fault::kNone>()));
  EXPECT_TRUE(product_tf32<Fault::kNone>());
}

// ---- warps -------------------------------------------------------------------------------------

/// What every lane of a warp gets from each of the exchanges, 12 a lane.
__global__ void exchanges_kernel(int* out) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int* own = out + threadIdx.x * 12;
  const int v = 100 + lane;
  own[0] = __shfl_sync(0xffffffffu, v, 5);
  own[1] = __shfl_sync(0xffffffffu, v, lane + 1, 8);
  own[2] = __shfl_up_sync(0xffffffffu, v, 3);
  own[3] = __shfl_up_sync(0xffffffffu, v, 1, 4);
  own[4] = __shfl_down_sync(0xffffffffu, v, 3);
  own[5] = __shfl_down_sync(0xffffffffu, v, 2, 16);
  own[6] = __shfl_xor_sync(0xffffffffu, v, 31);
  own[7] = static_cast<int>(__shfl_xor_sync(0xffffffffu, 0.5 * v, 1) * 2.0);
  own[8] = static_cast<int>(__ballot_sync(0xffffffffu, lane % 3 == 0));
  own[9] = __any_sync(0xffffffffu, lane == 31) + 2 * __any_sync(0xffffffffu, lane == 32) +
           4 * __all_sync(0xffffffffu, lane < 32) + 8 * __all_sync(0xffffffffu, lane < 31);
  // Halves of the warp apart.
  const unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  if (lane < 16) {
    own[10] = __shfl_sync(half, v, 7);
  } else {
    __syncwarp(half);
    own[10] = __shfl_down_sync(half, v, 1);
  }
  own[11] = ((__activemask() >> lane) & 1u) != 0 ? 1 : 0;
}

TEST(Wrappers, WarpExchanges) {
  const DeviceArray<int> out(64 * 12);
  launch(Context::cpu(), "exchanges", exchanges_kernel, shape_of(dim3(1), dim3(64)), out.data());
  const auto v = out.values();
  int thirds = 0;
  for (int lane = 0; lane < 32; lane += 3) thirds |= static_cast<int>(1u << lane);
  for (int t = 0; t < 64; ++t) {
    const int lane = t % 32;
    const int expected[12] = {
        105,
        100 + lane / 8 * 8 + (lane + 1) % 8,
        100 + (lane >= 3 ? lane - 3 : lane),
        100 + (lane % 4 >= 1 ? lane - 1 : lane),
        100 + (lane + 3 < 32 ? lane + 3 : lane),
        100 + (lane % 16 + 2 < 16 ? lane + 2 : lane),
        100 + (31 - lane),
        100 + (lane ^ 1),
        thirds,
        1 + 4,
        lane < 16 ? 107 : 100 + (lane < 31 ? lane + 1 : lane),
        1,
    };
    for (int i = 0; i < 12; ++i) {
      EXPECT_EQ(v[static_cast<std::size_t>(t * 12 + i)], expected[i])
          << "lane " << lane << ", " << i;
    }
  }
}

__global__ void count_kernel(int n, int* out) {
  const int i = static_cast<int>(threadIdx.x);
  const int below = __syncthreads_count(i < n);
  const int any = __syncthreads_or(i == n), all = __syncthreads_and(i < n);
  if (i == 0) {
    out[0] = below;
    out[1] = any != 0 ? 1 : 0;
    out[2] = all != 0 ? 1 : 0;
  }
}

TEST(Wrappers, BarriersThatCount) {
  const DeviceArray<int> out(3);
  for (const int n : {0, 17, 96}) {
    launch(Context::cpu(), "count", count_kernel, shape_of(dim3(1), dim3(96)), n, out.data());
    EXPECT_EQ(out.values(), (std::vector<int>{n, n < 96 ? 1 : 0, n == 96 ? 1 : 0}));
  }
}

// ---- asynchronous copies -----------------------------------------------------------------------

/// Copies of each size, of `valid` bytes, from in to out by way of shared memory.
template <int Bytes>
__global__ void partial_copy_kernel(const unsigned char* in, int valid, unsigned char* out) {
  PENSTOCK_SHARED_MEMORY(unsigned char, buffer);
  const unsigned at = threadIdx.x * Bytes;
  cuda::async_copy<Bytes>(buffer + at, in + at, valid);
  cuda::commit_copies();
  cuda::wait_copies<0>();
  for (unsigned i = 0; i < Bytes; ++i) out[at + i] = buffer[at + i];
}

template <int Bytes>
void check_partial_copies() {
  std::vector<unsigned char> in(32 * Bytes);
  for (std::size_t i = 0; i < in.size(); ++i) in[i] = static_cast<unsigned char>(i % 251 + 1);
  const DeviceArray<unsigned char> device_in(in), out(in.size());
  for (int valid = 0; valid <= Bytes; ++valid) {
    launch(Context::cpu(), "partial_copy", partial_copy_kernel<Bytes>,
           shape_of(dim3(1), dim3(32), in.size()), device_in.data(), valid, out.data());
    auto expected = in;
    for (std::size_t i = 0; i < in.size(); ++i) {
      if (i % Bytes >= static_cast<std::size_t>(valid)) expected[i] = 0;
    }
    EXPECT_EQ(out.values(), expected) << Bytes << " bytes, " << valid << " valid";
  }
}

TEST(Wrappers, CopiesOfEverySizeFillUpWithZero) {
  check_partial_copies<4>();
  check_partial_copies<8>();
  check_partial_copies<16>();
}

// ---- fragments ---------------------------------------------------------------------------------

/// out[m·64 + row·8 + column] of Count matrices in shared memory, by way of ldmatrix's registers.
template <int Count, bool Transposed>
__global__ void load_kernel(std::uint16_t* out) {
  PENSTOCK_SHARED_MEMORY(std::uint16_t, matrices);
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < Count * 64; i += 32) matrices[i] = static_cast<std::uint16_t>(i);
  __syncwarp();
  std::uint32_t r[Count];
  cuda::load_matrices<Count, Transposed>(r, matrices + lane % (Count * 8) * 8);
  for (int m = 0; m < Count; ++m) {
    std::uint16_t* at = out + m * 64 + lane / 4 * 8 + lane % 4 * 2;
    at[0] = static_cast<std::uint16_t>(r[m]);
    at[1] = static_cast<std::uint16_t>(r[m] >> 16);
  }
}

template <int Count, bool Transposed>
void check_load() {
  const DeviceArray<std::uint16_t> out(Count * 64);
  launch(Context::cpu(), "load", load_kernel<Count, Transposed>,
         shape_of(dim3(1), dim3(32), Count * 64 * sizeof(std::uint16_t)), out.data());
  const auto values = out.values();
  for (int m = 0; m < Count; ++m) {
    for (int row = 0; row < 8; ++row) {
      for (int column = 0; column < 8; ++column) {
        const int expected = m * 64 + (Transposed ? column * 8 + row : row * 8 + column);
        EXPECT_EQ(values[static_cast<std::size_t>(m * 64 + row * 8 + column)], expected);
      }
    }
  }
}

TEST(Wrappers, LoadsMatrices) {
  check_load<1, false>();
  check_load<2, false>();
  check_load<4, false>();
  check_load<1, true>();
  check_load<2, true>();
  check_load<4, true>();
}

__global__ void tf32_kernel(const float* in, int n, float* out) {
  const int i = static_cast<int>(threadIdx.x);
  if (i < n) out[i] = __uint_as_float(cuda::to_tf32(in[i]));
}

TEST(Wrappers, RoundsToTf32) {
  const float in[] = {
      1.0f, 1.0f + 0x1p-10f, 1.0f + 0x1p-11f, 1.0f + 0x1.8p-11f, -1.0f - 0x1p-11f, 1.0f + 0x1p-12f,
      0.0f, INFINITY};
  const float expected[] = {
      1.0f, 1.0f + 0x1p-10f, 1.0f + 0x1p-10f, 1.0f + 0x1p-10f, -1.0f - 0x1p-10f, 1.0f,
      0.0f, INFINITY};
  const DeviceArray<float> device_in(std::vector<float>(in, in + 8)), out(8);
  launch(Context::cpu(), "tf32", tf32_kernel, shape_of(dim3(1), dim3(32)), device_in.data(), 8,
         out.data());
  EXPECT_EQ(out.values(), std::vector<float>(expected, expected + 8));
}

// ---- launches ----------------------------------------------------------------------------------

__global__ void large_shared_kernel(int n, float* out) {
  PENSTOCK_SHARED_MEMORY(float, values);
  for (int i = static_cast<int>(threadIdx.x); i < n; i += static_cast<int>(blockDim.x)) {
    values[i] = static_cast<float>(i);
  }
  __syncthreads();
  if (threadIdx.x == 0) *out = values[n - 1];
}

TEST(Wrappers, LaunchesWithMoreSharedMemory) {
  int most = 0;
  cuda::check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0),
              "cudaDeviceGetAttribute");
  const DeviceArray<float> out(1);
  const int n = most / 4;
  launch(Context::cpu(), "large_shared", large_shared_kernel,
         shape_of(dim3(1), dim3(256), static_cast<std::size_t>(n) * 4), n, out.data());
  EXPECT_EQ(out.values()[0], static_cast<float>(n - 1));
  EXPECT_THROW(
      launch(Context::cpu(), "large_shared", large_shared_kernel,
             shape_of(dim3(1), dim3(256), static_cast<std::size_t>(most) + 1), n, out.data()),
      Error);
}

TEST(Wrappers, CooperativeLaunchesFitTheDevice) {
  const int most =
      cuda::resident_blocks("neighbour", neighbour_kernel<Fault::kNone>, 256, 100 * 1024);
  int multiprocessors = 0;
  cuda::check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0),
              "cudaDeviceGetAttribute");
  EXPECT_GE(most, multiprocessors);
  const auto run = [&](int blocks) {
    const auto n = static_cast<std::size_t>(blocks);
    const DeviceArray<float> in(counting(n)), part(n), out(n);
    const DeviceArray<unsigned> word(std::vector<unsigned>{0u});
    LaunchShape shape = shape_of(dim3(static_cast<unsigned>(blocks)), dim3(256), 100 * 1024);
    shape.cooperative = true;
    launch(Context::cpu(), "neighbour", neighbour_kernel<Fault::kNone>, shape, in.data(),
           part.data(), out.data(), word.data());
    EXPECT_EQ(out.values()[0], 6.0f);
    EXPECT_EQ(word.values()[0] & 0x7fffffffu, 0u);
  };
  run(most);
  try {
    run(most + 1);
    ADD_FAILURE() << "no error";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("cudaErrorCooperativeLaunchTooLarge"), std::string::npos)
        << e.what();
  }
}

}  // namespace
}  // namespace penstock::tests
