// Compiled once per instruction set. Dot products for B transposed (both operands contiguous along
// k), sums of B's rows otherwise. Row r of the result does not depend on how many rows there are.

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

// One row of A (elements a_stride apart) times kN vectors of B's columns, of which the last one has
// `last` columns.
template <class T, int kN>
void row_tile(std::int64_t k, const T* a, std::int64_t a_stride, const T* b, std::int64_t ldb,
              T beta, T* c, int last) {
  using V = Vec<T>;
  V sum[kN];
  for (int j = 0; j < kN; ++j) sum[j] = V(T(0));
  for (std::int64_t p = 0; p < k; ++p) {
    const V left(a[p * a_stride]);
    for (int j = 0; j < kN; ++j) {
      const T* right = b + p * ldb + j * V::kSize;
      const V value = j + 1 < kN || last == V::kSize ? V::load(right) : V::load(right, last);
      sum[j] = sum[j] + left * value;
    }
  }
  for (int j = 0; j < kN; ++j) {
    T* out = c + j * V::kSize;
    const int n = j + 1 < kN ? V::kSize : last;
    if (beta != T(0)) sum[j] = sum[j] + V(beta) * V::load(out, n);
    sum[j].store(out, n);
  }
}

template <class T>
void row_gemm(std::int64_t m, std::int64_t n, std::int64_t k, const T* a, std::int64_t a_row,
              std::int64_t a_stride, const T* b, std::int64_t ldb, T beta, T* c, std::int64_t ldc) {
  constexpr int kSize = Vec<T>::kSize, kWide = kVectorBytes == 64 ? 16 : 8;
  for (std::int64_t i = 0; i < m; ++i) {
    const T* left = a + i * a_row;
    T* row = c + i * ldc;
    std::int64_t j = 0;
    for (; j + kWide * kSize <= n; j += kWide * kSize) {
      row_tile<T, kWide>(k, left, a_stride, b + j, ldb, beta, row + j, kSize);
    }
    for (; j < n; j += kSize) {
      row_tile<T, 1>(k, left, a_stride, b + j, ldb, beta, row + j,
                     static_cast<int>(n - j < kSize ? n - j : kSize));
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
  if (!trans_b) {
    row_gemm(m, n, k, a, trans_a ? 1 : lda, trans_a ? lda : 1, b, ldb, beta, c, ldc);
    return;
  }
  for (std::int64_t i = 0; i < m; ++i) {
    T* row = c + i * ldc;
    for (std::int64_t j = 0; j < n; ++j) row[j] = beta == T(0) ? T(0) : beta * row[j];
    for (std::int64_t p = 0; p < k; ++p) {
      for (std::int64_t j = 0; j < n; ++j) row[j] += a[p * lda + i] * b[j * ldb + p];
    }
  }
}

}  // namespace

const GemmKernels& gemm_kernels() {
  static constexpr GemmKernels table = {&gemm<float>, &gemm<double>};
  return table;
}

}  // namespace penstock::cpu::PENSTOCK_ISA_NAMESPACE
