// The library's own matrix products: few rows (where a BLAS spends its time packing), and a plain
// one for builds without a BLAS.
#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace penstock::cpu {

struct GemmKernels {
  // Row-major C = op(A) op(B) + beta C, any size.
  void (*f32)(bool trans_a, bool trans_b, std::int64_t m, std::int64_t n, std::int64_t k,
              const float* a, std::int64_t lda, const float* b, std::int64_t ldb, float beta,
              float* c, std::int64_t ldc);
  void (*f64)(bool trans_a, bool trans_b, std::int64_t m, std::int64_t n, std::int64_t k,
              const double* a, std::int64_t lda, const double* b, std::int64_t ldb, double beta,
              double* c, std::int64_t ldc);
};

PENSTOCK_CPU_KERNEL_TABLE(GemmKernels, gemm_kernels)

/// Products with a B (k, n) in panels of columns (src/cpu/panels.h).
struct PanelKernels {
  std::int64_t (*size_f32)(std::int64_t n, std::int64_t k);  // elements of a packed B
  std::int64_t (*size_f64)(std::int64_t n, std::int64_t k);
  void (*pack_f32)(bool trans_b, std::int64_t n, std::int64_t k, const float* b, std::int64_t ldb,
                   float* packed);
  void (*pack_f64)(bool trans_b, std::int64_t n, std::int64_t k, const double* b, std::int64_t ldb,
                   double* packed);
  // C (m, n) = A B + beta C, beta 0 or 1; A (m, k) not transposed.
  void (*f32)(std::int64_t m, std::int64_t n, std::int64_t k, const float* a, std::int64_t lda,
              const float* packed, float beta, float* c, std::int64_t ldc);
  void (*f64)(std::int64_t m, std::int64_t n, std::int64_t k, const double* a, std::int64_t lda,
              const double* packed, double beta, double* c, std::int64_t ldc);
};

PENSTOCK_CPU_KERNEL_TABLE(PanelKernels, panel_kernels)

/// At most this many rows of A go to GemmKernels when B is transposed; else a single one does.
constexpr std::int64_t kFewRows = 4;

}  // namespace penstock::cpu
