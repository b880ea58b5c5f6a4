// Warp matrix products on the tensor cores: d (16, 8) += a (16, K) b (K, 8), with the fragment
// layouts of mma.sync. All 32 lanes call these together. With g = lane / 4 and i = lane % 4, a lane
// holds, a register per comma:
//
//   K = 16, two 16-bit elements a register, the first in the low half
//     a: (g, 2i..2i+1), (g+8, 2i..2i+1), (g, 2i+8..2i+9), (g+8, 2i+8..2i+9)
//     b: (2i..2i+1, g), (2i+8..2i+9, g)
//   K = 8, tf32 (a float whose last 13 bits do not count)
//     a: (g, i), (g+8, i), (g, i+4), (g+8, i+4)
//     b: (i, g), (i+4, g)
//   d: (g, 2i), (g, 2i+1), (g+8, 2i), (g+8, 2i+1)
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/async_copy.h"

namespace penstock::cuda {

/// d += a b with 16-bit elements T (__half or __nv_bfloat16), K = 16; sums in float.
template <class T>
__device__ __forceinline__ void matrix_multiply(float (&d)[4], const std::uint32_t (&a)[4],
                                                const std::uint32_t (&b)[2]);

#if defined(__CUDACC__)
#define PENSTOCK_MATRIX_MULTIPLY(type)                                                \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                 \
               ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                       \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
#endif

template <>
__device__ __forceinline__ void matrix_multiply<__half>(float (&d)[4], const std::uint32_t (&a)[4],
                                                        const std::uint32_t (&b)[2]) {
#if defined(__CUDACC__)
  PENSTOCK_MATRIX_MULTIPLY("f16");
#else
  cuda_emulation::matrix_multiply(cuda_emulation::MatrixType::kFloat16, d, a, b,
                                  cuda_emulation::Place::here());
#endif
}

template <>
__device__ __forceinline__ void matrix_multiply<__nv_bfloat16>(float (&d)[4],
                                                               const std::uint32_t (&a)[4],
                                                               const std::uint32_t (&b)[2]) {
#if defined(__CUDACC__)
  PENSTOCK_MATRIX_MULTIPLY("bf16");
#else
  cuda_emulation::matrix_multiply(cuda_emulation::MatrixType::kBFloat16, d, a, b,
                                  cuda_emulation::Place::here());
#endif
}
#undef PENSTOCK_MATRIX_MULTIPLY

/// d += a b in tf32, K = 8.
__device__ __forceinline__ void matrix_multiply_tf32(float (&d)[4], const std::uint32_t (&a)[4],
                                                     const std::uint32_t (&b)[2]) {
#if defined(__CUDACC__)
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  cuda_emulation::matrix_multiply(cuda_emulation::MatrixType::kTf32, d, a, b,
                                  cuda_emulation::Place::here());
#endif
}

/// The nearest tf32 number, halves away from zero. v - tf32(v) is what a second product takes to
/// come nearer to float.
__device__ __forceinline__ std::uint32_t to_tf32(float v) {
#if defined(__CUDACC__)
  std::uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(v));
  return bits;
#else
  const std::uint32_t bits = __float_as_uint(v);
  // Infinities and NaN stay as they are.
  return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & 0xffffe000u;
#endif
}

/// Load Count (1, 2 or 4) matrices of 8 rows of 16 bytes from shared memory: 8 lanes for each
/// matrix, in order, give the addresses of its rows, which are multiples of 16. Register m then
/// holds elements (lane / 4, 2 (lane % 4)) and the one right of it of matrix m, seen as 8 x 8
/// 16-bit elements; with Transposed, of its transpose. Rows of a give a's registers in the order
/// above, with matrices (0, 0), (8, 0), (0, 8), (8, 8); rows of b (K, 8) need Transposed.
template <int Count, bool Transposed = false>
__device__ __forceinline__ void load_matrices(std::uint32_t (&r)[Count], const void* row) {
  static_assert(Count == 1 || Count == 2 || Count == 4, "1, 2 or 4 matrices");
#if defined(__CUDACC__)
  const unsigned at = shared_address(row);
  if constexpr (Count == 1 && !Transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(r[0])
                 : "r"(at)
                 : "memory");
  } else if constexpr (Count == 1) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                 : "=r"(r[0])
                 : "r"(at)
                 : "memory");
  } else if constexpr (Count == 2 && !Transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(at)
                 : "memory");
  } else if constexpr (Count == 2) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(at)
                 : "memory");
  } else if constexpr (!Transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
  }
#else
  cuda_emulation::load_matrices(r, Count, Transposed, row, cuda_emulation::Place::here());
#endif
}

/// Two 16-bit elements in a register, as fragments hold them.
template <class T>
__device__ __forceinline__ std::uint32_t pack(T low, T high);
template <>
__device__ __forceinline__ std::uint32_t pack(__half low, __half high) {
  return __half_as_ushort(low) | static_cast<std::uint32_t>(__half_as_ushort(high)) << 16;
}
template <>
__device__ __forceinline__ std::uint32_t pack(__nv_bfloat16 low, __nv_bfloat16 high) {
  return __bfloat16_as_ushort(low) | static_cast<std::uint32_t>(__bfloat16_as_ushort(high)) << 16;
}

}  // namespace penstock::cuda
