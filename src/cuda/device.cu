#include "cuda/device.h"

#include <algorithm>
#include <map>
#include <mutex>

namespace penstock::cuda {

namespace {

/// Stands for all kernels: they are compiled alike.
__global__ void any_kernel() {}

int find_capability(const Context& ctx) {
  const DeviceGuard guard(ctx);
  cudaFuncAttributes code = {};
  check(cudaFuncGetAttributes(&code, any_kernel), "cudaFuncGetAttributes");
  return std::min(10 * attribute(ctx, cudaDevAttrComputeCapabilityMajor) +
                      attribute(ctx, cudaDevAttrComputeCapabilityMinor),
                  code.ptxVersion);
}

}  // namespace

int capability(const Context& ctx) {
  static std::mutex mutex;
  static auto* known = new std::map<int, int>();
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known->find(ctx.device().index);
  if (found != known->end()) return found->second;
  return (*known)[ctx.device().index] = find_capability(ctx);
}

}  // namespace penstock::cuda
