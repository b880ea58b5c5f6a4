// Scalar counterparts of src/cpu/vec.h, for CUDA kernels and for tests of the cell maths.
#pragma once

#include <math.h>

#if defined(__CUDACC__)
#define PENSTOCK_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define PENSTOCK_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace penstock {

PENSTOCK_HOST_DEVICE float sigmoid(float x) { return 1.0f / (1.0f + ::expf(-x)); }
PENSTOCK_HOST_DEVICE double sigmoid(double x) { return 1.0 / (1.0 + ::exp(-x)); }
PENSTOCK_HOST_DEVICE float tanh(float x) { return ::tanhf(x); }
PENSTOCK_HOST_DEVICE double tanh(double x) { return ::tanh(x); }
PENSTOCK_HOST_DEVICE float where_positive(float x, float a, float b) { return x > 0 ? a : b; }
PENSTOCK_HOST_DEVICE double where_positive(double x, double a, double b) { return x > 0 ? a : b; }

}  // namespace penstock
