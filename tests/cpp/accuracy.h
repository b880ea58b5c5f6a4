// How near a result must be to the float64 reference, or whether two are the same.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
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

/// Whether two have the same bits, NaN and signs of zeros included.
inline bool same_bits(const std::vector<double>& a, const std::vector<double>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0);
}

/// The same of all members of results that `named` has.
template <class Results, class Named, std::size_t kCount>
bool same_bits(const Results& a, const Results& b, const Named (&named)[kCount]) {
  return std::all_of(named, named + kCount,
                     [&](const Named& n) { return same_bits(a.*n.values, b.*n.values); });
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
