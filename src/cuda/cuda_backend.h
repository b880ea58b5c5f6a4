#pragma once

#include "core/backend.h"

namespace penstock::cuda {

/// The backend table of this plugin.
const Backend& backend();

}  // namespace penstock::cuda
