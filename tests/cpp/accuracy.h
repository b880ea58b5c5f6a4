// How near a result must be to the float64 reference.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "penstock/types.h"

namespace penstock::tests {

/// max|a - b| / max|b|; where b is all zeros, max|a|. NaN counts as infinitely wrong.
inline double relative_error(const std::vector<double>& a, const std::vector<double>& b) {
  if (a.size() != b.size()) return INFINITY;
  double worst = 0.0, scale = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double e = std::abs(a[i] - b[i]);
    worst = std::isnan(e) ? INFINITY : std::max(worst, e);
    scale = std::max(scale, std::abs(b[i]));
  }
  return scale > 0.0 ? worst / scale : worst;
}

/// What relative_error may be for outputs; gradients may have ten times that.
inline double tolerance_of(DataType dtype) {
  switch (dtype) {
    case DataType::kFloat64: return 1e-12;
    case DataType::kFloat16: return 2e-3;
    case DataType::kBFloat16: return 1.6e-2;
    default: return 1e-5;
  }
}

}  // namespace penstock::tests
