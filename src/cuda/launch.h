// What every file of the CUDA backend goes through to reach the runtime: error checks, the current
// device, kernel launches, dynamic shared memory. Kernel text stays plain CUDA; the emulated
// runtime of the tests (tests/cuda_emulation) compiles the same files. What a kernel needs beyond
// CUDA C++ has wrappers in barriers.h, async_copy.h and matrix.h.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <string>

#include "penstock/context.h"
#include "penstock/error.h"

namespace penstock::cuda {

/// Throw Error(kRuntime) with the runtime's words unless the call succeeded.
inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  // Take the error off the runtime, so that the next call does not report it as its own.
  cudaGetLastError();
  throw Error(ErrorCode::kRuntime, std::string("CUDA: ") + what + ": " +
                                       cudaGetErrorString(status) + " (" +
                                       cudaGetErrorName(status) + ")");
}

/// Makes a device current, and the caller's device again at the end of the scope.
class DeviceGuard {
 public:
  explicit DeviceGuard(int index) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    changed_ = before_ != index;
    if (changed_) check(cudaSetDevice(index), "cudaSetDevice");
  }
  explicit DeviceGuard(const Context& ctx) : DeviceGuard(ctx.device().index) {}
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

inline cudaStream_t stream_of(const Context& ctx) {
  return static_cast<cudaStream_t>(ctx.stream());
}

struct LaunchShape {
  dim3 grid;
  dim3 block;
  std::size_t shared_bytes = 0;  // dynamic
  dim3 cluster;                  // blocks that run together; compute capability 9.0, not below
  bool cooperative = false;      // for grid_barrier: all blocks are resident, or it is an error
};

/// One thread per item; n >= 1.
inline LaunchShape one_thread_each(std::int64_t n, int threads) {
  const std::int64_t blocks = (n + threads - 1) / threads;
  if (blocks > 0x7fffffff) {
    throw Error(ErrorCode::kRuntime,
                "CUDA: " + std::to_string(n) + " items are more than one launch can hold");
  }
  LaunchShape s;
  s.grid = dim3(static_cast<unsigned>(blocks));
  s.block = dim3(static_cast<unsigned>(threads));
  return s;
}

/// For kernels whose threads stride over the grid: enough blocks for n items, but no more than
/// keep any device busy.
inline LaunchShape grid_stride(std::int64_t n, int threads) {
  constexpr std::int64_t kMaxBlocks = 1 << 16;
  return one_thread_each(std::min(n, kMaxBlocks * threads), threads);
}

/// More dynamic shared memory than this must be asked for, kernel by kernel.
constexpr std::size_t kSharedBytesOfEveryKernel = 48 * 1024;

/// Asks for all that a block can have, not for what one launch needs: it is a property of the
/// kernel on its device, and another thread may be about to launch the same kernel with more.
template <class... Parameters>
void allow_shared_bytes(const char* name, void (*kernel)(Parameters...), std::size_t bytes) {
  if (bytes <= kSharedBytesOfEveryKernel) return;
  int device = 0, most = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
        "cudaDeviceGetAttribute");
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most), name);
}

/// Blocks of a kernel that the current device runs at the same time: the most that a cooperative
/// launch of it can have.
template <class... Parameters>
int resident_blocks(const char* name, void (*kernel)(Parameters...), int threads,
                    std::size_t shared_bytes) {
  allow_shared_bytes(name, kernel, shared_bytes);
  int device = 0, multiprocessors = 0, blocks = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device),
        "cudaDeviceGetAttribute");
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared_bytes),
        name);
  return multiprocessors * blocks;
}

/// More blocks of a cluster than every device has must be asked for, kernel by kernel.
constexpr unsigned kClusterOfEveryDevice = 8;

template <class... Parameters>
void allow_cluster(const char* name, void (*kernel)(Parameters...), const dim3& cluster) {
  if (cluster.x * cluster.y * cluster.z <= kClusterOfEveryDevice) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), name);
}

/// Clusters of a launch that the current device runs at the same time; 0: it can run none.
template <class... Parameters>
int resident_clusters(const char* name, void (*kernel)(Parameters...), const LaunchShape& shape) {
  allow_shared_bytes(name, kernel, shape.shared_bytes);
  allow_cluster(name, kernel, shape.cluster);
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = shape.cluster.x;
  attribute.val.clusterDim.y = shape.cluster.y;
  attribute.val.clusterDim.z = shape.cluster.z;
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.attrs = &attribute;
  config.numAttrs = 1;
  int clusters = 0;
  if (cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) == cudaSuccess) return clusters;
  cudaGetLastError();
  return 0;
}

/// Launch on the context's stream; its device must be current. `name` is for the error message.
template <class... Parameters, class... Arguments>
void launch(const Context& ctx, const char* name, void (*kernel)(Parameters...),
            const LaunchShape& shape, Arguments&&... arguments) {
  allow_shared_bytes(name, kernel, shape.shared_bytes);
  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream_of(ctx);
  config.attrs = attributes;
  if (shape.cooperative) {
    cudaLaunchAttribute& a = attributes[config.numAttrs++];
    a.id = cudaLaunchAttributeCooperative;
    a.val.cooperative = 1;
  }
  if (shape.cluster.x * shape.cluster.y * shape.cluster.z > 1) {
    allow_cluster(name, kernel, shape.cluster);
    cudaLaunchAttribute& a = attributes[config.numAttrs++];
    a.id = cudaLaunchAttributeClusterDimension;
    a.val.clusterDim.x = shape.cluster.x;
    a.val.clusterDim.y = shape.cluster.y;
    a.val.clusterDim.z = shape.cluster.z;
  }
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), name);
}

}  // namespace penstock::cuda

/// Declare `name`, a pointer to the launch's dynamic shared memory. At most once per kernel.
#if defined(__CUDACC__)
#define PENSTOCK_SHARED_MEMORY(T, name)                                   \
  extern __shared__ __align__(16) unsigned char penstock_shared_memory[]; \
  T* name = reinterpret_cast<T*>(penstock_shared_memory)
#else
#define PENSTOCK_SHARED_MEMORY(T, name) \
  T* name = static_cast<T*>(::cuda_emulation::dynamic_shared_memory())
#endif
