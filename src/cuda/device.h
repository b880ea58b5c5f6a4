// What a device is, and what our code can do on it.
#pragma once

#include <cuda_runtime.h>

#include "cuda/launch.h"

namespace penstock::cuda {

inline int attribute(const Context& ctx, cudaDeviceAttr which) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, ctx.device().index), "cudaDeviceGetAttribute");
  return value;
}

/// 90 for compute capability 9.0: the device's, or that which kernels were compiled for where it is
/// less, as what a driver makes of older code has nothing newer in it.
int capability(const Context& ctx);

}  // namespace penstock::cuda
