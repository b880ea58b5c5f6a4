// cuBLAS's and the driver's place in the emulation: matrix products in plain loops, with cuBLAS's
// conventions (column-major), argument checks and accumulator types.

#include <cuda_runtime.h>

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
  cudaStream_t stream = nullptr;
};

namespace {

constexpr int kNotInitialized = 1;
constexpr int kInvalidValue = 7;
constexpr int kExecutionFailed = 13;
constexpr int kNotSupported = 15;

int create(CublasHandle* handle) {
  *handle = new CublasContext();
  return kCublasSuccess;
}
int destroy(CublasHandle handle) {
  delete handle;
  return kCublasSuccess;
}
int set_stream(CublasHandle handle, void* stream) {
  // As in cuBLAS, a new stream takes the workspace away.
  *handle = CublasContext();
  handle->stream_set = true;
  handle->stream = static_cast<cudaStream_t>(stream);
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

/// A product with everything it needs later, when it is captured: alpha and beta are read at the
/// call.
struct Product {
  bool trans_a, trans_b;
  std::int64_t m, n, k, lda, ldb, ldc;
  double alpha, beta;
  long long stride_a, stride_b, stride_c;
  std::int64_t batch;
  void* workspace;
  std::size_t workspace_bytes;
};

/// Column-major C = alpha op(A) op(B) + beta C, with A and B of T, C of C, sums in S.
template <class T, class C, class S>
void multiply(const Product& p, const T* a, const T* b, C* c) {
  const S alpha = static_cast<S>(p.alpha), beta = static_cast<S>(p.beta);
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
      C& out = c[static_cast<std::size_t>(j * p.ldc) + i];
      const S before = beta == S(0) ? S(0) : beta * widen<S>(out);
      out = narrow<C>(alpha * sum[i] + before);
    }
  }
}

template <class T, class C, class S>
void multiply_batch(const Product& p, const void* a, const void* b, void* c) {
  std::memset(p.workspace, 0xff, p.workspace_bytes);
  for (std::int64_t i = 0; i < p.batch; ++i) {
    multiply<T, C, S>(p, static_cast<const T*>(a) + i * p.stride_a,
                      static_cast<const T*>(b) + i * p.stride_b,
                      static_cast<C*>(c) + i * p.stride_c);
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
  const bool wide = a_type == kCudaR64F;
  const bool half = a_type == kCudaR16F || a_type == kCudaR16BF;
  const bool to_float = half && c_type == kCudaR32F;
  if (a_type != b_type || (a_type != c_type && !to_float) ||
      compute_type != (wide ? kCublasCompute64F : kCublasCompute32F)) {
    return kNotSupported;
  }
  const auto scalar = [&](const void* v) {
    return wide ? *static_cast<const double*>(v) : *static_cast<const float*>(v);
  };
  const Product p = {trans_a == kCublasOpT,
                     trans_b == kCublasOpT,
                     m,
                     n,
                     k,
                     lda,
                     ldb,
                     ldc,
                     scalar(alpha),
                     scalar(beta),
                     stride_a,
                     stride_b,
                     stride_c,
                     batch,
                     handle->workspace,
                     handle->workspace_bytes};
  const auto least = [](std::int64_t rows) { return rows > 1 ? rows : std::int64_t{1}; };
  if (m < 0 || n < 0 || k < 0 || batch < 0 || lda < least(p.trans_a ? k : m) ||
      ldb < least(p.trans_b ? n : k) || ldc < least(m)) {
    return kInvalidValue;
  }
  void (*run)(const Product&, const void*, const void*, void*) = nullptr;
  using cpu::BFloat16;
  using cpu::Float16;
  switch (a_type) {
    case kCudaR32F: run = &multiply_batch<float, float, float>; break;
    case kCudaR64F: run = &multiply_batch<double, double, double>; break;
    case kCudaR16F:
      run = to_float ? &multiply_batch<Float16, float, float>
                     : &multiply_batch<Float16, Float16, float>;
      break;
    case kCudaR16BF:
      run = to_float ? &multiply_batch<BFloat16, float, float>
                     : &multiply_batch<BFloat16, BFloat16, float>;
      break;
    default: return kNotSupported;
  }
  const cudaError_t status = cuda_emulation::enqueue(handle->stream, [=] { run(p, a, b, c); });
  return status == cudaSuccess ? kCublasSuccess : kExecutionFailed;
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
    case kExecutionFailed: return "CUBLAS_STATUS_EXECUTION_FAILED";
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
