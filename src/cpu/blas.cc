#include "cpu/blas.h"

#include <cstdlib>
#include <limits>

#include "cpu/gemm.h"
#include "cpu/isa.h"
#include "penstock/error.h"

#if defined(PENSTOCK_BLAS_SCIPY)
#define PENSTOCK_BLAS_SYMBOL(name) scipy_##name
#elif defined(PENSTOCK_BLAS_SYSTEM)
#define PENSTOCK_BLAS_SYMBOL(name) name
#endif

#if defined(PENSTOCK_BLAS_SYMBOL)
extern "C" {
void PENSTOCK_BLAS_SYMBOL(cblas_sgemm)(int order, int trans_a, int trans_b, int m, int n, int k,
                                       float alpha, const float* a, int lda, const float* b,
                                       int ldb, float beta, float* c, int ldc);
void PENSTOCK_BLAS_SYMBOL(cblas_dgemm)(int order, int trans_a, int trans_b, int m, int n, int k,
                                       double alpha, const double* a, int lda, const double* b,
                                       int ldb, double beta, double* c, int ldc);
// Weak, because a system BLAS need not be OpenBLAS.
__attribute__((weak)) void PENSTOCK_BLAS_SYMBOL(openblas_set_num_threads)(int n);
__attribute__((weak)) int PENSTOCK_BLAS_SYMBOL(openblas_get_num_threads)();
__attribute__((weak)) char* PENSTOCK_BLAS_SYMBOL(openblas_get_config)();
__attribute__((weak)) char* PENSTOCK_BLAS_SYMBOL(openblas_get_corename)();
}
#endif

namespace penstock::cpu {
namespace {

#if defined(PENSTOCK_BLAS_SYMBOL)
constexpr int kRowMajor = 101, kNoTrans = 111, kTrans = 112;

// Asked each time, as tools that limit the threads of every BLAS in a process may change it between
// two calls. A system BLAS is shared with whoever else uses it in this process.
void use_one_thread() {
  if (PENSTOCK_BLAS_SYMBOL(openblas_set_num_threads) != nullptr &&
      PENSTOCK_BLAS_SYMBOL(openblas_get_num_threads) != nullptr &&
      PENSTOCK_BLAS_SYMBOL(openblas_get_num_threads)() != 1) {
    PENSTOCK_BLAS_SYMBOL(openblas_set_num_threads)(1);
  }
}

// BLAS takes 32-bit sizes; callers cut larger products (rows are tiled), so this never cuts in
// practice and only guards the cast.
int narrow(std::int64_t v) {
  if (v > std::numeric_limits<int>::max()) {
    throw Error(ErrorCode::kValue, "gemm: a dimension of " + std::to_string(v) +
                                       " is larger than the BLAS can address");
  }
  return static_cast<int>(v);
}
#endif

}  // namespace

#if defined(PENSTOCK_BLAS_SYMBOL)
void blas_gemm(bool ta, bool tb, std::int64_t m, std::int64_t n, std::int64_t k, const float* a,
               std::int64_t lda, const float* b, std::int64_t ldb, float beta, float* c,
               std::int64_t ldc) {
  use_one_thread();
  PENSTOCK_BLAS_SYMBOL(cblas_sgemm)
  (kRowMajor, ta ? kTrans : kNoTrans, tb ? kTrans : kNoTrans, narrow(m), narrow(n), narrow(k), 1.0f,
   a, narrow(lda), b, narrow(ldb), beta, c, narrow(ldc));
}

void blas_gemm(bool ta, bool tb, std::int64_t m, std::int64_t n, std::int64_t k, const double* a,
               std::int64_t lda, const double* b, std::int64_t ldb, double beta, double* c,
               std::int64_t ldc) {
  use_one_thread();
  PENSTOCK_BLAS_SYMBOL(cblas_dgemm)
  (kRowMajor, ta ? kTrans : kNoTrans, tb ? kTrans : kNoTrans, narrow(m), narrow(n), narrow(k), 1.0,
   a, narrow(lda), b, narrow(ldb), beta, c, narrow(ldc));
}

std::string blas_name() {
  if (PENSTOCK_BLAS_SYMBOL(openblas_get_config) == nullptr) return "system BLAS";
  return PENSTOCK_BLAS_SYMBOL(openblas_get_config)();
}

std::string blas_core() {
  if (PENSTOCK_BLAS_SYMBOL(openblas_get_corename) == nullptr) return "unknown";
  return PENSTOCK_BLAS_SYMBOL(openblas_get_corename)();
}

std::string blas_warning() {
  const char* core = std::getenv("OPENBLAS_CORETYPE");
  if (core != nullptr && *core != '\0') {
    return std::string("OPENBLAS_CORETYPE=") + core +
           " overrides the processor that OpenBLAS detects; unset it for full speed";
  }
  if (const char* l2 = std::getenv("OPENBLAS_L2_SIZE"); l2 != nullptr && *l2 != '\0') {
    return std::string("OPENBLAS_L2_SIZE=") + l2 +
           " overrides the cache size that OpenBLAS detects; unset it for full speed";
  }
  return "";
}
#else
void blas_gemm(bool ta, bool tb, std::int64_t m, std::int64_t n, std::int64_t k, const float* a,
               std::int64_t lda, const float* b, std::int64_t ldb, float beta, float* c,
               std::int64_t ldc) {
  gemm_kernels().f32(ta, tb, m, n, k, a, lda, b, ldb, beta, c, ldc);
}

void blas_gemm(bool ta, bool tb, std::int64_t m, std::int64_t n, std::int64_t k, const double* a,
               std::int64_t lda, const double* b, std::int64_t ldb, double beta, double* c,
               std::int64_t ldc) {
  gemm_kernels().f64(ta, tb, m, n, k, a, lda, b, ldb, beta, c, ldc);
}

std::string blas_name() { return "none (built-in loops)"; }
std::string blas_core() { return isa_name(); }
std::string blas_warning() {
  return "built with PENSTOCK_BLAS=NONE: matrix products run on simple loops; rebuild with "
         "PENSTOCK_BLAS=SCIPY or SYSTEM for full speed";
}
#endif

}  // namespace penstock::cpu
