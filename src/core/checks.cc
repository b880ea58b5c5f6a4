#include "core/checks.h"

#include <algorithm>

namespace penstock::checks {
namespace {

std::string device_string(Device d) {
  return d.type == DeviceType::kCpu ? "cpu" : "cuda:" + std::to_string(d.index);
}

}  // namespace

void Checker::fail(ErrorCode code, const char* name, const std::string& what) const {
  throw Error(code, std::string(op_) + ": " + name + ": " + what);
}

void Checker::required(const char* name, const TensorView& v) const {
  if (!v.given()) fail(ErrorCode::kValue, name, "expected an array (actual: not given)");
}

void Checker::rank(const char* name, const TensorView& v, int rank, const char* formula) const {
  if (v.rank != rank) {
    fail(ErrorCode::kValue, name,
         std::string("expected shape ") + formula + " (actual: " + v.shape_string() + ")");
  }
}

void Checker::shape(const char* name, const TensorView& v,
                    std::initializer_list<std::int64_t> shape, const char* formula) const {
  if (v.rank == static_cast<int>(shape.size()) && std::equal(shape.begin(), shape.end(), v.shape)) {
    return;
  }
  std::string expected;
  for (std::int64_t n : shape) expected += (expected.empty() ? "" : ", ") + std::to_string(n);
  fail(ErrorCode::kValue, name,
       std::string("expected shape ") + formula + " = (" + expected +
           (shape.size() == 1 ? ",)" : ")") + " (actual: " + v.shape_string() + ")");
}

void Checker::device(const char* name, const TensorView& v) const {
  if (v.device != ctx_.device()) {
    fail(ErrorCode::kBuffer, name,
         "expected an array on " + device_string(ctx_.device()) +
             " (actual: " + device_string(v.device) + ")");
  }
  if (v.data == nullptr && v.numel() != 0) {
    fail(ErrorCode::kBuffer, name, "expected memory (actual: a null pointer)");
  }
}

void Checker::input(const char* name, const TensorView& v, DataType dtype,
                    std::initializer_list<std::int64_t> dims, const char* formula) {
  if (!v.given()) return;
  if (v.dtype != dtype) {
    fail(ErrorCode::kType, name,
         std::string("expected ") + name_of(dtype) + " (actual: " + name_of(v.dtype) + ")");
  }
  shape(name, v, dims, formula);
  device(name, v);
  remember(name, v);
}

void Checker::output(const char* name, const TensorView& v, DataType dtype,
                     std::initializer_list<std::int64_t> dims, const char* formula) {
  if (!v.given()) return;
  if (v.dtype != dtype) {
    fail(ErrorCode::kType, name,
         std::string("expected ") + name_of(dtype) + " (actual: " + name_of(v.dtype) + ")");
  }
  shape(name, v, dims, formula);
  device(name, v);
  if (v.read_only) fail(ErrorCode::kBuffer, name, "expected a writable array (actual: read-only)");
  if (!v.contiguous()) {
    fail(ErrorCode::kBuffer, name, "expected a contiguous output (actual: strided)");
  }
  no_overlap(name, v);
  remember(name, v);
}

void Checker::buffer(const char* name, const TensorView& v, std::size_t bytes,
                     std::size_t alignment, bool written) {
  if (bytes == 0) return;
  required(name, v);
  if (v.dtype != DataType::kUInt8 || v.rank != 1 || !v.contiguous()) {
    fail(ErrorCode::kType, name, "expected a contiguous one-dimensional uint8 array");
  }
  device(name, v);
  if (static_cast<std::size_t>(v.numel()) < bytes) {
    fail(ErrorCode::kValue, name,
         "expected at least " + std::to_string(bytes) +
             " bytes (actual: " + std::to_string(v.numel()) + ")");
  }
  if (reinterpret_cast<std::uintptr_t>(v.data) % alignment != 0) {
    fail(ErrorCode::kBuffer, name,
         "expected memory aligned to " + std::to_string(alignment) + " bytes");
  }
  if (written && v.read_only) {
    fail(ErrorCode::kBuffer, name, "expected a writable array (actual: read-only)");
  }
  no_overlap(name, v);
  remember(name, v);
}

namespace {

// The bytes between the lowest and the highest element, whatever the signs of the strides.
void byte_range(const TensorView& v, std::uintptr_t* begin, std::uintptr_t* end) {
  std::int64_t low = 0, high = 0;
  for (int axis = 0; axis < v.rank; ++axis) {
    const std::int64_t reach = (v.shape[axis] - 1) * v.strides[axis];
    (reach < 0 ? low : high) += reach;
  }
  const auto item = static_cast<std::int64_t>(size_of(v.dtype));
  const auto base = reinterpret_cast<std::uintptr_t>(v.data);
  *begin = base + static_cast<std::uintptr_t>(low * item);
  *end = base + static_cast<std::uintptr_t>((high + 1) * item);
}

}  // namespace

void Checker::remember(const char* name, const TensorView& v) {
  if (v.numel() == 0 || range_count_ == kMaxRanges) return;
  Range& r = ranges_[range_count_++];
  r.name = name;
  byte_range(v, &r.begin, &r.end);
}

void Checker::no_overlap(const char* name, const TensorView& v) const {
  if (v.numel() == 0) return;
  std::uintptr_t begin = 0, end = 0;
  byte_range(v, &begin, &end);
  for (int i = 0; i < range_count_; ++i) {
    if (begin < ranges_[i].end && ranges_[i].begin < end) {
      fail(ErrorCode::kBuffer, name,
           std::string("expected memory of its own (actual: overlaps ") + ranges_[i].name + ")");
    }
  }
}

}  // namespace penstock::checks
