#pragma once

namespace penstock::cpu {

/// The CPU kernels that a cell registered, or null.
const void* cell_kernels(const char* name);

}  // namespace penstock::cpu
