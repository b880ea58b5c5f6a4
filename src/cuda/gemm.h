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

}  // namespace penstock::cuda
