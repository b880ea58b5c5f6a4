// Compiled once per instruction set.

#include "cpu/panels.h"

#include "cpu/gemm.h"

namespace penstock::cpu::PENSTOCK_ISA_NAMESPACE {
namespace {

// Rows at once, so that sums, one row of the panel and a factor fit the registers.
constexpr int most_rows(int width) {
  if (kVectorBytes == 64) return width == 4 ? 6 : 8;
  return width == 4 ? 2 : width == 3 ? 4 : width == 2 ? 4 : 8;
}

template <class T, int kRows, int kWidth>
PENSTOCK_INLINE void accumulate(const T* const* rows, std::int64_t begin, std::int64_t k,
                                const T* panel, Vec<T> (&sum)[kRows][kWidth]) {
  using V = Vec<T>;
  for (std::int64_t p = 0; p < k; ++p) {
    V b[kWidth];
#pragma GCC unroll 4
    for (int j = 0; j < kWidth; ++j) b[j] = V::load(panel + j * V::kSize);
    panel += kWidth * V::kSize;
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const V a(rows[i][begin + p]);
#pragma GCC unroll 4
      for (int j = 0; j < kWidth; ++j) sum[i][j] = sum[i][j] + a * b[j];
    }
  }
}

template <class T, int kRows, int kWidth>
void tile(const T* const* rows, std::int64_t k1, std::int64_t gap, std::int64_t k2, const T* panel,
          T* out) {
  using V = Vec<T>;
  V sum[kRows][kWidth];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kWidth; ++j) sum[i][j] = V(T(0));
  }
  const T* own[kRows];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) own[i] = rows[i];
  accumulate<T, kRows, kWidth>(own, 0, k1, panel, sum);
  if (k2 > 0) accumulate<T, kRows, kWidth>(own, k1 + gap, k2, panel + k1 * kWidth * V::kSize, sum);
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kWidth; ++j) sum[i][j].store(out + (i * kWidth + j) * V::kSize);
  }
}

template <class T, int kRows, int kWidth>
PENSTOCK_INLINE void tiles(const T* const*& rows, std::int64_t& count, std::int64_t k1,
                           std::int64_t gap, std::int64_t k2, const T* panel, T*& out) {
  while (count >= kRows) {
    tile<T, kRows, kWidth>(rows, k1, gap, k2, panel, out);
    rows += kRows;
    count -= kRows;
    out += kRows * kWidth * Vec<T>::kSize;
  }
}

template <class T, int kWidth>
void multiply_width(const T* const* rows, std::int64_t count, std::int64_t k1, std::int64_t gap,
                    std::int64_t k2, const T* panel, T* out) {
  tiles<T, most_rows(kWidth), kWidth>(rows, count, k1, gap, k2, panel, out);
  if constexpr (most_rows(kWidth) > 4) tiles<T, 4, kWidth>(rows, count, k1, gap, k2, panel, out);
  if constexpr (most_rows(kWidth) > 2) tiles<T, 2, kWidth>(rows, count, k1, gap, k2, panel, out);
  tiles<T, 1, kWidth>(rows, count, k1, gap, k2, panel, out);
}

}  // namespace

template <class T>
void multiply(const T* const* rows, std::int64_t count, int width, std::int64_t k1,
              std::int64_t gap, std::int64_t k2, const T* panel, T* out) {
  switch (width) {
    case 1: return multiply_width<T, 1>(rows, count, k1, gap, k2, panel, out);
    case 2: return multiply_width<T, 2>(rows, count, k1, gap, k2, panel, out);
    case 3: return multiply_width<T, 3>(rows, count, k1, gap, k2, panel, out);
    default: return multiply_width<T, 4>(rows, count, k1, gap, k2, panel, out);
  }
}

template <class T>
void pack_vector(const T* source, std::int64_t k_stride, std::int64_t column_stride, int count,
                 std::int64_t k, int at, int width, T* panel) {
  constexpr int kSize = Vec<T>::kSize;
  T* out = panel + at * kSize;
  if (column_stride == 1) {
    for (std::int64_t p = 0; p < k; ++p) {
      Vec<T>::load(source + p * k_stride, count).store(out + p * width * kSize);
    }
    return;
  }
  // Blocks of k, so that lines of the source are read whole.
  for (std::int64_t p0 = 0; p0 < k; p0 += kSize) {
    const std::int64_t p1 = p0 + kSize < k ? p0 + kSize : k;
    for (int c = 0; c < kSize; ++c) {
      for (std::int64_t p = p0; p < p1; ++p) {
        out[p * width * kSize + c] = c < count ? source[p * k_stride + c * column_stride] : T(0);
      }
    }
  }
}

template <class T>
void pack_columns(const T* source, std::int64_t k_stride, std::int64_t column_stride,
                  std::int64_t columns, std::int64_t k, T* out) {
  const Columns<T> layout(columns);
  for (std::int64_t panel = 0; panel < layout.panels; ++panel) {
    const int width = layout.width(panel);
    for (int j = 0; j < width; ++j) {
      const std::int64_t first = (layout.first(panel) + j) * Vec<T>::kSize;
      const std::int64_t left = columns - first;
      pack_vector(source + first * column_stride, k_stride, column_stride,
                  static_cast<int>(left < Vec<T>::kSize ? left : Vec<T>::kSize), k, j, width,
                  out + layout.offset(panel, k));
    }
  }
}

template <class T>
void multiply_columns(std::int64_t m, std::int64_t n, std::int64_t k, const T* a, std::int64_t lda,
                      const T* packed, T beta, T* c, std::int64_t ldc) {
  using V = Vec<T>;
  constexpr std::int64_t kRows = 48;  // a block of rows meets each panel while both are in a cache
  const Columns<T> layout(n);
  alignas(64) T out[kRows * kMaxPanelVectors * V::kSize];
  const T* rows[kRows];
  for (std::int64_t i0 = 0; i0 < m; i0 += kRows) {
    const std::int64_t count = m - i0 < kRows ? m - i0 : kRows;
    for (std::int64_t i = 0; i < count; ++i) rows[i] = a + (i0 + i) * lda;
    for (std::int64_t panel = 0; panel < layout.panels; ++panel) {
      const int width = layout.width(panel);
      multiply(rows, count, width, k, 0, 0, packed + layout.offset(panel, k), out);
      const std::int64_t first = layout.first(panel) * V::kSize;
      const std::int64_t left = n - first;
      const std::int64_t columns = left < width * V::kSize ? left : width * V::kSize;
      for (std::int64_t i = 0; i < count; ++i) {
        const T* from = out + i * width * V::kSize;
        T* to = c + (i0 + i) * ldc + first;
        if (beta == T(0)) {
          for_each_vector<V>(columns,
                             [&](auto whole, std::int64_t j, int lanes) PENSTOCK_LAMBDA_INLINE {
                               if (decltype(whole)::value) {
                                 V::load(from + j).store(to + j);
                               } else {
                                 V::load(from + j, lanes).store(to + j, lanes);
                               }
                             });
        } else {
          for_each_vector<V>(
              columns, [&](auto whole, std::int64_t j, int lanes) PENSTOCK_LAMBDA_INLINE {
                if (decltype(whole)::value) {
                  (V::load(from + j) + V::load(to + j)).store(to + j);
                } else {
                  (V::load(from + j, lanes) + V::load(to + j, lanes)).store(to + j, lanes);
                }
              });
        }
      }
    }
  }
}

namespace {

template <class T>
std::int64_t size(std::int64_t n, std::int64_t k) {
  return Columns<T>(n).size(k);
}
template <class T>
void pack(bool trans_b, std::int64_t n, std::int64_t k, const T* b, std::int64_t ldb, T* packed) {
  pack_columns(b, trans_b ? 1 : ldb, trans_b ? ldb : 1, n, k, packed);
}

}  // namespace

const PanelKernels& panel_kernels() {
  static constexpr PanelKernels table = {&size<float>,
                                         &size<double>,
                                         &pack<float>,
                                         &pack<double>,
                                         &multiply_columns<float>,
                                         &multiply_columns<double>};
  return table;
}

#define PENSTOCK_INSTANTIATE(T)                                                                   \
  template void multiply<T>(const T* const*, std::int64_t, int, std::int64_t, std::int64_t,       \
                            std::int64_t, const T*, T*);                                          \
  template void pack_vector<T>(const T*, std::int64_t, std::int64_t, int, std::int64_t, int, int, \
                               T*);                                                               \
  template void pack_columns<T>(const T*, std::int64_t, std::int64_t, std::int64_t, std::int64_t, \
                                T*);                                                              \
  template void multiply_columns<T>(std::int64_t, std::int64_t, std::int64_t, const T*,           \
                                    std::int64_t, const T*, T, T*, std::int64_t);
PENSTOCK_INSTANTIATE(float)
PENSTOCK_INSTANTIATE(double)
#undef PENSTOCK_INSTANTIATE

}  // namespace penstock::cpu::PENSTOCK_ISA_NAMESPACE
