// float16: conversions. Kernels compute in float.
#pragma once

#include "cpu/half.h"
#include "cuda_emulation/vector_types.h"

struct __half {
  std::uint16_t bits;
};
struct __align__(4) __half2 {
  __half x, y;
};

inline __half __float2half_rn(float v) { return {penstock::cpu::Float16::from(v).bits}; }
inline __half __float2half(float v) { return __float2half_rn(v); }
inline float __half2float(__half v) { return penstock::cpu::Float16{v.bits}; }
inline __half2 __floats2half2_rn(float x, float y) {
  return {__float2half_rn(x), __float2half_rn(y)};
}
inline float2 __half22float2(__half2 v) { return {__half2float(v.x), __half2float(v.y)}; }
inline unsigned short __half_as_ushort(__half v) { return v.bits; }
inline __half __ushort_as_half(unsigned short v) { return {v}; }
