// float16, as far as the kernels use it.
#pragma once

#include "cpu/half.h"

struct __half {
  std::uint16_t bits;
};

inline __half __float2half_rn(float v) { return {penstock::cpu::Float16::from(v).bits}; }
inline float __half2float(__half v) { return penstock::cpu::Float16{v.bits}; }
