// bfloat16, as far as the kernels use it.
#pragma once

#include "cpu/half.h"

struct __nv_bfloat16 {
  std::uint16_t bits;
};

inline __nv_bfloat16 __float2bfloat16_rn(float v) {
  return {penstock::cpu::BFloat16::from(v).bits};
}
inline float __bfloat162float(__nv_bfloat16 v) { return penstock::cpu::BFloat16{v.bits}; }
