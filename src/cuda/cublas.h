// cuBLAS, found at run time: the library is never linked, so the plugin loads without it and can
// say what is missing. The few declarations needed stand here; cuBLAS's headers are not.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace penstock::cuda {

// Values of cuBLAS's and the runtime's enumerations (stable across CUDA 12 and 13).
constexpr int kCublasSuccess = 0;
constexpr int kCublasOpN = 0;
constexpr int kCublasOpT = 1;
constexpr int kCublasGemmDefault = -1;
constexpr int kCublasCompute32F = 68;
constexpr int kCublasCompute64F = 70;
// CUBLAS_DEFAULT_MATH with 16-bit reductions forbidden: partial sums stay float32.
constexpr int kCublasMathMode = 0 | 16;
constexpr int kCudaR32F = 0;
constexpr int kCudaR64F = 1;
constexpr int kCudaR16F = 2;
constexpr int kCudaR16BF = 14;

using CublasHandle = struct CublasContext*;

/// Pointers to the functions used, with cuBLAS's own signatures (column-major, sizes of 64 bits).
struct Cublas {
  int (*create)(CublasHandle*);
  int (*destroy)(CublasHandle);
  int (*set_stream)(CublasHandle, void* stream);
  int (*set_workspace)(CublasHandle, void* workspace, std::size_t bytes);
  int (*set_math_mode)(CublasHandle, int mode);
  int (*gemm)(CublasHandle, int trans_a, int trans_b, std::int64_t m, std::int64_t n,
              std::int64_t k, const void* alpha, const void* a, int a_type, std::int64_t lda,
              const void* b, int b_type, std::int64_t ldb, const void* beta, void* c, int c_type,
              std::int64_t ldc, int compute_type, int algorithm);
  int (*gemm_strided_batched)(CublasHandle, int trans_a, int trans_b, std::int64_t m,
                              std::int64_t n, std::int64_t k, const void* alpha, const void* a,
                              int a_type, std::int64_t lda, long long stride_a, const void* b,
                              int b_type, std::int64_t ldb, long long stride_b, const void* beta,
                              void* c, int c_type, std::int64_t ldc, long long stride_c,
                              std::int64_t batch, int compute_type, int algorithm);
  const char* (*status_string)(int status);
};

/// The table, loaded on first use, or null with the reason in `why` (which may be null).
const Cublas* cublas(std::string* why = nullptr);

}  // namespace penstock::cuda
