#pragma once

namespace penstock::cuda {

/// The CUDA kernels that a cell registered, or null.
const void* cell_kernels(const char* name);

}  // namespace penstock::cuda
