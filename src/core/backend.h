// The one seam between operations and backends: a table of functions that each backend fills in.
// Operations (src/cells/X.cc) call through it and never name a device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "core/scalar_math.h"
#include "penstock/context.h"
#include "penstock/tensor_view.h"

namespace penstock {

/// Bumped whenever a layout below changes; a plugin built for another number is refused.
constexpr std::uint32_t kBackendAbi = 5;

/// Address boundary that a reserve starts at. XLA aligns arrays, one of which a reserve is there,
/// to 64 bytes on the CPU and to 128 on CUDA.
constexpr std::size_t kReserveAlignment = 64;

/// C = op(A) · op(B) + beta · C, row-major, `batch` times with the given strides (in elements).
/// op(A) is (m, k), op(B) is (k, n), C is (m, n). Sums are kept in float32 for 16-bit types.
/// With beta = 0 what C held is never read.
struct GemmArgs {
  DataType dtype = DataType::kFloat32;
  bool trans_a = false;
  bool trans_b = false;
  std::int64_t m = 0, n = 0, k = 0;
  const void* a = nullptr;
  std::int64_t lda = 0, stride_a = 0;
  const void* b = nullptr;
  std::int64_t ldb = 0, stride_b = 0;
  double beta = 0.0;
  void* c = nullptr;
  std::int64_t ldc = 0, stride_c = 0;
  std::int64_t batch = 1;
  void* workspace = nullptr;  // Backend::gemm_workspace_bytes, 256-byte aligned
  /// op(B) as Backend::pack_b left it, or null; only with batch = 1, beta 0 or 1, and without
  /// trans_a. `b` must be given all the same.
  const void* packed_b = nullptr;
};

/// Which steps of a padded batch count: step (t, b) is padding if `pad` says so or if it is not
/// among the first lengths[b] steps.
struct Padding {
  const std::uint8_t* pad = nullptr;      // (T, B) contiguous, or null
  const std::int64_t* lengths = nullptr;  // (B,), or null
  std::int64_t left_of = -1;              // T if the last lengths[b] steps count instead, else -1
  PENSTOCK_HOST_DEVICE bool at(std::int64_t t, std::int64_t b, std::int64_t batch) const {
    if (pad != nullptr && pad[t * batch + b] != 0) return true;
    if (lengths == nullptr) return false;
    return left_of >= 0 ? t < left_of - lengths[b] : t >= lengths[b];
  }
};

/// Function to run for item `i` of a for_each.
using ItemFunction = void (*)(void* user, std::int64_t i);

struct Backend {
  std::uint32_t abi;
  const char* name;
  DeviceType device_type;
  /// Whether op code may read this backend's memory (to check values, for example).
  bool host_accessible;
  /// Address boundary that workspace pieces start at.
  std::size_t alignment;

  /// Element type that arithmetic uses for arrays of `dtype`: itself, or float32 where 16-bit
  /// arrays are converted at the edges.
  DataType (*compute_dtype)(DataType dtype);
  std::size_t (*gemm_workspace_bytes)();

  /// Number of usable devices; on 0 the reason is in words in `why` (of `size` bytes).
  int (*device_count)(char* why, std::size_t size);
  /// Prepare a device (library handles); throws Error. Called once per context, never under
  /// capture.
  void (*prepare_device)(int index);

  void (*gemm)(const Context&, const GemmArgs&);
  /// dst = src, element by element, converting the element type; equal shapes, any strides.
  void (*convert)(const Context&, const TensorView& src, const TensorView& dst);
  void (*fill_zero)(const Context&, void* data, std::size_t bytes);
  /// Zero the rows of x (T, B, width), contiguous, whose step is padding.
  void (*zero_padded)(const Context&, void* x, DataType dtype, std::int64_t steps,
                      std::int64_t batch, std::int64_t width, const Padding&);
  /// dst[i] += src[i] for n contiguous elements.
  void (*add)(const Context&, const void* src, void* dst, DataType dtype, std::int64_t n);
  /// totals[j] = (accumulate ? totals[j] : 0) + sum over i of a[i * lda + j], in a fixed order.
  void (*sum_rows)(const Context&, const void* a, DataType dtype, std::int64_t rows,
                   std::int64_t columns, std::int64_t lda, double* totals, bool accumulate);
  /// Call fn(user, i) for i in [0, n), in any order and perhaps in parallel; `work` is the total
  /// number of multiply-adds, from which the backend judges whether threads pay.
  void (*for_each)(const Context&, std::int64_t n, double work, ItemFunction fn, void* user);

  /// The kernels that a cell registered under `name` (src/cells/X_kernels.h), or null.
  const void* (*cell_kernels)(const char* name);

  /// For a B that several products share: bytes of the form that products read, and its making,
  /// from B as in GemmArgs. Both null in backends without such a form. A row of a product with such
  /// a B does not depend on the number of rows, nor on what the others hold.
  std::size_t (*packed_b_bytes)(DataType dtype, std::int64_t n, std::int64_t k) = nullptr;
  void (*pack_b)(const Context&, const GemmArgs&, void* packed) = nullptr;
};

/// Call a C++ callable through Backend::for_each.
template <class F>
void for_each(const Context& ctx, std::int64_t n, double work, F&& fn) {
  ctx.backend().for_each(
      ctx, n, work, [](void* user, std::int64_t i) { (*static_cast<F*>(user))(i); },
      const_cast<void*>(static_cast<const void*>(&fn)));
}

const Backend& cpu_backend();
/// What arrays in host memory go to: the CPU backend, unless PENSTOCK_HOST_PLUGIN names a plugin
/// that takes host memory, as the emulated CUDA backend of the tests does.
const Backend& host_backend();
/// The CUDA plugin's table, loaded on first use; throws Error(kRuntime) with the reason.
const Backend& cuda_backend();
/// The reason in words why cuda_backend() throws, or the devices it has; never throws.
bool cuda_status(std::string* words);

/// What a plugin exports, as `extern "C" const penstock::Backend* penstock_plugin_backend()`.
using PluginEntry = const Backend* (*)();
constexpr const char* kPluginEntryName = "penstock_plugin_backend";

}  // namespace penstock
