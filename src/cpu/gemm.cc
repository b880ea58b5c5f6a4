// Compiled once per instruction set. Dot products for B transposed (both operands contiguous along
// k), rank-1 updates otherwise. Row r of the result does not depend on how many rows there are.

#include "cpu/gemm.h"

#include "cpu/vec.h"

namespace penstock::cpu::PENSTOCK_ISA_NAMESPACE {
namespace {

// kM rows of A against kN rows of B at once.
template <class T, int kM, int kN>
void dot_tile(std::int64_t k, const T* a, std::int64_t lda, const T* b, std::int64_t ldb, T beta,
              T* c, std::int64_t ldc) {
  using V = Vec<T>;
  V sum[kM][kN];
  for (int i = 0; i < kM; ++i) {
    for (int j = 0; j < kN; ++j) sum[i][j] = V(T(0));
  }
  const std::int64_t whole = k - k % V::kSize;
  for (std::int64_t p = 0; p < whole; p += V::kSize) {
    V bv[kN];
    for (int j = 0; j < kN; ++j) bv[j] = V::load(b + j * ldb + p);
    for (int i = 0; i < kM; ++i) {
      const V av = V::load(a + i * lda + p);
      for (int j = 0; j < kN; ++j) sum[i][j] = sum[i][j] + av * bv[j];
    }
  }
  if (const int rest = static_cast<int>(k - whole); rest > 0) {
    V bv[kN];
    for (int j = 0; j < kN; ++j) bv[j] = V::load(b + j * ldb + whole, rest);
    for (int i = 0; i < kM; ++i) {
      const V av = V::load(a + i * lda + whole, rest);
      for (int j = 0; j < kN; ++j) sum[i][j] = sum[i][j] + av * bv[j];
    }
  }
  for (int i = 0; i < kM; ++i) {
    for (int j = 0; j < kN; ++j) {
      T* out = c + i * ldc + j;
      const T total = horizontal_sum(sum[i][j]);
      *out = beta == T(0) ? total : total + beta * *out;
    }
  }
}

template <class T>
void dot_product_gemm(std::int64_t m, std::int64_t n, std::int64_t k, const T* a, std::int64_t lda,
                      const T* b, std::int64_t ldb, T beta, T* c, std::int64_t ldc) {
  std::int64_t i = 0;
  for (; i + 2 <= m; i += 2) {
    std::int64_t j = 0;
    for (; j + 4 <= n; j += 4) {
      dot_tile<T, 2, 4>(k, a + i * lda, lda, b + j * ldb, ldb, beta, c + i * ldc + j, ldc);
    }
    for (; j < n; ++j) {
      dot_tile<T, 2, 1>(k, a + i * lda, lda, b + j * ldb, ldb, beta, c + i * ldc + j, ldc);
    }
  }
  for (; i < m; ++i) {
    std::int64_t j = 0;
    for (; j + 8 <= n; j += 8) {
      dot_tile<T, 1, 8>(k, a + i * lda, lda, b + j * ldb, ldb, beta, c + i * ldc + j, ldc);
    }
    for (; j < n; ++j) {
      dot_tile<T, 1, 1>(k, a + i * lda, lda, b + j * ldb, ldb, beta, c + i * ldc + j, ldc);
    }
  }
}

template <class T>
void gemm(bool trans_a, bool trans_b, std::int64_t m, std::int64_t n, std::int64_t k, const T* a,
          std::int64_t lda, const T* b, std::int64_t ldb, T beta, T* c, std::int64_t ldc) {
  if (!trans_a && trans_b) {
    dot_product_gemm(m, n, k, a, lda, b, ldb, beta, c, ldc);
    return;
  }
  using V = Vec<T>;
  for (std::int64_t i = 0; i < m; ++i) {
    T* row = c + i * ldc;
    for (std::int64_t j = 0; j < n; ++j) row[j] = beta == T(0) ? T(0) : beta * row[j];
    for (std::int64_t p = 0; p < k; ++p) {
      const T left = trans_a ? a[p * lda + i] : a[i * lda + p];
      if (trans_b) {
        for (std::int64_t j = 0; j < n; ++j) row[j] += left * b[j * ldb + p];
        continue;
      }
      const T* right = b + p * ldb;
      std::int64_t j = 0;
      for (; j + V::kSize <= n; j += V::kSize) {
        (V::load(row + j) + V(left) * V::load(right + j)).store(row + j);
      }
      if (const int rest = static_cast<int>(n - j); rest > 0) {
        (V::load(row + j, rest) + V(left) * V::load(right + j, rest)).store(row + j, rest);
      }
    }
  }
}

}  // namespace

const GemmKernels& gemm_kernels() {
  static constexpr GemmKernels table = {&gemm<float>, &gemm<double>};
  return table;
}

}  // namespace penstock::cpu::PENSTOCK_ISA_NAMESPACE
