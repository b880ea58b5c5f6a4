// CUDA's entry in the backend table.

#include "cuda/cuda_backend.h"

#include <cstdio>
#include <string>

#include "cuda/cells.h"
#include "cuda/convert.h"
#include "cuda/cublas.h"
#include "cuda/driver.h"
#include "cuda/gemm.h"
#include "cuda/graphs.h"
#include "cuda/launch.h"
#include "cuda/sum_rows.h"

// The oldest architecture compiled for, as 10 * major + minor.
#if !defined(PENSTOCK_CUDA_MIN_ARCHITECTURE)
#define PENSTOCK_CUDA_MIN_ARCHITECTURE 80
#endif

namespace penstock::cuda {
namespace {

DataType compute_dtype(DataType dtype) { return dtype; }

std::size_t gemm_workspace_bytes() { return kGemmWorkspaceBytes; }

/// Empty if the device can run these kernels, else why not.
std::string device_problem(const cudaDeviceProp& p) {
  if (10 * p.major + p.minor >= PENSTOCK_CUDA_MIN_ARCHITECTURE) return "";
  const auto version = [](int n) { return std::to_string(n / 10) + "." + std::to_string(n % 10); };
  return std::string(p.name) + " has compute capability " + version(10 * p.major + p.minor) +
         ", this build needs " + version(PENSTOCK_CUDA_MIN_ARCHITECTURE) + " or newer";
}

/// Number of devices, with their names in `words`, or 0 with the reason. At least one must be able
/// to run the kernels; the others are refused when they are prepared.
int count_devices(std::string* words) {
  *words = driver_problem();
  if (!words->empty()) return 0;
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaErrorInsufficientDriver) {
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    const auto version = [](int n) {
      return std::to_string(n / 1000) + "." + std::to_string(n % 1000 / 10);
    };
    *words = "the NVIDIA driver is too old: it supports CUDA " + version(driver) +
             ", this plugin was built with CUDA " + version(runtime) + "; update the driver";
    return 0;
  }
  if (status != cudaSuccess || count == 0) {
    *words = status == cudaErrorNoDevice || status == cudaSuccess
                 ? "the NVIDIA driver sees no device (is CUDA_VISIBLE_DEVICES set?)"
                 : std::string("the NVIDIA driver does not start: ") + cudaGetErrorString(status);
    cudaGetLastError();
    return 0;
  }
  if (cublas(words) == nullptr) return 0;
  std::string names, problems;
  bool usable = false;
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp p;
    check(cudaGetDeviceProperties(&p, i), "cudaGetDeviceProperties");
    const std::string problem = device_problem(p);
    usable = usable || problem.empty();
    names += (i > 0 ? ", " : "") + std::string(p.name) + (problem.empty() ? "" : " (too old)");
    problems += (problems.empty() || problem.empty() ? "" : "; ") + problem;
  }
  *words = usable ? names : problems;
  return usable ? count : 0;
}

int device_count(char* why, std::size_t size) {
  std::string words;
  int count = 0;
  try {
    count = count_devices(&words);
  } catch (const Error& e) {
    words = e.what();
  }
  if (why != nullptr && size > 0) std::snprintf(why, size, "%s", words.c_str());
  return count;
}

void prepare_device(int index) {
  // Contexts are made often; only a device's first one asks the driver anything.
  if (gemm_prepared(index)) return;
  int count = 0;
  check(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
  if (index < 0 || index >= count) {
    throw Error(ErrorCode::kValue, "CUDA: device: expected an index below " +
                                       std::to_string(count) +
                                       " (actual: " + std::to_string(index) + ")");
  }
  cudaDeviceProp p;
  check(cudaGetDeviceProperties(&p, index), "cudaGetDeviceProperties");
  const std::string problem = device_problem(p);
  if (!problem.empty()) throw Error(ErrorCode::kRuntime, "CUDA: " + problem);
  prepare_graphs(index);
  prepare_gemm(index);
}

void gemm_with_workspace(const Context& ctx, const GemmArgs& g) {
  gemm(ctx, g, gemm_workspace_bytes());
}

/// Work is only enqueued, so threads would not help.
void for_each_item(const Context&, std::int64_t n, double, ItemFunction fn, void* user) {
  for (std::int64_t i = 0; i < n; ++i) fn(user, i);
}

}  // namespace

const Backend& backend() {
  static const Backend table = {
      kBackendAbi,
      "cuda",
      DeviceType::kCuda,
      /*host_accessible=*/false,
      /*alignment=*/256,
      &compute_dtype,
      &gemm_workspace_bytes,
      &device_count,
      &prepare_device,
      &gemm_with_workspace,
      &convert,
      &fill_zero,
      &zero_padded,
      &add,
      &sum_rows,
      &for_each_item,
      &cell_kernels,
  };
  return table;
}

}  // namespace penstock::cuda
