// CUDA's qualifiers, and its structs of two to four numbers with their alignment.
#pragma once

#define __global__
#define __host__
#define __device__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

#define PENSTOCK_EMULATED_VECTORS(T, name)                                        \
  struct __align__(2 * sizeof(T)) name##2 { T x, y; };                            \
  struct __align__(sizeof(T) > 4 ? 16 : 4 * sizeof(T)) name##4 { T x, y, z, w; }; \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                      \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
PENSTOCK_EMULATED_VECTORS(int, int)
PENSTOCK_EMULATED_VECTORS(unsigned, uint)
PENSTOCK_EMULATED_VECTORS(float, float)
PENSTOCK_EMULATED_VECTORS(double, double)
PENSTOCK_EMULATED_VECTORS(short, short)
PENSTOCK_EMULATED_VECTORS(unsigned short, ushort)
#undef PENSTOCK_EMULATED_VECTORS
