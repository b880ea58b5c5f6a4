// What the stand-in's runtime refuses, records and reports.

#include <gtest/gtest.h>

#include <cuda_emulation/control.h>
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "cuda/barriers.h"
#include "emulation_device.h"

namespace penstock::tests {
namespace {

using cuda::launch;
using cuda::LaunchShape;

cudaError_t launch_raw(void (*kernel)(float*), float* argument, cudaStream_t stream,
                       dim3 cluster = dim3(), std::size_t shared = 0, dim3 grid = dim3(4)) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = cluster.x;
  attribute.val.clusterDim.y = cluster.y;
  attribute.val.clusterDim.z = cluster.z;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(32);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  cudaGetLastError();
  const cudaError_t status = cudaLaunchKernelEx(&config, kernel, argument);
  EXPECT_EQ(cudaGetLastError(), status);
  return status;
}

/// Counts its blocks.
__global__ void add_one_kernel(float* value) {
  if (threadIdx.x == 0) atomicAdd(value, 1.0f);
}
/// Another function, whose attributes nobody else sets.
__global__ void other_kernel(float* value) { *value = 2.0f; }

// ---- functions and launches --------------------------------------------------------------------

TEST(EmulatedRuntime, MoreSharedMemoryMustBeAskedFor) {
  const DeviceArray<float> value(std::vector<float>{0.0f});
  const auto with = [&](std::size_t shared) {
    return launch_raw(other_kernel, value.data(), nullptr, dim3(), shared);
  };
  EXPECT_EQ(with(48 * 1024), cudaSuccess);
  EXPECT_EQ(with(48 * 1024 + 1), cudaErrorInvalidValue);
  const auto set = [&](int bytes) {
    return cudaFuncSetAttribute(other_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  };
  EXPECT_EQ(set(100 * 1024), cudaSuccess);
  EXPECT_EQ(with(100 * 1024), cudaSuccess);
  EXPECT_EQ(with(100 * 1024 + 1), cudaErrorInvalidValue);
  EXPECT_EQ(set(227 * 1024 + 1), cudaErrorInvalidValue);
  EXPECT_EQ(set(227 * 1024), cudaSuccess);
  EXPECT_EQ(with(227 * 1024), cudaSuccess);
  cudaFuncAttributes attributes;
  EXPECT_EQ(cudaFuncGetAttributes(&attributes, other_kernel), cudaSuccess);
  EXPECT_EQ(attributes.maxDynamicSharedSizeBytes, 227 * 1024);
  cudaGetLastError();
}

TEST(EmulatedRuntime, AnotherThreadsSmallerLaunchTakesNoSharedMemoryAway) {
  const DeviceArray<float> value(std::vector<float>{0.0f});
  cuda::allow_shared_bytes("other", other_kernel, 200 * 1024);
  cuda::allow_shared_bytes("other", other_kernel, 64 * 1024);  // by a thread that comes between
  EXPECT_EQ(launch_raw(other_kernel, value.data(), nullptr, dim3(), 200 * 1024), cudaSuccess);
}

TEST(EmulatedRuntime, ClusterSizes) {
  const DeviceArray<float> value(std::vector<float>{0.0f});
  const auto with = [&](dim3 cluster, dim3 grid) {
    return launch_raw(add_one_kernel, value.data(), nullptr, cluster, 0, grid);
  };
  EXPECT_EQ(with(dim3(8), dim3(16)), cudaSuccess);
  EXPECT_EQ(value.values()[0], 16.0f);
  EXPECT_EQ(with(dim3(2, 2, 2), dim3(4, 4, 2)), cudaSuccess);
  EXPECT_EQ(value.values()[0], 48.0f);
  EXPECT_EQ(with(dim3(3), dim3(16)), cudaErrorInvalidClusterSize);
  EXPECT_EQ(with(dim3(16), dim3(16)), cudaErrorInvalidClusterSize);
  EXPECT_EQ(cudaFuncSetAttribute(add_one_kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
            cudaSuccess);
  EXPECT_EQ(with(dim3(16), dim3(16)), cudaSuccess);
  EXPECT_EQ(with(dim3(32), dim3(32)), cudaErrorInvalidClusterSize);
  EXPECT_EQ(cudaFuncSetAttribute(add_one_kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 0),
            cudaSuccess);
}

TEST(EmulatedRuntime, Occupancy) {
  int blocks = 0;
  const auto of = [&](int threads, std::size_t shared) {
    EXPECT_EQ(
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, add_one_kernel, threads, shared),
        cudaSuccess);
    return blocks;
  };
  EXPECT_EQ(of(1024, 0), 2);
  EXPECT_EQ(of(32, 0), 32);
  EXPECT_EQ(of(33, 0), 32);
  EXPECT_EQ(of(128, 40 * 1024), 5);
  EXPECT_EQ(of(128, 100 * 1024), 0) << "not asked for";
  EXPECT_EQ(of(2048, 0), 0);
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {4, 1, 1};
  cudaLaunchConfig_t config = {};
  config.blockDim = dim3(1024);
  config.attrs = &attribute;
  config.numAttrs = 1;
  int clusters = 0;
  EXPECT_EQ(cudaOccupancyMaxActiveClusters(&clusters, add_one_kernel, &config), cudaSuccess);
  EXPECT_EQ(clusters, 4);
}

__global__ void sum_arguments_kernel(int a, const float* b, double* out, unsigned* word) {
  cuda::grid_barrier(word);
  if (blockIdx.x == 0 && threadIdx.x == 0) *out = a + static_cast<double>(*b);
}

TEST(EmulatedRuntime, CooperativeLaunchTakesPointersToArguments) {
  const DeviceArray<float> b(std::vector<float>{0.5f});
  const DeviceArray<double> out(1);
  const DeviceArray<unsigned> word(std::vector<unsigned>{0});
  int a = 3;
  const float* pb = b.data();
  double* po = out.data();
  unsigned* pw = word.data();
  void* arguments[] = {&a, &pb, &po, &pw};
  EXPECT_EQ(cudaLaunchCooperativeKernel(sum_arguments_kernel, dim3(4), dim3(32), arguments),
            cudaSuccess);
  EXPECT_EQ(out.values()[0], 3.5);
}

__global__ void grid_barrier_kernel(unsigned* word) { cuda::grid_barrier(word); }
__global__ void stuck_kernel() {
  if (threadIdx.x < 32) cuda::named_barrier_sync(1, 64);
}
__global__ void throwing_kernel() {
  if (threadIdx.x == 5) throw std::runtime_error("of a test's own");
  __syncthreads();
}

TEST(EmulatedRuntime, ReportsWhatWouldHang) {
  const auto report = [](auto&& run) {
    ::testing::internal::CaptureStderr();
    std::string words;
    try {
      run();
    } catch (const Error& e) {
      words = e.what();
    }
    return words + "\n" + ::testing::internal::GetCapturedStderr();
  };
  const DeviceArray<unsigned> word(std::vector<unsigned>{0});
  std::string words = report([&] {
    launch(Context::cpu(), "grid", grid_barrier_kernel, shape_of(dim3(2), dim3(32)), word.data());
  });
  EXPECT_NE(words.find("not cooperative"), std::string::npos) << words;
  words =
      report([] { launch(Context::cpu(), "stuck", stuck_kernel, shape_of(dim3(2), dim3(64))); });
  EXPECT_NE(words.find("cudaErrorLaunchTimeout"), std::string::npos) << words;
  EXPECT_NE(words.find("for a named barrier at "), std::string::npos) << words;
  // What came before leaves nothing behind.
  const DeviceArray<float> value(std::vector<float>{0.0f});
  EXPECT_EQ(launch_raw(add_one_kernel, value.data(), nullptr), cudaSuccess);
  EXPECT_EQ(value.values()[0], 4.0f);
}

TEST(EmulatedRuntime, ExceptionsOfAKernelReachTheCaller) {
  EXPECT_THROW(launch(Context::cpu(), "throwing", throwing_kernel, shape_of(dim3(2), dim3(64))),
               std::runtime_error);
  const DeviceArray<float> value(std::vector<float>{0.0f});
  EXPECT_EQ(launch_raw(add_one_kernel, value.data(), nullptr), cudaSuccess);
}

__global__ void wait_for_flag_kernel(volatile int* flag) {
  if (threadIdx.x == 0) {
    while (*flag == 0) __nanosleep(100);
  } else if (threadIdx.x == blockDim.x - 1) {
    *flag = 1;
  }
}

TEST(EmulatedRuntime, ALoopThatSleepsLetsOthersRun) {
  const std::uint64_t before = cuda_emulation::seed();
  for (std::uint64_t seed = 0; seed < 8; ++seed) {
    cuda_emulation::set_seed(seed);
    const DeviceArray<int> flag(std::vector<int>{0});
    launch(Context::cpu(), "wait", wait_for_flag_kernel, shape_of(dim3(1), dim3(64)), flag.data());
    EXPECT_EQ(flag.values()[0], 1);
  }
  cuda_emulation::set_seed(before);
}

TEST(EmulatedRuntime, MemoryIsPoisoned) {
  const DeviceArray<unsigned> fresh(5);
  EXPECT_EQ(fresh.values(), std::vector<unsigned>(5, 0xffffffffu));
  float* nothing = nullptr;
  EXPECT_EQ(cudaMalloc(&nothing, 0), cudaSuccess);
  EXPECT_EQ(nothing, nullptr);
  EXPECT_EQ(cudaFree(nullptr), cudaSuccess);
  float local = 0.0f;
  EXPECT_EQ(cudaFree(&local), cudaErrorInvalidValue);
  cudaGetLastError();
}

// ---- streams and graphs ------------------------------------------------------------------------

class EmulatedGraphs : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), cudaSuccess);
  }
  void TearDown() override {
    cudaStreamDestroy(stream_);
    cudaGetLastError();
  }

  /// `work` as a graph.
  template <class F>
  cudaGraph_t captured(F&& work) {
    cudaGraph_t graph = nullptr;
    EXPECT_EQ(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    work();
    EXPECT_EQ(cudaStreamEndCapture(stream_, &graph), cudaSuccess);
    return graph;
  }

  cudaStream_t stream_ = nullptr;
};

TEST_F(EmulatedGraphs, RecordAndReplay) {
  const DeviceArray<float> value(std::vector<float>{7.0f}), copy(1);
  cudaGraph_t graph = captured([&] {
    EXPECT_EQ(cudaMemsetAsync(value.data(), 0, sizeof(float), stream_), cudaSuccess);
    EXPECT_EQ(launch_raw(add_one_kernel, value.data(), stream_), cudaSuccess);
    EXPECT_EQ(cudaMemcpyAsync(copy.data(), value.data(), sizeof(float), cudaMemcpyDeviceToDevice,
                              stream_),
              cudaSuccess);
    cudaStreamCaptureStatus status;
    EXPECT_EQ(cudaStreamIsCapturing(stream_, &status), cudaSuccess);
    EXPECT_EQ(status, cudaStreamCaptureStatusActive);
  });
  EXPECT_EQ(value.values()[0], 7.0f) << "nothing runs while it is captured";
  std::size_t nodes = 0;
  EXPECT_EQ(cudaGraphGetNodes(graph, nullptr, &nodes), cudaSuccess);
  EXPECT_EQ(nodes, 3u);
  cudaGraphExec_t exec = nullptr;
  EXPECT_EQ(cudaGraphInstantiate(&exec, graph), cudaSuccess);
  EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(cudaGraphLaunch(exec, stream_), cudaSuccess);
    EXPECT_EQ(value.values()[0], 4.0f);
    EXPECT_EQ(copy.values()[0], 4.0f);
  }
  // Within another graph.
  const DeviceArray<float> outer(std::vector<float>{0.0f});
  graph = captured([&] {
    EXPECT_EQ(cudaGraphLaunch(exec, stream_), cudaSuccess);
    EXPECT_EQ(launch_raw(add_one_kernel, outer.data(), stream_), cudaSuccess);
  });
  EXPECT_EQ(cudaGraphExecDestroy(exec), cudaSuccess);
  EXPECT_EQ(cudaGraphInstantiate(&exec, graph), cudaSuccess);
  EXPECT_EQ(cudaMemset(value.data(), 0, sizeof(float)), cudaSuccess);
  EXPECT_EQ(cudaGraphLaunch(exec, stream_), cudaSuccess);
  EXPECT_EQ(value.values()[0], 4.0f);
  EXPECT_EQ(outer.values()[0], 4.0f);
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
}

TEST_F(EmulatedGraphs, Update) {
  const DeviceArray<float> first(std::vector<float>{0.0f}), second(std::vector<float>{0.0f});
  const auto one_launch = [&](const DeviceArray<float>& value, dim3 grid) {
    return captured([&] { launch_raw(add_one_kernel, value.data(), stream_, dim3(), 0, grid); });
  };
  cudaGraph_t graph = one_launch(first, dim3(4));
  cudaGraph_t changed = one_launch(second, dim3(5));
  cudaGraph_t longer = captured([&] {
    launch_raw(add_one_kernel, first.data(), stream_);
    launch_raw(add_one_kernel, first.data(), stream_);
  });
  cudaGraph_t other = captured([&] { cudaMemsetAsync(first.data(), 0, 4, stream_); });
  cudaGraphExec_t exec = nullptr;
  EXPECT_EQ(cudaGraphInstantiate(&exec, graph), cudaSuccess);
  cudaGraphExecUpdateResultInfo info;
  EXPECT_EQ(cudaGraphExecUpdate(exec, longer, &info), cudaErrorGraphExecUpdateFailure);
  EXPECT_EQ(info.result, cudaGraphExecUpdateErrorTopologyChanged);
  EXPECT_EQ(cudaGraphExecUpdate(exec, other, &info), cudaErrorGraphExecUpdateFailure);
  EXPECT_EQ(info.result, cudaGraphExecUpdateErrorNodeTypeChanged);
  EXPECT_EQ(cudaGraphExecUpdate(exec, changed, &info), cudaSuccess);
  EXPECT_EQ(cudaGraphLaunch(exec, stream_), cudaSuccess);
  EXPECT_EQ(first.values()[0], 0.0f);
  EXPECT_EQ(second.values()[0], 5.0f);
  cudaGraphExecDestroy(exec);
  for (const cudaGraph_t g : {graph, changed, longer, other}) cudaGraphDestroy(g);
}

TEST_F(EmulatedGraphs, CaptureForbidsWhatItCannotRecord) {
  const DeviceArray<float> value(std::vector<float>{0.0f});
  const auto broken_by = [&](cudaStreamCaptureMode mode, auto&& call, cudaError_t expected) {
    cudaGraph_t graph = nullptr;
    EXPECT_EQ(cudaStreamBeginCapture(stream_, mode), cudaSuccess);
    EXPECT_EQ(call(), expected);
    if (expected == cudaSuccess) {
      EXPECT_EQ(cudaStreamEndCapture(stream_, &graph), cudaSuccess);
      cudaGraphDestroy(graph);
      return;
    }
    EXPECT_EQ(launch_raw(add_one_kernel, value.data(), stream_), cudaErrorStreamCaptureInvalidated);
    EXPECT_EQ(cudaStreamEndCapture(stream_, &graph), cudaErrorStreamCaptureInvalidated);
    EXPECT_EQ(graph, nullptr);
  };
  const auto allocate = [] {
    void* p = nullptr;
    const cudaError_t status = cudaMalloc(&p, 4);
    if (p != nullptr) cudaFree(p);
    return status;
  };
  const auto allocate_elsewhere = [&] {
    cudaError_t status = cudaSuccess;
    std::thread([&] { status = allocate(); }).join();
    return status;
  };
  broken_by(cudaStreamCaptureModeGlobal, allocate, cudaErrorStreamCaptureUnsupported);
  broken_by(cudaStreamCaptureModeThreadLocal, allocate, cudaErrorStreamCaptureUnsupported);
  broken_by(cudaStreamCaptureModeRelaxed, allocate, cudaSuccess);
  broken_by(cudaStreamCaptureModeGlobal, allocate_elsewhere, cudaErrorStreamCaptureUnsupported);
  broken_by(cudaStreamCaptureModeThreadLocal, allocate_elsewhere, cudaSuccess);
  broken_by(
      cudaStreamCaptureModeRelaxed, [&] { return cudaStreamSynchronize(stream_); },
      cudaErrorStreamCaptureUnsupported);
  broken_by(
      cudaStreamCaptureModeRelaxed, [] { return cudaDeviceSynchronize(); },
      cudaErrorStreamCaptureUnsupported);
  broken_by(
      cudaStreamCaptureModeThreadLocal,
      [&] { return cudaMemcpy(value.data(), value.data(), 4, cudaMemcpyDefault); },
      cudaErrorStreamCaptureUnsupported);
  // The legacy stream has nothing to do with a stream that does not wait for it.
  broken_by(
      cudaStreamCaptureModeGlobal,
      [&] { return launch_raw(add_one_kernel, value.data(), nullptr); }, cudaSuccess);
  EXPECT_EQ(cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeGlobal),
            cudaErrorStreamCaptureUnsupported);
  cudaGraph_t graph = nullptr;
  EXPECT_EQ(cudaStreamEndCapture(stream_, &graph), cudaErrorIllegalState);
}

TEST_F(EmulatedGraphs, TheLegacyStreamWouldWaitForABlockingOne) {
  const DeviceArray<float> value(std::vector<float>{0.0f});
  cudaStream_t blocking = nullptr;
  ASSERT_EQ(cudaStreamCreate(&blocking), cudaSuccess);
  ASSERT_EQ(cudaStreamBeginCapture(blocking, cudaStreamCaptureModeGlobal), cudaSuccess);
  EXPECT_EQ(launch_raw(add_one_kernel, value.data(), nullptr), cudaErrorStreamCaptureImplicit);
  cudaGraph_t graph = nullptr;
  EXPECT_EQ(cudaStreamEndCapture(blocking, &graph), cudaErrorStreamCaptureInvalidated);
  cudaStreamDestroy(blocking);
}

}  // namespace
}  // namespace penstock::tests
