// The BLAS that large matrix products go to. It runs single-threaded: the library's own pool
// splits the work, so that results do not depend on the number of threads.
#pragma once

#include <cstdint>
#include <string>

namespace penstock::cpu {

/// Row-major C = op(A) op(B) + beta C.
void blas_gemm(bool trans_a, bool trans_b, std::int64_t m, std::int64_t n, std::int64_t k,
               const float* a, std::int64_t lda, const float* b, std::int64_t ldb, float beta,
               float* c, std::int64_t ldc);
void blas_gemm(bool trans_a, bool trans_b, std::int64_t m, std::int64_t n, std::int64_t k,
               const double* a, std::int64_t lda, const double* b, std::int64_t ldb, double beta,
               double* c, std::int64_t ldc);

std::string blas_name();
std::string blas_core();
/// Empty, or why the BLAS looks slower here than it could be.
std::string blas_warning();

}  // namespace penstock::cpu
