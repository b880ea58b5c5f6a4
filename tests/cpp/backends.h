// The backends that the tests run over: the CPU, and the CUDA sources over the stand-in runtime.
#pragma once

#include <string>
#include <vector>

#include "penstock/context.h"

namespace penstock::tests {

/// "cpu", and "cuda_emulated" where that plugin was built.
const std::vector<std::string>& backend_names();
/// A context of one of them, over host memory.
Context context_of(const std::string& backend);

}  // namespace penstock::tests
