// The stand-in's runtime but for graphs: errors, the device and its limits, memory, launches.

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>

#include "grid.h"
#include "stream.h"

namespace cuda_emulation {
namespace {

// As on a device of compute capability 9.0, but for the number of multiprocessors: a cooperative
// grid's threads all have a stack at the same time.
constexpr int kMultiprocessors = 8;
constexpr int kMaxThreadsPerBlock = 1024;
constexpr int kMaxThreadsPerMultiprocessor = 2048;
constexpr int kMaxBlocksPerMultiprocessor = 32;
constexpr int kSharedPerBlock = 48 * 1024;
constexpr int kSharedPerBlockOptIn = 227 * 1024;
constexpr int kSharedPerMultiprocessor = 228 * 1024;
constexpr int kSharedReserved = 1024;  // of each block, for the system
constexpr unsigned kPortableCluster = 8;
constexpr unsigned kLargestCluster = 16;

thread_local cudaError_t last_error = cudaSuccess;

// ---- functions ---------------------------------------------------------------------------------

struct FunctionState {
  int shared_bytes = kSharedPerBlock;
  bool large_clusters = false;
};

std::mutex functions_mutex;
std::map<Function, FunctionState>& functions() {
  static std::map<Function, FunctionState> map;
  return map;
}

FunctionState state_of(Function function) {
  const std::lock_guard<std::mutex> lock(functions_mutex);
  const auto found = functions().find(function);
  return found == functions().end() ? FunctionState() : found->second;
}

std::uint64_t count(const dim3& d) { return std::uint64_t{d.x} * d.y * d.z; }

/// Blocks of one multiprocessor; the registers that the real kernel takes are not known here.
int blocks_per_multiprocessor(std::uint64_t threads, std::size_t shared_bytes) {
  const auto whole_warps = static_cast<int>((threads + kWarp - 1) / kWarp * kWarp);
  const int by_threads = kMaxThreadsPerMultiprocessor / std::max(whole_warps, 1);
  const int by_shared =
      kSharedPerMultiprocessor / (static_cast<int>(shared_bytes) + kSharedReserved);
  return std::min({kMaxBlocksPerMultiprocessor, by_threads, by_shared});
}

cudaError_t check_launch(const Launch& l, const FunctionState& f) {
  const dim3 &grid = l.grid, &block = l.block, &cluster = l.cluster;
  if (count(block) < 1 || count(block) > kMaxThreadsPerBlock || block.x > 1024 || block.y > 1024 ||
      block.z > 64 || count(grid) < 1 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
    return cudaErrorInvalidConfiguration;
  }
  if (l.shared_bytes > static_cast<std::size_t>(f.shared_bytes)) return cudaErrorInvalidValue;
  if (count(cluster) < 1 || grid.x % cluster.x != 0 || grid.y % cluster.y != 0 ||
      grid.z % cluster.z != 0) {
    return cudaErrorInvalidClusterSize;
  }
  if (count(cluster) > (f.large_clusters ? kLargestCluster : kPortableCluster)) {
    return cudaErrorInvalidClusterSize;
  }
  const int resident = kMultiprocessors * blocks_per_multiprocessor(count(block), l.shared_bytes);
  if (count(cluster) > static_cast<std::uint64_t>(resident)) return cudaErrorInvalidClusterSize;
  if (l.cooperative && count(grid) > static_cast<std::uint64_t>(resident)) {
    return cudaErrorCooperativeLaunchTooLarge;
  }
  return cudaSuccess;
}

// ---- memory ------------------------------------------------------------------------------------

// Around what cudaMalloc hands out. Where the address sanitizer watches, allocations end where the
// caller's memory does instead.
#if defined(__SANITIZE_ADDRESS__)
constexpr std::size_t kGuardBytes = 0;
#else
constexpr std::size_t kGuardBytes = 256;
#endif
constexpr std::size_t kAlignment = 256;
constexpr int kGuard = 0xdb, kPoison = 0xff;

std::mutex allocations_mutex;
std::map<unsigned char*, std::size_t>& allocations() {  // address and size as handed out
  static std::map<unsigned char*, std::size_t> map;
  return map;
}

bool guarded(const unsigned char* from) {
  return std::all_of(from, from + kGuardBytes, [](unsigned char c) { return c == kGuard; });
}

/// Report what was written around an allocation.
bool intact(const unsigned char* data, std::size_t bytes) {
  if (guarded(data - kGuardBytes) && guarded(data + bytes)) return true;
  std::fprintf(stderr,
               "cuda_emulation: written before or past the end of an allocation of %zu bytes\n",
               bytes);
  return false;
}

bool all_intact() {
  if (kGuardBytes == 0) return true;
  const std::lock_guard<std::mutex> lock(allocations_mutex);
  bool good = true;
  for (const auto& a : allocations()) {
    if (intact(a.first, a.second)) continue;
    good = false;
    // Say it once.
    std::memset(a.first - kGuardBytes, kGuard, kGuardBytes);
    std::memset(a.first + a.second, kGuard, kGuardBytes);
  }
  return good;
}

}  // namespace

cudaError_t fail(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

// ---- launches ----------------------------------------------------------------------------------

cudaError_t launch(const cudaLaunchConfig_t& config, Function function,
                   std::function<void()> body) {
  Launch l;
  l.grid = config.gridDim;
  l.block = config.blockDim;
  l.shared_bytes = config.dynamicSmemBytes;
  l.body = std::move(body);
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttribute& a = config.attrs[i];
    if (a.id == cudaLaunchAttributeCooperative) l.cooperative = a.val.cooperative != 0;
    if (a.id == cudaLaunchAttributeClusterDimension) {
      l.cluster = dim3(a.val.clusterDim.x, a.val.clusterDim.y, a.val.clusterDim.z);
    }
  }
  const cudaError_t legal = check_launch(l, state_of(function));
  if (legal != cudaSuccess) return fail(legal);
  return fail(put_on_stream(config.stream, {Work::kKernel, [l] {
                                              const cudaError_t status = run_grid(l);
                                              return status == cudaSuccess && !all_intact()
                                                         ? cudaErrorIllegalAddress
                                                         : status;
                                            }}));
}

cudaError_t enqueue(cudaStream_t stream, std::function<void()> work) {
  return fail(put_on_stream(stream, {Work::kLibrary, [work] {
                                       work();
                                       return cudaSuccess;
                                     }}));
}

cudaError_t set_attribute(Function function, cudaFuncAttribute attribute, int value) {
  const std::lock_guard<std::mutex> lock(functions_mutex);
  switch (attribute) {
    case cudaFuncAttributeMaxDynamicSharedMemorySize:
      if (value < 0 || value > kSharedPerBlockOptIn) return fail(cudaErrorInvalidValue);
      functions()[function].shared_bytes = std::max(value, kSharedPerBlock);
      return cudaSuccess;
    case cudaFuncAttributeNonPortableClusterSizeAllowed:
      functions()[function].large_clusters = value != 0;
      return cudaSuccess;
    case cudaFuncAttributePreferredSharedMemoryCarveout:
      return value >= -1 && value <= 100 ? cudaSuccess : fail(cudaErrorInvalidValue);
  }
  return fail(cudaErrorInvalidValue);
}

cudaError_t get_attributes(cudaFuncAttributes* attributes, Function function) {
  *attributes = {};
  attributes->maxThreadsPerBlock = kMaxThreadsPerBlock;
  attributes->ptxVersion = 90;
  attributes->maxDynamicSharedSizeBytes = state_of(function).shared_bytes;
  return cudaSuccess;
}

cudaError_t active_blocks(int* blocks, Function function, int threads, std::size_t shared_bytes) {
  if (threads < 1) return fail(cudaErrorInvalidValue);
  const bool possible = threads <= kMaxThreadsPerBlock &&
                        shared_bytes <= static_cast<std::size_t>(state_of(function).shared_bytes);
  *blocks =
      possible ? blocks_per_multiprocessor(static_cast<std::uint64_t>(threads), shared_bytes) : 0;
  return cudaSuccess;
}

cudaError_t active_clusters(int* clusters, Function function, const cudaLaunchConfig_t& config) {
  dim3 shape;
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttribute& a = config.attrs[i];
    if (a.id != cudaLaunchAttributeClusterDimension) continue;
    shape = dim3(a.val.clusterDim.x, a.val.clusterDim.y, a.val.clusterDim.z);
  }
  int blocks = 0;
  const cudaError_t status = active_blocks(
      &blocks, function, static_cast<int>(count(config.blockDim)), config.dynamicSmemBytes);
  if (status != cudaSuccess) return status;
  const unsigned most = state_of(function).large_clusters ? kLargestCluster : kPortableCluster;
  if (count(shape) < 1 || count(shape) > most) return fail(cudaErrorInvalidClusterSize);
  *clusters = blocks * kMultiprocessors / static_cast<int>(count(shape));
  return cudaSuccess;
}

}  // namespace cuda_emulation

using cuda_emulation::fail;

// ---- errors ------------------------------------------------------------------------------------

namespace {

struct ErrorText {
  cudaError_t error;
  const char *name, *text;
};

constexpr ErrorText kErrors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration",
     "invalid configuration argument"},
    {cudaErrorInvalidDevicePointer, "cudaErrorInvalidDevicePointer", "invalid device pointer"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver",
     "CUDA driver version is insufficient for CUDA runtime version"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorIllegalState, "cudaErrorIllegalState",
     "the operation cannot be performed in the present state"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress",
     "an illegal memory access was encountered"},
    {cudaErrorLaunchTimeout, "cudaErrorLaunchTimeout", "the launch timed out and was terminated"},
    {cudaErrorMisalignedAddress, "cudaErrorMisalignedAddress", "misaligned address"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorCooperativeLaunchTooLarge, "cudaErrorCooperativeLaunchTooLarge",
     "too many blocks in cooperative launch"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
    {cudaErrorStreamCaptureUnjoined, "cudaErrorStreamCaptureUnjoined",
     "capturing stream has unjoined work"},
    {cudaErrorStreamCaptureImplicit, "cudaErrorStreamCaptureImplicit",
     "operation would make the legacy stream depend on a capturing blocking stream"},
    {cudaErrorGraphExecUpdateFailure, "cudaErrorGraphExecUpdateFailure",
     "the graph update was not performed because it included changes which violated constraints "
     "specific to instantiated graph update"},
    {cudaErrorInvalidClusterSize, "cudaErrorInvalidClusterSize", "cluster misconfiguration"},
};

const ErrorText& text_of(cudaError_t error) {
  static constexpr ErrorText kUnknown = {cudaSuccess, "unrecognized error code",
                                         "unrecognized error code"};
  for (const ErrorText& e : kErrors) {
    if (e.error == error) return e;
  }
  return kUnknown;
}

}  // namespace

const char* cudaGetErrorString(cudaError_t error) { return text_of(error).text; }
const char* cudaGetErrorName(cudaError_t error) { return text_of(error).name; }

cudaError_t cudaPeekAtLastError() { return cuda_emulation::last_error; }
cudaError_t cudaGetLastError() { return std::exchange(cuda_emulation::last_error, cudaSuccess); }

// ---- devices -----------------------------------------------------------------------------------

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  return device == 0 ? cudaSuccess : fail(cudaErrorInvalidDevice);
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
  if (device != 0) return fail(cudaErrorInvalidDevice);
  *p = {};
  std::snprintf(p->name, sizeof p->name, "emulated device");
  p->major = 9;
  p->multiProcessorCount = cuda_emulation::kMultiprocessors;
  p->maxThreadsPerBlock = cuda_emulation::kMaxThreadsPerBlock;
  p->maxThreadsPerMultiProcessor = cuda_emulation::kMaxThreadsPerMultiprocessor;
  p->sharedMemPerBlock = cuda_emulation::kSharedPerBlock;
  p->sharedMemPerBlockOptin = cuda_emulation::kSharedPerBlockOptIn;
  p->sharedMemPerMultiprocessor = cuda_emulation::kSharedPerMultiprocessor;
  p->cooperativeLaunch = p->clusterLaunch = 1;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0) return fail(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = cuda_emulation::kMaxThreadsPerBlock; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = cuda_emulation::kSharedPerBlock; break;
    case cudaDevAttrWarpSize: *value = warpSize; break;
    case cudaDevAttrMultiProcessorCount: *value = cuda_emulation::kMultiprocessors; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = cuda_emulation::kMaxThreadsPerMultiprocessor;
      break;
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = cuda_emulation::kSharedPerMultiprocessor;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = cuda_emulation::kSharedPerBlockOptIn;
      break;
    case cudaDevAttrCooperativeLaunch:
    case cudaDevAttrClusterLaunch: *value = 1; break;
    default: return fail(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}

// ---- memory ------------------------------------------------------------------------------------

cudaError_t cudaMalloc(void** p, std::size_t bytes) {
  using namespace cuda_emulation;
  *p = nullptr;
  const cudaError_t allowed = check_unsafe();
  if (allowed != cudaSuccess || bytes == 0) return fail(allowed);
  void* memory = nullptr;
  if (posix_memalign(&memory, kAlignment, bytes + 2 * kGuardBytes) != 0) {
    return fail(cudaErrorMemoryAllocation);
  }
  auto* data = static_cast<unsigned char*>(memory) + kGuardBytes;
  std::memset(memory, kGuard, kGuardBytes);
  std::memset(data, kPoison, bytes);
  std::memset(data + bytes, kGuard, kGuardBytes);
  const std::lock_guard<std::mutex> lock(allocations_mutex);
  allocations()[data] = bytes;
  *p = data;
  return cudaSuccess;
}

cudaError_t cudaFree(void* p) {
  using namespace cuda_emulation;
  const cudaError_t allowed = check_unsafe();
  if (allowed != cudaSuccess || p == nullptr) return fail(allowed);
  const std::lock_guard<std::mutex> lock(allocations_mutex);
  const auto found = allocations().find(static_cast<unsigned char*>(p));
  if (found == allocations().end()) return fail(cudaErrorInvalidValue);
  const bool good = kGuardBytes == 0 || intact(found->first, found->second);
  std::free(found->first - kGuardBytes);
  allocations().erase(found);
  return good ? cudaSuccess : fail(cudaErrorIllegalAddress);
}

cudaError_t cudaMemcpyAsync(void* dst, const void* src, std::size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  using cuda_emulation::Work;
  return fail(cuda_emulation::put_on_stream(stream, {Work::kCopy, [=] {
                                                       if (bytes != 0) std::memcpy(dst, src, bytes);
                                                       return cudaSuccess;
                                                     }}));
}
cudaError_t cudaMemcpy(void* dst, const void* src, std::size_t bytes, cudaMemcpyKind kind) {
  const cudaError_t allowed = cuda_emulation::check_unsafe();
  return allowed != cudaSuccess ? fail(allowed) : cudaMemcpyAsync(dst, src, bytes, kind, nullptr);
}
cudaError_t cudaMemsetAsync(void* data, int value, std::size_t bytes, cudaStream_t stream) {
  using cuda_emulation::Work;
  return fail(cuda_emulation::put_on_stream(stream, {Work::kMemset, [=] {
                                                       if (bytes != 0) {
                                                         std::memset(data, value, bytes);
                                                       }
                                                       return cudaSuccess;
                                                     }}));
}
cudaError_t cudaMemset(void* data, int value, std::size_t bytes) {
  const cudaError_t allowed = cuda_emulation::check_unsafe();
  return allowed != cudaSuccess ? fail(allowed) : cudaMemsetAsync(data, value, bytes, nullptr);
}
