// Arrays for the tests: an element type, a shape, values given and read as double.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "backends.h"
#include "cpu/half.h"
#include "penstock/tensor_view.h"

namespace penstock::tests {

using Shape = std::vector<std::int64_t>;

enum class Layout { kContiguous, kFortran, kNegative, kGaps };

inline std::int64_t product(const Shape& shape) {
  std::int64_t n = 1;
  for (std::int64_t s : shape) n *= s;
  return n;
}

inline double read_element(const void* p, DataType dtype, std::int64_t i) {
  switch (dtype) {
    case DataType::kFloat32: return static_cast<const float*>(p)[i];
    case DataType::kFloat64: return static_cast<const double*>(p)[i];
    case DataType::kFloat16: return static_cast<float>(static_cast<const cpu::Float16*>(p)[i]);
    case DataType::kBFloat16: return static_cast<float>(static_cast<const cpu::BFloat16*>(p)[i]);
    case DataType::kInt32: return static_cast<const std::int32_t*>(p)[i];
    case DataType::kInt64: return static_cast<double>(static_cast<const std::int64_t*>(p)[i]);
    case DataType::kBool:
    case DataType::kUInt8: return static_cast<const std::uint8_t*>(p)[i];
  }
  return 0.0;
}

inline void write_element(void* p, DataType dtype, std::int64_t i, double v) {
  switch (dtype) {
    case DataType::kFloat32: static_cast<float*>(p)[i] = static_cast<float>(v); break;
    case DataType::kFloat64: static_cast<double*>(p)[i] = v; break;
    case DataType::kFloat16:
      static_cast<cpu::Float16*>(p)[i] = cpu::Float16::from(static_cast<float>(v));
      break;
    case DataType::kBFloat16:
      static_cast<cpu::BFloat16*>(p)[i] = cpu::BFloat16::from(static_cast<float>(v));
      break;
    case DataType::kInt32: static_cast<std::int32_t*>(p)[i] = static_cast<std::int32_t>(v); break;
    case DataType::kInt64: static_cast<std::int64_t*>(p)[i] = static_cast<std::int64_t>(v); break;
    case DataType::kBool:
    case DataType::kUInt8: static_cast<std::uint8_t*>(p)[i] = static_cast<std::uint8_t>(v); break;
  }
}

/// Owns its elements: 256-byte aligned, exactly as long as needed (so that a sanitizer sees every
/// step outside), and all bits set (NaN, for floating types) until something is written.
class Array {
 public:
  Array() = default;
  Array(DataType dtype, const Shape& shape, Layout layout = Layout::kContiguous) {
    std::vector<std::int64_t> strides(shape.size());
    std::int64_t stride = layout == Layout::kGaps ? 2 : 1, last = 0, first = 0;
    for (std::size_t i = 0; i < shape.size(); ++i) {
      const std::size_t axis = layout == Layout::kFortran ? i : shape.size() - 1 - i;
      strides[axis] = layout == Layout::kNegative && axis % 2 == 0 ? -stride : stride;
      const std::int64_t reach = strides[axis] * (shape[axis] - 1);
      (reach < 0 ? first : last) += reach;
      stride *= shape[axis];
    }
    const bool empty = product(shape) == 0;
    bytes_ = empty ? 0 : static_cast<std::size_t>(last - first + 1) * size_of(dtype);
    const Memory& memory = current_memory();
    memory_.reset(memory.allocate(bytes_ == 0 ? 1 : bytes_), memory.release);
    std::memset(memory_.get(), 0xff, bytes_);
    view_.data = static_cast<char*>(memory_.get()) +
                 (empty ? 0 : -first * static_cast<std::int64_t>(size_of(dtype)));
    view_.dtype = dtype;
    view_.rank = static_cast<int>(shape.size());
    for (std::size_t i = 0; i < shape.size(); ++i) {
      view_.shape[i] = shape[i];
      view_.strides[i] = strides[i];
    }
  }
  Array(DataType dtype, const Shape& shape, const std::vector<double>& values,
        Layout layout = Layout::kContiguous)
      : Array(dtype, shape, layout) {
    set(values);
  }
  static Array bytes(std::size_t n) {
    return Array(DataType::kUInt8, {static_cast<std::int64_t>(n)});
  }

  /// "Not given" for a default-constructed array.
  const TensorView& view() const { return view_; }
  bool given() const { return view_.given(); }

  /// In row-major order, whatever the layout.
  void set(const std::vector<double>& values) {
    current_memory().synchronize();
    for (std::int64_t i = 0; i < view_.numel(); ++i) {
      write_element(view_.data, view_.dtype, offset(i), values[static_cast<std::size_t>(i)]);
    }
  }
  std::vector<double> get() const {
    current_memory().synchronize();
    std::vector<double> values(given() ? static_cast<std::size_t>(view_.numel()) : 0);
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] = read_element(view_.data, view_.dtype, offset(static_cast<std::int64_t>(i)));
    }
    return values;
  }
  /// Its memory, byte by byte.
  std::vector<unsigned char> raw() const {
    current_memory().synchronize();
    const auto* p = static_cast<const unsigned char*>(memory_.get());
    return std::vector<unsigned char>(p, p + bytes_);
  }

 private:
  std::int64_t offset(std::int64_t i) const {
    std::int64_t at = 0;
    for (int axis = view_.rank - 1; axis >= 0; --axis) {
      at += i % view_.shape[axis] * view_.strides[axis];
      i /= view_.shape[axis];
    }
    return at;
  }

  std::shared_ptr<void> memory_;
  std::size_t bytes_ = 0;
  TensorView view_;
};

/// Pseudo-random numbers in [-1, 1], the same on every platform.
class Numbers {
 public:
  explicit Numbers(std::uint64_t seed) : state_(seed * 2 + 1) {}
  std::uint64_t bits() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_ >> 11;
  }
  double next() { return static_cast<double>(bits()) * 0x1p-52 - 1.0; }
  std::vector<double> take(std::int64_t n, double scale = 1.0) {
    std::vector<double> v(static_cast<std::size_t>(n));
    for (double& x : v) x = scale * next();
    return v;
  }

 private:
  std::uint64_t state_;
};

}  // namespace penstock::tests
