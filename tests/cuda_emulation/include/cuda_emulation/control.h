// For tests of kernels: the order in which the emulated threads run.
#pragma once

#include <cstdint>

namespace cuda_emulation {

/// Begin again with this seed (0: the natural order), whatever PENSTOCK_EMULATION_SEED says.
void set_seed(std::uint64_t seed);
std::uint64_t seed();

}  // namespace cuda_emulation
