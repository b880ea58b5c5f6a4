// Matrix products through cuBLAS.
#pragma once

#include "core/backend.h"

namespace penstock::cuda {

/// Scratch memory that every product is given: what cuBLAS recommends for compute capability 9.0
/// (older devices use less), so that it neither allocates nor picks its algorithms by what is free.
constexpr std::size_t kGemmWorkspaceBytes = std::size_t{32} << 20;

/// Whether the device has its cuBLAS handle.
bool gemm_prepared(int device);
/// Create the device's cuBLAS handle unless it exists. Not under stream capture.
void prepare_gemm(int device);
/// As Backend::gemm. `workspace_bytes` is the size of GemmArgs::workspace.
void gemm(const Context&, const GemmArgs&, std::size_t workspace_bytes);
/// The same with C of another type than A and B: float32 for 16-bit A and B, so that sums are not
/// rounded on their way to what adds to them.
void gemm_to(const Context&, const GemmArgs&, std::size_t workspace_bytes, DataType c_dtype);

}  // namespace penstock::cuda
