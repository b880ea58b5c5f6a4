// Device memory for the tests of the stand-in runtime. Nothing but the CUDA API, so that what uses
// it can be compiled with nvcc and run on a device too.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/launch.h"
#include "penstock/context.h"

namespace penstock::tests {

template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(std::size_t n) : n_(n) {
    cuda::check(cudaMalloc(&data_, n * sizeof(T)), "cudaMalloc");
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
    cuda::check(cudaMemcpy(data_, values.data(), n_ * sizeof(T), cudaMemcpyHostToDevice),
                "cudaMemcpy");
  }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return data_; }
  std::vector<T> values() const {
    std::vector<T> v(n_);
    cuda::check(cudaMemcpy(v.data(), data_, n_ * sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy");
    return v;
  }

 private:
  T* data_ = nullptr;
  std::size_t n_;
};

/// 1, 2, 3, … n: sums of them are exact, and no two partial sums are alike.
inline std::vector<float> counting(std::size_t n) {
  std::vector<float> v(n);
  for (std::size_t i = 0; i < n; ++i) v[i] = static_cast<float>(i + 1);
  return v;
}

inline cuda::LaunchShape shape_of(dim3 grid, dim3 block, std::size_t shared = 0) {
  cuda::LaunchShape s;
  s.grid = grid;
  s.block = block;
  s.shared_bytes = shared;
  return s;
}

}  // namespace penstock::tests
