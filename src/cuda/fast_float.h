// The number that kernels compute a recurrence with.
#pragma once

#include <cuda_runtime.h>
#include <math.h>

namespace penstock::cuda {

/// A float whose sigmoid takes the device's own exponential and reciprocal: the recurrence waits
/// for both at each step, and exact ones take twice as long. A few units of 2^-24 off; relative to
/// a result near 0 up to |x| units in its last place, and 0 where x < -87.3.
struct FastFloat {
  float v;
  FastFloat() = default;
  __device__ __forceinline__ FastFloat(float value) : v(value) {}
  __device__ __forceinline__ operator float() const { return v; }
};
__device__ __forceinline__ FastFloat operator+(FastFloat a, FastFloat b) { return a.v + b.v; }
__device__ __forceinline__ FastFloat operator-(FastFloat a, FastFloat b) { return a.v - b.v; }
__device__ __forceinline__ FastFloat operator*(FastFloat a, FastFloat b) { return a.v * b.v; }
__device__ __forceinline__ FastFloat operator-(FastFloat a) { return -a.v; }
__device__ __forceinline__ FastFloat sigmoid(FastFloat x) {
#if defined(__CUDACC__)
  // __expf without its care for subnormal results, which are lost in 1 + exp(-x).
  float e;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(x.v * -1.44269504f));
#else
  const float e = __expf(-x.v);
#endif
  return __fdividef(1.0f, 1.0f + e);
}
__device__ __forceinline__ FastFloat tanh(FastFloat x) { return ::tanhf(x.v); }
__device__ __forceinline__ FastFloat where_positive(FastFloat x, FastFloat a, FastFloat b) {
  return x.v > 0.0f ? a : b;
}
__device__ __forceinline__ FastFloat multiply_add(FastFloat a, FastFloat b, FastFloat c) {
  return __fmaf_rn(a.v, b.v, c.v);
}

}  // namespace penstock::cuda
