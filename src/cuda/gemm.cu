#include "cuda/gemm.h"

#include <map>
#include <mutex>
#include <string>

#include "cuda/cublas.h"
#include "cuda/launch.h"
#include "cuda/numeric.h"

namespace penstock::cuda {
namespace {

constexpr int kThreads = 256;

/// A device's handle. Stream and workspace are the handle's state, so whoever sets them holds the
/// lock until the product is enqueued.
struct Handle {
  std::mutex mutex;
  CublasHandle handle = nullptr;
};

// Handles live as long as the process: destroying them in a static destructor would call a driver
// that is already shutting down.
Handle& handle_of(int device) {
  static std::mutex mutex;
  static auto* handles = new std::map<int, Handle>();
  const std::lock_guard<std::mutex> lock(mutex);
  return (*handles)[device];
}

const Cublas& table() {
  std::string why;
  const Cublas* t = cublas(&why);
  if (t == nullptr) throw Error(ErrorCode::kRuntime, "CUDA: " + why);
  return *t;
}

void check_cublas(const Cublas& t, int status, const char* what) {
  if (status == kCublasSuccess) return;
  throw Error(ErrorCode::kRuntime, std::string("cuBLAS: ") + what + ": " + t.status_string(status));
}

int cuda_type(DataType dtype) {
  switch (dtype) {
    case DataType::kFloat64: return kCudaR64F;
    case DataType::kFloat16: return kCudaR16F;
    case DataType::kBFloat16: return kCudaR16BF;
    default: return kCudaR32F;
  }
}

// C = beta * C: the product when there is nothing to sum over (k = 0).
// Work split: one element per thread and turn. With beta = 0 C is not read.
template <class T>
__global__ void __launch_bounds__(kThreads)
    scale_kernel(T* c, std::int64_t m, std::int64_t n, std::int64_t ldc, std::int64_t stride,
                 std::int64_t batch, double beta) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
       i < batch * m * n; i += step) {
    T* at = c + i / (m * n) * stride + i / n % m * ldc + i % n;
    *at = narrow<T>(beta == 0.0 ? state_t<T>(0) : state_t<T>(beta) * widen(*at));
  }
}

}  // namespace

bool gemm_prepared(int device) {
  Handle& h = handle_of(device);
  const std::lock_guard<std::mutex> lock(h.mutex);
  return h.handle != nullptr;
}

void prepare_gemm(int device) {
  Handle& h = handle_of(device);
  const std::lock_guard<std::mutex> lock(h.mutex);
  if (h.handle != nullptr) return;
  const Cublas& t = table();
  const DeviceGuard guard(device);
  CublasHandle handle = nullptr;
  check_cublas(t, t.create(&handle), "cublasCreate");
  const int status = t.set_math_mode(handle, kCublasMathMode);
  if (status != kCublasSuccess) {
    t.destroy(handle);
    check_cublas(t, status, "cublasSetMathMode");
  }
  h.handle = handle;
}

void gemm(const Context& ctx, const GemmArgs& g, std::size_t workspace_bytes) {
  gemm_to(ctx, g, workspace_bytes, g.dtype);
}

void gemm_to(const Context& ctx, const GemmArgs& g, std::size_t workspace_bytes, DataType c_dtype) {
  if (g.m == 0 || g.n == 0 || g.batch == 0) return;
  const DeviceGuard guard(ctx);
  if (g.k == 0) {
    if (g.beta == 1.0) return;
    return with_type(c_dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      launch(ctx, "gemm", scale_kernel<T>, grid_stride(g.batch * g.m * g.n, kThreads),
             static_cast<T*>(g.c), g.m, g.n, g.ldc, g.stride_c, g.batch, g.beta);
    });
  }
  Handle& h = handle_of(ctx.device().index);
  const std::lock_guard<std::mutex> lock(h.mutex);
  if (h.handle == nullptr) {
    throw Error(ErrorCode::kRuntime, "CUDA: the device was not prepared; make its Context first");
  }
  const Cublas& t = table();
  // Setting the stream puts the handle back to its own workspace, so the order matters.
  check_cublas(t, t.set_stream(h.handle, ctx.stream()), "cublasSetStream");
  check_cublas(t, t.set_workspace(h.handle, g.workspace, workspace_bytes), "cublasSetWorkspace");

  const bool wide = g.dtype == DataType::kFloat64;
  const int type = cuda_type(g.dtype), c_type = cuda_type(c_dtype);
  const int compute = wide ? kCublasCompute64F : kCublasCompute32F;
  const double alpha64 = 1.0, beta64 = g.beta;
  const float alpha32 = 1.0f, beta32 = static_cast<float>(g.beta);
  const void* alpha = wide ? static_cast<const void*>(&alpha64) : &alpha32;
  const void* beta = wide ? static_cast<const void*>(&beta64) : &beta32;
  // cuBLAS is column-major: a row-major C is its transpose there, and Cᵀ = op(B)ᵀ · op(A)ᵀ, where
  // a row-major operand is already read transposed. So operands change places and nothing else.
  const int op_a = g.trans_a ? kCublasOpT : kCublasOpN;
  const int op_b = g.trans_b ? kCublasOpT : kCublasOpN;
  if (g.batch == 1) {
    check_cublas(t,
                 t.gemm(h.handle, op_b, op_a, g.n, g.m, g.k, alpha, g.b, type, g.ldb, g.a, type,
                        g.lda, beta, g.c, c_type, g.ldc, compute, kCublasGemmDefault),
                 "cublasGemmEx");
  } else {
    check_cublas(
        t,
        t.gemm_strided_batched(h.handle, op_b, op_a, g.n, g.m, g.k, alpha, g.b, type, g.ldb,
                               g.stride_b, g.a, type, g.lda, g.stride_a, beta, g.c, c_type, g.ldc,
                               g.stride_c, g.batch, compute, kCublasGemmDefault),
        "cublasGemmStridedBatchedEx");
  }
}

}  // namespace penstock::cuda
