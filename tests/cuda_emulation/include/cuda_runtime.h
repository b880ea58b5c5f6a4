// A stand-in for the CUDA runtime, so that the library's .cu files compile as ordinary C++17 and
// run on a CPU. What it holds is what src/cuda and src/cells/*_cuda.cu use; docs/cuda.md says what
// it shows and what it cannot. Kernels run when they are launched: a stream is always idle.
#pragma once

#include <cstddef>
#include <cstdint>
#include <tuple>
#include <utility>

#define __global__
#define __host__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

// ---- coordinates
// ---------------------------------------------------------------------------------
struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// Of the emulated thread that runs now.
inline thread_local uint3 threadIdx = {};
inline thread_local uint3 blockIdx = {};
inline thread_local dim3 blockDim = {};
inline thread_local dim3 gridDim = {};

// ---- errors (values of the real runtime)
// ---------------------------------------------------------
enum cudaError_t : int {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInsufficientDriver = 35,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorLaunchFailure = 719,
};
const char* cudaGetErrorString(cudaError_t);
const char* cudaGetErrorName(cudaError_t);
cudaError_t cudaGetLastError();

// ---- devices: one
// --------------------------------------------------------------------------------
struct cudaDeviceProp {
  char name[256];
  int major, minor;
};
cudaError_t cudaGetDeviceCount(int*);
cudaError_t cudaGetDevice(int*);
cudaError_t cudaSetDevice(int);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp*, int);
cudaError_t cudaDriverGetVersion(int*);
cudaError_t cudaRuntimeGetVersion(int*);

// ---- memory
// --------------------------------------------------------------------------------------
using cudaStream_t = struct CUstream_st*;
enum cudaMemcpyKind { cudaMemcpyDeviceToDevice = 3 };
cudaError_t cudaMemcpyAsync(void* dst, const void* src, std::size_t bytes, cudaMemcpyKind,
                            cudaStream_t);
cudaError_t cudaMemsetAsync(void* data, int value, std::size_t bytes, cudaStream_t);

// ---- launch
// --------------------------------------------------------------------------------------
struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  std::size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

namespace cuda_emulation {

/// Limits of a launch, as on devices of compute capability 8.0 to 9.0.
constexpr unsigned kMaxThreadsPerBlock = 1024;
constexpr std::size_t kMaxSharedBytes = 48 * 1024;

/// Run body(user) for every thread of every block, in an order shuffled by PENSTOCK_EMULATION_SEED.
cudaError_t run_grid(const cudaLaunchConfig_t&, void (*body)(void*), void* user);

/// __syncthreads(): back when every thread of the block that has not returned waits here too.
void block_barrier(const char* file, int line);

/// The launch's dynamic shared memory: exactly as long as asked for, and full of NaN at a block's
/// beginning.
void* dynamic_shared_memory();

}  // namespace cuda_emulation

template <class... Expected, class... Actual>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Expected...),
                               Actual&&... actual) {
  // Arguments are copied at launch; every thread gets a copy.
  struct Launch {
    void (*kernel)(Expected...);
    std::tuple<Expected...> arguments;
  } launch{kernel, std::tuple<Expected...>(static_cast<Expected>(std::forward<Actual>(actual))...)};
  return cuda_emulation::run_grid(
      *config,
      [](void* user) {
        const auto& l = *static_cast<const Launch*>(user);
        std::apply(l.kernel, l.arguments);
      },
      &launch);
}

// ---- device functions
// ----------------------------------------------------------------------------
#define __syncthreads() ::cuda_emulation::block_barrier(__FILE__, __LINE__)

template <class T>
inline T __ldg(const T* p) {
  return *p;
}
