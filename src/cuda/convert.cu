#include "cuda/convert.h"

#include <string>

#include "cuda/launch.h"
#include "cuda/numeric.h"

namespace penstock::cuda {
namespace {

constexpr int kThreads = 256;

/// Shape and strides (in elements) of a copy.
struct Layout {
  int rank = 0;
  std::int64_t n[TensorView::kMaxRank] = {};
  std::int64_t from[TensorView::kMaxRank] = {};
  std::int64_t to[TensorView::kMaxRank] = {};
};

/// Drop axes of length 1 and merge neighbours that both sides step through evenly, so that a
/// contiguous copy has one axis and needs no division.
Layout simplify(const TensorView& src, const TensorView& dst) {
  Layout l;
  for (int axis = 0; axis < src.rank; ++axis) {
    const std::int64_t n = src.shape[axis];
    if (n == 1) continue;
    const int last = l.rank - 1;
    if (l.rank > 0 && l.from[last] == src.strides[axis] * n &&
        l.to[last] == dst.strides[axis] * n) {
      l.n[last] *= n;
      l.from[last] = src.strides[axis];
      l.to[last] = dst.strides[axis];
    } else {
      l.n[l.rank] = n;
      l.from[l.rank] = src.strides[axis];
      l.to[l.rank] = dst.strides[axis];
      ++l.rank;
    }
  }
  return l;
}

template <class To, class From>
__device__ __forceinline__ To cast(From v) {
  return static_cast<To>(v);
}
template <>
__device__ __forceinline__ float cast(__half v) {
  return widen(v);
}
template <>
__device__ __forceinline__ float cast(__nv_bfloat16 v) {
  return widen(v);
}
template <>
__device__ __forceinline__ __half cast(float v) {
  return narrow<__half>(v);
}
template <>
__device__ __forceinline__ __nv_bfloat16 cast(float v) {
  return narrow<__nv_bfloat16>(v);
}
template <>
__device__ __forceinline__ __half cast(double v) {
  return narrow<__half>(static_cast<float>(v));
}
template <>
__device__ __forceinline__ __nv_bfloat16 cast(double v) {
  return narrow<__nv_bfloat16>(static_cast<float>(v));
}

// dst = src with conversion.
// Work split: one element per thread and turn, threads stride over the grid; neighbours in the last
// axis are neighbouring threads. Traffic: each element read once, written once.
// Limits: up to 4 axes, 64-bit offsets. Invariant: src and dst do not overlap (the ops check).
template <class From, class To>
__global__ void __launch_bounds__(kThreads)
    convert_kernel(Layout l, std::int64_t count, const From* src, To* dst) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    std::int64_t rest = i, from = 0, to = 0;
    // Unrolled, so that the layout stays in constant memory.
#pragma unroll
    for (int axis = TensorView::kMaxRank - 1; axis > 0; --axis) {
      if (axis >= l.rank) continue;
      const std::int64_t outer = rest / l.n[axis];
      const std::int64_t at = rest - outer * l.n[axis];
      from += at * l.from[axis];
      to += at * l.to[axis];
      rest = outer;
    }
    dst[to + rest * l.to[0]] = cast<To>(src[from + rest * l.from[0]]);
  }
}

template <class From, class To>
void convert_as(const Context& ctx, const TensorView& src, const TensorView& dst) {
  const std::int64_t count = src.numel();
  launch(ctx, "convert", convert_kernel<From, To>, grid_stride(count, kThreads), simplify(src, dst),
         count, static_cast<const From*>(src.data), static_cast<To*>(dst.data));
}

// Zero the rows of x (rows, width) whose step is padding.
// Work split: a block per row and turn, its threads along the row. Traffic: one look at the padding
// per thread, writes to padded rows only.
template <class Element>
__global__ void __launch_bounds__(kThreads)
    zero_padded_kernel(Element* x, std::int64_t rows, std::int64_t batch, std::int64_t width,
                       Padding padding) {
  for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    if (!padding.at(row / batch, row % batch, batch)) continue;
    for (std::int64_t i = threadIdx.x; i < width; i += blockDim.x) x[row * width + i] = Element(0);
  }
}

template <class Element>
void zero_padded_as(const Context& ctx, void* x, std::int64_t steps, std::int64_t batch,
                    std::int64_t width, const Padding& padding) {
  const std::int64_t rows = steps * batch;
  LaunchShape shape = grid_stride(rows, 1);
  shape.block =
      dim3(static_cast<unsigned>(std::min<std::int64_t>(kThreads, (width + 31) / 32 * 32)));
  launch(ctx, "zero_padded", zero_padded_kernel<Element>, shape, static_cast<Element*>(x), rows,
         batch, width, padding);
}

// dst += src.
// Work split: one element per thread and turn, threads stride over the grid. Traffic: both once in,
// dst once out. Sums of 16-bit types are rounded once.
template <class T>
__global__ void __launch_bounds__(kThreads) add_kernel(const T* src, T* dst, std::int64_t n) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n;
       i += step) {
    dst[i] = narrow<T>(widen(dst[i]) + widen(src[i]));
  }
}

}  // namespace

void convert(const Context& ctx, const TensorView& src, const TensorView& dst) {
  if (src.numel() == 0) return;
  const DeviceGuard guard(ctx);
  const auto is = [&](DataType a, DataType b) { return src.dtype == a && dst.dtype == b; };
  if (src.dtype == dst.dtype || is(DataType::kBool, DataType::kUInt8)) {
    if (src.contiguous() && dst.contiguous()) {
      return check(cudaMemcpyAsync(dst.data, src.data, static_cast<std::size_t>(src.nbytes()),
                                   cudaMemcpyDeviceToDevice, stream_of(ctx)),
                   "cudaMemcpyAsync");
    }
    switch (size_of(src.dtype)) {
      case 1: return convert_as<std::uint8_t, std::uint8_t>(ctx, src, dst);
      case 2: return convert_as<std::uint16_t, std::uint16_t>(ctx, src, dst);
      case 4: return convert_as<std::uint32_t, std::uint32_t>(ctx, src, dst);
      default: return convert_as<std::uint64_t, std::uint64_t>(ctx, src, dst);
    }
  }
  using D = DataType;
  if (is(D::kFloat16, D::kFloat32)) return convert_as<__half, float>(ctx, src, dst);
  if (is(D::kFloat32, D::kFloat16)) return convert_as<float, __half>(ctx, src, dst);
  if (is(D::kBFloat16, D::kFloat32)) return convert_as<__nv_bfloat16, float>(ctx, src, dst);
  if (is(D::kFloat32, D::kBFloat16)) return convert_as<float, __nv_bfloat16>(ctx, src, dst);
  if (is(D::kFloat64, D::kFloat32)) return convert_as<double, float>(ctx, src, dst);
  if (is(D::kFloat64, D::kFloat16)) return convert_as<double, __half>(ctx, src, dst);
  if (is(D::kFloat64, D::kBFloat16)) return convert_as<double, __nv_bfloat16>(ctx, src, dst);
  if (is(D::kInt32, D::kInt64)) return convert_as<std::int32_t, std::int64_t>(ctx, src, dst);
  throw Error(ErrorCode::kType, std::string("convert: no conversion from ") + name_of(src.dtype) +
                                    " to " + name_of(dst.dtype));
}

void fill_zero(const Context& ctx, void* data, std::size_t bytes) {
  if (bytes == 0) return;
  const DeviceGuard guard(ctx);
  check(cudaMemsetAsync(data, 0, bytes, stream_of(ctx)), "cudaMemsetAsync");
}

void zero_padded(const Context& ctx, void* x, DataType dtype, std::int64_t steps,
                 std::int64_t batch, std::int64_t width, const Padding& padding) {
  if (steps * batch * width == 0) return;
  const DeviceGuard guard(ctx);
  switch (size_of(dtype)) {
    case 2: return zero_padded_as<std::uint16_t>(ctx, x, steps, batch, width, padding);
    case 4: return zero_padded_as<std::uint32_t>(ctx, x, steps, batch, width, padding);
    default: return zero_padded_as<std::uint64_t>(ctx, x, steps, batch, width, padding);
  }
}

void add(const Context& ctx, const void* src, void* dst, DataType dtype, std::int64_t n) {
  if (n == 0) return;
  const DeviceGuard guard(ctx);
  with_type(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(ctx, "add", add_kernel<T>, grid_stride(n, kThreads), static_cast<const T*>(src),
           static_cast<T*>(dst), n);
  });
}

}  // namespace penstock::cuda
