// Element types in kernels: what an array holds (T) and what is computed with (state_t<T>).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "penstock/error.h"
#include "penstock/types.h"

namespace penstock::cuda {

template <class T>
struct StateOf {
  using type = float;
};
template <>
struct StateOf<double> {
  using type = double;
};
/// float, but double for double.
template <class T>
using state_t = typename StateOf<T>::type;

__device__ __forceinline__ float widen(float v) { return v; }
__device__ __forceinline__ double widen(double v) { return v; }
__device__ __forceinline__ float widen(__half v) { return __half2float(v); }
__device__ __forceinline__ float widen(__nv_bfloat16 v) { return __bfloat162float(v); }

/// Round to nearest even.
template <class T>
__device__ __forceinline__ T narrow(state_t<T> v) {
  return v;
}
template <>
__device__ __forceinline__ __half narrow<__half>(float v) {
  return __float2half_rn(v);
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float v) {
  return __float2bfloat16_rn(v);
}

template <class T>
struct TypeTag {
  using type = T;
};

/// f(TypeTag<T>) with T the C++ type of a floating element type.
template <class F>
void with_type(DataType dtype, F&& f) {
  switch (dtype) {
    case DataType::kFloat32: return f(TypeTag<float>{});
    case DataType::kFloat64: return f(TypeTag<double>{});
    case DataType::kFloat16: return f(TypeTag<__half>{});
    case DataType::kBFloat16: return f(TypeTag<__nv_bfloat16>{});
    default: break;
  }
  throw Error(ErrorCode::kType, std::string("CUDA: no arithmetic in ") + name_of(dtype));
}

}  // namespace penstock::cuda
