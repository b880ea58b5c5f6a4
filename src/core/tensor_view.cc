#include "penstock/tensor_view.h"

#include "penstock/error.h"

namespace penstock {

TensorView::TensorView(void* data_, DataType dtype_, std::initializer_list<std::int64_t> shape_,
                       Device device_)
    : data(data_), dtype(dtype_), device(device_), rank(static_cast<int>(shape_.size())) {
  if (rank > kMaxRank) {
    throw Error(ErrorCode::kValue,
                "TensorView: expected at most 4 axes (actual: " + std::to_string(rank) + ")");
  }
  int axis = 0;
  for (std::int64_t n : shape_) shape[axis++] = n;
  std::int64_t stride = 1;
  for (axis = rank - 1; axis >= 0; --axis) {
    strides[axis] = stride;
    stride *= shape[axis];
  }
}

TensorView::TensorView(const void* data_, DataType dtype_,
                       std::initializer_list<std::int64_t> shape_, Device device_)
    : TensorView(const_cast<void*>(data_), dtype_, shape_, device_) {
  read_only = true;
}

std::int64_t TensorView::numel() const {
  if (rank < 0) return 0;
  std::int64_t n = 1;
  for (int axis = 0; axis < rank; ++axis) n *= shape[axis];
  return n;
}

bool TensorView::contiguous() const {
  if (numel() == 0) return true;
  std::int64_t expected = 1;
  for (int axis = rank - 1; axis >= 0; --axis) {
    if (shape[axis] != 1 && strides[axis] != expected) return false;
    expected *= shape[axis];
  }
  return true;
}

std::string TensorView::shape_string() const {
  std::string s = "(";
  for (int axis = 0; axis < rank; ++axis) {
    if (axis > 0) s += ", ";
    s += std::to_string(shape[axis]);
  }
  return s + (rank == 1 ? ",)" : ")");
}

}  // namespace penstock
