// Matrix products against weights that were packed into panels: the recurrent products, and W x
// where there is no matrix unit. Declared per instruction set; include only from sources compiled
// so.
//
// A panel is kVectors vectors wide: for each k, kVectors vectors of neighbouring columns. Every
// element of a product is one chain of multiply-adds along k, so a row's result does not depend on
// how many rows there are.
#pragma once

#include <cstdint>

#include "cpu/vec.h"

namespace penstock::cpu::PENSTOCK_ISA_NAMESPACE {

constexpr int kMaxPanelVectors = 4;

/// Most vectors that a panel of plain columns has.
constexpr int kWidePanel = kVectorBytes == 64 ? 4 : 3;

/// Panels over `columns` plain columns: as few as possible, as even as possible.
template <class T>
struct Columns {
  std::int64_t columns, vectors, panels;
  PENSTOCK_INLINE explicit Columns(std::int64_t n) : columns(n) {
    vectors = (n + Vec<T>::kSize - 1) / Vec<T>::kSize;
    panels = (vectors + kWidePanel - 1) / kWidePanel;
  }
  /// First vector of a panel.
  PENSTOCK_INLINE std::int64_t first(std::int64_t panel) const { return vectors * panel / panels; }
  PENSTOCK_INLINE int width(std::int64_t panel) const {
    return static_cast<int>(first(panel + 1) - first(panel));
  }
  /// Elements in memory for products over k.
  PENSTOCK_INLINE std::int64_t size(std::int64_t k) const { return vectors * Vec<T>::kSize * k; }
  PENSTOCK_INLINE std::int64_t offset(std::int64_t panel, std::int64_t k) const {
    return first(panel) * Vec<T>::kSize * k;
  }
};

/// Pack column c, k elements k_stride apart and columns column_stride apart, for `columns` columns.
template <class T>
void pack_columns(const T* source, std::int64_t k_stride, std::int64_t column_stride,
                  std::int64_t columns, std::int64_t k, T* out);

/// Pack one vector's worth of columns, `count` of them, into vector `at` of a panel `width` wide.
template <class T>
void pack_vector(const T* source, std::int64_t k_stride, std::int64_t column_stride, int count,
                 std::int64_t k, int at, int width, T* panel);

/// out[row][vector] (row after row, `width` vectors each) = rows · panel, over k1 elements of each
/// row and, `gap` further on, k2 more.
template <class T>
void multiply(const T* const* rows, std::int64_t count, int width, std::int64_t k1,
              std::int64_t gap, std::int64_t k2, const T* panel, T* out);

/// C (m, n) = A (m, k) · packed columns + beta C, beta 0 or 1.
template <class T>
void multiply_columns(std::int64_t m, std::int64_t n, std::int64_t k, const T* a, std::int64_t lda,
                      const T* packed, T beta, T* c, std::int64_t ldc);

}  // namespace penstock::cpu::PENSTOCK_ISA_NAMESPACE
