// Inputs in the form that kernels read: contiguous and of the type that they compute in, converted
// into the workspace where they are not. The same code measures the workspace and fills it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/backend.h"
#include "core/workspace.h"
#include "penstock/context.h"
#include "penstock/tensor_view.h"

namespace penstock {

inline void* advance(void* base, std::int64_t elements, std::size_t size) {
  return static_cast<char*>(base) + elements * static_cast<std::int64_t>(size);
}
inline const void* advance(const void* base, std::int64_t elements, std::size_t size) {
  return static_cast<const char*>(base) + elements * static_cast<std::int64_t>(size);
}

/// A contiguous array of v's shape at `data`.
inline TensorView contiguous_like(const TensorView& v, void* data, DataType dtype) {
  TensorView r(data, dtype, {}, v.device);
  r.rank = v.rank;
  std::int64_t stride = 1;
  for (int axis = v.rank - 1; axis >= 0; --axis) {
    r.shape[axis] = v.shape[axis];
    r.strides[axis] = stride;
    stride *= v.shape[axis];
  }
  return r;
}

class Operands {
 public:
  /// `workspace` null: only measure.
  Operands(const Context& ctx, void* workspace)
      : ctx_(ctx),
        backend_(ctx.backend()),
        carver_(workspace, ctx.backend().alignment),
        run_(workspace != nullptr) {}

  bool run() const { return run_; }
  std::size_t bytes() const { return carver_.bytes(); }
  void* take(std::size_t bytes) { return carver_.take(bytes); }
  void* zeros(std::size_t bytes) {
    void* piece = take(bytes);
    if (run_) backend_.fill_zero(ctx_, piece, bytes);
    return piece;
  }
  /// `v` itself if it is contiguous and of `dtype`, else (or if `copy`) a copy in the workspace.
  const void* contiguous(const TensorView& v, DataType dtype, bool copy = false) {
    if (!copy && v.dtype == dtype && v.contiguous()) return v.data;
    void* piece = take(static_cast<std::size_t>(v.numel()) * size_of(dtype));
    if (run_) backend_.convert(ctx_, v, contiguous_like(v, piece, dtype));
    return piece;
  }
  /// place = v, or zeros where v is not given; `values` elements of `dtype`.
  void initialise(const TensorView& v, void* place, DataType dtype, std::int64_t values) const {
    if (v.given()) {
      backend_.convert(ctx_, v, contiguous_like(v, place, dtype));
    } else {
      backend_.fill_zero(ctx_, place, static_cast<std::size_t>(values) * size_of(dtype));
    }
  }
  /// The output `v` itself if it is of `dtype`, else a place in the workspace to convert from.
  void* place(const TensorView& v, DataType dtype) {
    if (v.dtype == dtype) return v.data;
    return take(static_cast<std::size_t>(v.numel()) * size_of(dtype));
  }
  /// Fill the output `v` from its place.
  void deliver(const void* place, DataType dtype, const TensorView& v) const {
    if (place == v.data) return;
    backend_.convert(ctx_, contiguous_like(v, const_cast<void*>(place), dtype), v);
  }

 private:
  const Context& ctx_;
  const Backend& backend_;
  Carver carver_;
  bool run_;
};

}  // namespace penstock
