// The CPU's entry in the backend table.

#include <cstring>
#include <string>
#include <type_traits>

#include "core/backend.h"
#include "cpu/amx.h"
#include "cpu/blas.h"
#include "cpu/cells.h"
#include "cpu/gemm.h"
#include "cpu/half.h"
#include "cpu/threads.h"
#include "penstock/error.h"

namespace penstock {
namespace cpu {
namespace {

DataType compute_dtype(DataType dtype) {
  return dtype == DataType::kFloat16 || dtype == DataType::kBFloat16 ? DataType::kFloat32 : dtype;
}

std::size_t gemm_workspace_bytes() { return 0; }

int device_count(char*, std::size_t) { return 1; }
void prepare_device(int) {}

void own_gemm(const GemmArgs& g, const float* a, const float* b, float beta, float* c) {
  gemm_kernels().f32(g.trans_a, g.trans_b, g.m, g.n, g.k, a, g.lda, b, g.ldb, beta, c, g.ldc);
}
void own_gemm(const GemmArgs& g, const double* a, const double* b, double beta, double* c) {
  gemm_kernels().f64(g.trans_a, g.trans_b, g.m, g.n, g.k, a, g.lda, b, g.ldb, beta, c, g.ldc);
}

// Sums over time, of which large terms decide, may go to the matrix unit as they are; other
// products do with a packed B, whose rows are balanced.
void large_gemm(const GemmArgs& g, const float* a, const float* b, float beta, float* c) {
  if (g.trans_a && (beta == 0.0f || beta == 1.0f) && fixed_gemm_pays(g.m, g.n, g.k)) {
    fixed_gemm(true, g.trans_b, g.m, g.n, g.k, a, g.lda, b, g.ldb, beta, c, g.ldc);
  } else {
    blas_gemm(g.trans_a, g.trans_b, g.m, g.n, g.k, a, g.lda, b, g.ldb, beta, c, g.ldc);
  }
}
void large_gemm(const GemmArgs& g, const double* a, const double* b, double beta, double* c) {
  blas_gemm(g.trans_a, g.trans_b, g.m, g.n, g.k, a, g.lda, b, g.ldb, beta, c, g.ldc);
}

// Which form a packed B has, by its own size alone, so that a row's result does not depend on how
// many rows a product has.
bool packed_for_fixed(DataType dtype, std::int64_t n, std::int64_t k) {
  return dtype == DataType::kFloat32 && fixed_gemm_pays_packed(n, k);
}

void packed_gemm(const GemmArgs& g) {
  if (packed_for_fixed(g.dtype, g.n, g.k)) {
    fixed_gemm(g.trans_a, g.trans_b, g.m, g.n, g.k, static_cast<const float*>(g.a), g.lda,
               static_cast<const float*>(g.b), g.ldb, static_cast<float>(g.beta),
               static_cast<float*>(g.c), g.ldc, g.packed_b);
  } else if (g.dtype == DataType::kFloat64) {
    panel_kernels().f64(g.m, g.n, g.k, static_cast<const double*>(g.a), g.lda,
                        static_cast<const double*>(g.packed_b), g.beta, static_cast<double*>(g.c),
                        g.ldc);
  } else {
    panel_kernels().f32(g.m, g.n, g.k, static_cast<const float*>(g.a), g.lda,
                        static_cast<const float*>(g.packed_b), static_cast<float>(g.beta),
                        static_cast<float*>(g.c), g.ldc);
  }
}

template <class T>
void gemm_as(const GemmArgs& g) {
  const auto* a = static_cast<const T*>(g.a);
  const auto* b = static_cast<const T*>(g.b);
  auto* c = static_cast<T*>(g.c);
  const T beta = static_cast<T>(g.beta);
  // One step of one sequence, among others: a BLAS takes long over these.
  const bool few_rows = !g.trans_a && g.m <= (g.trans_b ? kFewRows : 1);
  const bool outer = g.k == 1 && !g.trans_b;
  for (std::int64_t i = 0; i < g.batch; ++i) {
    if (outer || few_rows) {
      own_gemm(g, a, b, beta, c);
    } else {
      large_gemm(g, a, b, beta, c);
    }
    a += g.stride_a;
    b += g.stride_b;
    c += g.stride_c;
  }
}

void gemm(const Context&, const GemmArgs& g) {
  if (g.m == 0 || g.n == 0) return;
  if (g.packed_b != nullptr) {
    packed_gemm(g);
  } else if (g.dtype == DataType::kFloat64) {
    gemm_as<double>(g);
  } else {
    gemm_as<float>(g);
  }
}

std::size_t packed_b_bytes(DataType dtype, std::int64_t n, std::int64_t k) {
  if (packed_for_fixed(dtype, n, k)) return fixed_gemm_packed_b_bytes(n, k);
  if (dtype == DataType::kFloat64) {
    return static_cast<std::size_t>(panel_kernels().size_f64(n, k)) * sizeof(double);
  }
  return static_cast<std::size_t>(panel_kernels().size_f32(n, k)) * sizeof(float);
}

void pack_b(const Context&, const GemmArgs& g, void* packed) {
  if (packed_for_fixed(g.dtype, g.n, g.k)) {
    fixed_gemm_pack_b(g.trans_b, g.n, g.k, static_cast<const float*>(g.b), g.ldb, packed);
  } else if (g.dtype == DataType::kFloat64) {
    panel_kernels().pack_f64(g.trans_b, g.n, g.k, static_cast<const double*>(g.b), g.ldb,
                             static_cast<double*>(packed));
  } else {
    panel_kernels().pack_f32(g.trans_b, g.n, g.k, static_cast<const float*>(g.b), g.ldb,
                             static_cast<float*>(packed));
  }
}

template <class To, class From>
To cast(From v) {
  return static_cast<To>(v);
}
template <>
Float16 cast(float v) {
  return Float16::from(v);
}
template <>
BFloat16 cast(float v) {
  return BFloat16::from(v);
}

template <class From, class To>
void convert_as(const TensorView& src, const TensorView& dst) {
  // Outer axes by counting, the last one in a loop that the compiler can vectorise.
  std::int64_t n[TensorView::kMaxRank] = {1, 1, 1, 1};
  std::int64_t from[TensorView::kMaxRank] = {}, to[TensorView::kMaxRank] = {};
  const int shift = TensorView::kMaxRank - src.rank;
  for (int axis = 0; axis < src.rank; ++axis) {
    n[shift + axis] = src.shape[axis];
    from[shift + axis] = src.strides[axis];
    to[shift + axis] = dst.strides[axis];
  }
  for (std::int64_t i = 0; i < n[0]; ++i) {
    for (std::int64_t j = 0; j < n[1]; ++j) {
      for (std::int64_t k = 0; k < n[2]; ++k) {
        const From* s =
            static_cast<const From*>(src.data) + i * from[0] + j * from[1] + k * from[2];
        To* d = static_cast<To*>(dst.data) + i * to[0] + j * to[1] + k * to[2];
        if (from[3] == 1 && to[3] == 1) {
          if constexpr (std::is_same_v<From, To>) {
            std::memcpy(d, s, static_cast<std::size_t>(n[3]) * sizeof(To));
          } else {
            for (std::int64_t l = 0; l < n[3]; ++l) d[l] = cast<To>(static_cast<float>(s[l]));
          }
        } else {
          for (std::int64_t l = 0; l < n[3]; ++l) {
            if constexpr (std::is_same_v<From, To>) {
              d[l * to[3]] = s[l * from[3]];
            } else {
              d[l * to[3]] = cast<To>(static_cast<float>(s[l * from[3]]));
            }
          }
        }
      }
    }
  }
}

void convert(const Context&, const TensorView& src, const TensorView& dst) {
  if (src.numel() == 0) return;
  const auto is = [&](DataType a, DataType b) { return src.dtype == a && dst.dtype == b; };
  if (src.dtype == dst.dtype) {
    switch (size_of(src.dtype)) {
      case 1: return convert_as<std::uint8_t, std::uint8_t>(src, dst);
      case 2: return convert_as<std::uint16_t, std::uint16_t>(src, dst);
      case 4: return convert_as<std::uint32_t, std::uint32_t>(src, dst);
      default: return convert_as<std::uint64_t, std::uint64_t>(src, dst);
    }
  }
  if (is(DataType::kFloat16, DataType::kFloat32)) return convert_as<Float16, float>(src, dst);
  if (is(DataType::kFloat32, DataType::kFloat16)) return convert_as<float, Float16>(src, dst);
  if (is(DataType::kBFloat16, DataType::kFloat32)) return convert_as<BFloat16, float>(src, dst);
  if (is(DataType::kFloat32, DataType::kBFloat16)) return convert_as<float, BFloat16>(src, dst);
  if (is(DataType::kFloat64, DataType::kFloat32)) return convert_as<double, float>(src, dst);
  if (is(DataType::kFloat64, DataType::kFloat16)) return convert_as<double, Float16>(src, dst);
  if (is(DataType::kFloat64, DataType::kBFloat16)) return convert_as<double, BFloat16>(src, dst);
  if (is(DataType::kBool, DataType::kUInt8))
    return convert_as<std::uint8_t, std::uint8_t>(src, dst);
  if (is(DataType::kInt32, DataType::kInt64)) {
    const TensorView& s = src;
    const auto* from = static_cast<const std::int32_t*>(s.data);
    auto* to = static_cast<std::int64_t*>(dst.data);
    for (std::int64_t i = 0; i < s.shape[0]; ++i) to[i * dst.strides[0]] = from[i * s.strides[0]];
    return;
  }
  throw Error(ErrorCode::kType, std::string("convert: no conversion from ") + name_of(src.dtype) +
                                    " to " + name_of(dst.dtype));
}

void fill_zero(const Context&, void* data, std::size_t bytes) {
  if (bytes != 0) std::memset(data, 0, bytes);
}

void zero_padded(const Context&, void* x, DataType dtype, std::int64_t steps, std::int64_t batch,
                 std::int64_t width, const Padding& p) {
  const std::size_t row = static_cast<std::size_t>(width) * size_of(dtype);
  for (std::int64_t t = 0; t < steps; ++t) {
    for (std::int64_t b = 0; b < batch; ++b) {
      if (p.at(t, b, batch)) {
        std::memset(static_cast<char*>(x) + static_cast<std::size_t>(t * batch + b) * row, 0, row);
      }
    }
  }
}

template <class T>
T sum_of(T a, T b) {
  return a + b;
}
template <>
Float16 sum_of(Float16 a, Float16 b) {
  return Float16::from(static_cast<float>(a) + static_cast<float>(b));
}
template <>
BFloat16 sum_of(BFloat16 a, BFloat16 b) {
  return BFloat16::from(static_cast<float>(a) + static_cast<float>(b));
}

template <class T>
void add_as(const void* src, void* dst, std::int64_t n) {
  const T* from = static_cast<const T*>(src);
  T* to = static_cast<T*>(dst);
  for (std::int64_t i = 0; i < n; ++i) to[i] = sum_of(to[i], from[i]);
}

void add(const Context&, const void* src, void* dst, DataType dtype, std::int64_t n) {
  switch (dtype) {
    case DataType::kFloat64: return add_as<double>(src, dst, n);
    case DataType::kFloat16: return add_as<Float16>(src, dst, n);
    case DataType::kBFloat16: return add_as<BFloat16>(src, dst, n);
    default: return add_as<float>(src, dst, n);
  }
}

template <class T>
void sum_rows_as(const T* a, std::int64_t rows, std::int64_t columns, std::int64_t lda,
                 double* totals, bool accumulate) {
  // Short sums in T keep float32's error small however many rows there are.
  constexpr std::int64_t kRun = 64, kColumns = 128;
  for (std::int64_t j0 = 0; j0 < columns; j0 += kColumns) {
    const std::int64_t width = columns - j0 < kColumns ? columns - j0 : kColumns;
    for (std::int64_t j = 0; j < width && !accumulate; ++j) totals[j0 + j] = 0.0;
    for (std::int64_t i0 = 0; i0 < rows; i0 += kRun) {
      T sums[kColumns] = {};
      const std::int64_t end = rows - i0 < kRun ? rows : i0 + kRun;
      for (std::int64_t i = i0; i < end; ++i) {
        const T* row = a + i * lda + j0;
        for (std::int64_t j = 0; j < width; ++j) sums[j] += row[j];
      }
      for (std::int64_t j = 0; j < width; ++j) totals[j0 + j] += static_cast<double>(sums[j]);
    }
  }
}

void sum_rows(const Context&, const void* a, DataType dtype, std::int64_t rows,
              std::int64_t columns, std::int64_t lda, double* totals, bool accumulate) {
  if (dtype == DataType::kFloat64) {
    sum_rows_as(static_cast<const double*>(a), rows, columns, lda, totals, accumulate);
  } else {
    sum_rows_as(static_cast<const float*>(a), rows, columns, lda, totals, accumulate);
  }
}

// Below this many multiply-adds (about 30 microseconds) handing work to other threads costs more
// than it saves.
constexpr double kParallelWork = 2e6;

void for_each_item(const Context&, std::int64_t n, double work, ItemFunction fn, void* user) {
  if (work < kParallelWork) {
    for (std::int64_t i = 0; i < n; ++i) fn(user, i);
  } else {
    parallel_for(n, fn, user);
  }
}

}  // namespace
}  // namespace cpu

const Backend& cpu_backend() {
  static const Backend backend = {
      kBackendAbi,
      "cpu",
      DeviceType::kCpu,
      /*host_accessible=*/true,
      /*alignment=*/64,
      &cpu::compute_dtype,
      &cpu::gemm_workspace_bytes,
      &cpu::device_count,
      &cpu::prepare_device,
      &cpu::gemm,
      &cpu::convert,
      &cpu::fill_zero,
      &cpu::zero_padded,
      &cpu::add,
      &cpu::sum_rows,
      &cpu::for_each_item,
      &cpu::cell_kernels,
      &cpu::packed_b_bytes,
      &cpu::pack_b,
  };
  return backend;
}

}  // namespace penstock
