// A non-owning view of an array.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>

#include "penstock/export.h"
#include "penstock/types.h"

namespace penstock {

/// Shape, strides (in elements, any sign) and address of an array that somebody else owns.
/// A default-constructed view stands for "not given".
struct PENSTOCK_EXPORT TensorView {
  static constexpr int kMaxRank = 4;

  void* data = nullptr;
  DataType dtype = DataType::kFloat32;
  Device device;
  int rank = -1;
  bool read_only = false;
  std::int64_t shape[kMaxRank] = {};
  std::int64_t strides[kMaxRank] = {};

  TensorView() = default;
  /// A contiguous view with row-major strides.
  TensorView(void* data, DataType dtype, std::initializer_list<std::int64_t> shape,
             Device device = {});
  /// A contiguous read-only view.
  TensorView(const void* data, DataType dtype, std::initializer_list<std::int64_t> shape,
             Device device = {});

  bool given() const { return rank >= 0; }
  std::int64_t numel() const;
  std::int64_t nbytes() const { return numel() * static_cast<std::int64_t>(size_of(dtype)); }
  /// Whether elements lie in row-major order without gaps (axes of length 1 do not count).
  bool contiguous() const;
  /// "(3, 4)"
  std::string shape_string() const;

  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

}  // namespace penstock
