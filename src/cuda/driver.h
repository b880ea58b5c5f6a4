// Whether this machine has an NVIDIA driver at all.
#pragma once

#include <string>

namespace penstock::cuda {

/// Empty where the driver's library can be loaded, else what is missing, in words that help.
std::string driver_problem();

}  // namespace penstock::cuda
