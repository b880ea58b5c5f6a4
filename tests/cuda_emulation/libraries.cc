// cuBLAS's and the driver's place in the emulation: matrix products in plain loops, with cuBLAS's
// conventions (column-major), argument checks and accumulator types.

#include <cstring>
#include <vector>

#include "cpu/half.h"
#include "cuda/cublas.h"
#include "cuda/driver.h"

namespace penstock::cuda {

struct CublasContext {
  void* workspace = nullptr;
  std::size_t workspace_bytes = 0;
  bool stream_set = false;
};

namespace {

constexpr int kNotInitialized = 1;
constexpr int kInvalidValue = 7;
constexpr int kNotSupported = 15;

int create(CublasHandle* handle) {
  *handle = new CublasContext();
  return kCublasSuccess;
}
int destroy(CublasHandle handle) {
  delete handle;
  return kCublasSuccess;
}
int set_stream(CublasHandle handle, void*) {
  // As in cuBLAS, a new stream takes the workspace away.
  *handle = CublasContext();
  handle->stream_set = true;
  return kCublasSuccess;
}
int set_workspace(CublasHandle handle, void* workspace, std::size_t bytes) {
  if (workspace == nullptr || reinterpret_cast<std::uintptr_t>(workspace) % 256 != 0) {
    return kInvalidValue;
  }
  handle->workspace = workspace;
  handle->workspace_bytes = bytes;
  return kCublasSuccess;
}
int set_math_mode(CublasHandle, int mode) {
  return mode == kCublasMathMode ? kCublasSuccess : kInvalidValue;
}

template <class S, class T>
S widen(T v) {
  return static_cast<S>(v);
}
template <class T, class S>
T narrow(S v) {
  return static_cast<T>(v);
}
template <>
cpu::Float16 narrow(float v) {
  return cpu::Float16::from(v);
}
template <>
cpu::BFloat16 narrow(float v) {
  return cpu::BFloat16::from(v);
}

struct Product {
  bool trans_a, trans_b;
  std::int64_t m, n, k, lda, ldb, ldc;
  const void *alpha, *beta;
};

/// Column-major C = alpha op(A) op(B) + beta C, with elements T, sums in S.
template <class T, class S>
void multiply(const Product& p, const T* a, const T* b, T* c) {
  const S alpha = *static_cast<const S*>(p.alpha), beta = *static_cast<const S*>(p.beta);
  const auto m = static_cast<std::size_t>(p.m);
  std::vector<S> columns(m * static_cast<std::size_t>(p.k));
  for (std::int64_t l = 0; l < p.k; ++l) {
    for (std::int64_t i = 0; i < p.m; ++i) {
      columns[static_cast<std::size_t>(l * p.m + i)] =
          widen<S>(p.trans_a ? a[i * p.lda + l] : a[l * p.lda + i]);
    }
  }
  std::vector<S> sum(m);
  for (std::int64_t j = 0; j < p.n; ++j) {
    sum.assign(m, S(0));
    for (std::int64_t l = 0; l < p.k; ++l) {
      const S factor = widen<S>(p.trans_b ? b[l * p.ldb + j] : b[j * p.ldb + l]);
      const S* column = columns.data() + l * p.m;
      for (std::size_t i = 0; i < m; ++i) sum[i] += column[i] * factor;
    }
    for (std::size_t i = 0; i < m; ++i) {
      T& out = c[static_cast<std::size_t>(j * p.ldc) + i];
      const S before = beta == S(0) ? S(0) : beta * widen<S>(out);
      out = narrow<T>(alpha * sum[i] + before);
    }
  }
}

int gemm_strided_batched(CublasHandle handle, int trans_a, int trans_b, std::int64_t m,
                         std::int64_t n, std::int64_t k, const void* alpha, const void* a,
                         int a_type, std::int64_t lda, long long stride_a, const void* b,
                         int b_type, std::int64_t ldb, long long stride_b, const void* beta,
                         void* c, int c_type, std::int64_t ldc, long long stride_c,
                         std::int64_t batch, int compute_type, int) {
  // A product without this call's stream and workspace would run on another's.
  if (handle == nullptr || !handle->stream_set || handle->workspace == nullptr) {
    return kNotInitialized;
  }
  const Product p = {
      trans_a == kCublasOpT, trans_b == kCublasOpT, m, n, k, lda, ldb, ldc, alpha, beta};
  const auto least = [](std::int64_t rows) { return rows > 1 ? rows : std::int64_t{1}; };
  if (m < 0 || n < 0 || k < 0 || batch < 0 || lda < least(p.trans_a ? k : m) ||
      ldb < least(p.trans_b ? n : k) || ldc < least(m)) {
    return kInvalidValue;
  }
  if (a_type != b_type || a_type != c_type ||
      compute_type != (a_type == kCudaR64F ? kCublasCompute64F : kCublasCompute32F)) {
    return kNotSupported;
  }
  std::memset(handle->workspace, 0xff, handle->workspace_bytes);
  for (std::int64_t i = 0; i < batch; ++i) {
    const auto run = [&](auto element, auto accumulator) {
      using T = decltype(element);
      multiply<T, decltype(accumulator)>(p, static_cast<const T*>(a) + i * stride_a,
                                         static_cast<const T*>(b) + i * stride_b,
                                         static_cast<T*>(c) + i * stride_c);
    };
    switch (a_type) {
      case kCudaR32F: run(float(), float()); break;
      case kCudaR64F: run(double(), double()); break;
      case kCudaR16F: run(cpu::Float16(), float()); break;
      case kCudaR16BF: run(cpu::BFloat16(), float()); break;
      default: return kNotSupported;
    }
  }
  return kCublasSuccess;
}

int gemm(CublasHandle handle, int trans_a, int trans_b, std::int64_t m, std::int64_t n,
         std::int64_t k, const void* alpha, const void* a, int a_type, std::int64_t lda,
         const void* b, int b_type, std::int64_t ldb, const void* beta, void* c, int c_type,
         std::int64_t ldc, int compute_type, int algorithm) {
  return gemm_strided_batched(handle, trans_a, trans_b, m, n, k, alpha, a, a_type, lda, 0, b,
                              b_type, ldb, 0, beta, c, c_type, ldc, 0, 1, compute_type, algorithm);
}

const char* status_string(int status) {
  switch (status) {
    case kCublasSuccess: return "CUBLAS_STATUS_SUCCESS";
    case kNotInitialized: return "CUBLAS_STATUS_NOT_INITIALIZED";
    case kInvalidValue: return "CUBLAS_STATUS_INVALID_VALUE";
    default: return "CUBLAS_STATUS_NOT_SUPPORTED";
  }
}

}  // namespace

const Cublas* cublas(std::string*) {
  static const Cublas table = {&create,        &destroy, &set_stream,           &set_workspace,
                               &set_math_mode, &gemm,    &gemm_strided_batched, &status_string};
  return &table;
}

std::string driver_problem() { return ""; }

}  // namespace penstock::cuda
