// Activation functions of a candidate, for any value type V with arithmetic, tanh(V) and
// where_positive(V, V, V): float, double or a SIMD vector.
#pragma once

#include "core/scalar_math.h"
#include "penstock/types.h"

namespace penstock::cells {

template <Activation A, class V>
PENSTOCK_HOST_DEVICE V activate(V x) {
  if constexpr (A == Activation::kTanh) {
    return tanh(x);
  } else if constexpr (A == Activation::kRelu) {
    return where_positive(-x, V(0), x);  // NaN stays NaN
  } else {
    return x;
  }
}

/// dy * act'(x), given y = activate(x).
template <Activation A, class V>
PENSTOCK_HOST_DEVICE V activation_gradient(V dy, V y) {
  if constexpr (A == Activation::kTanh) {
    return dy * (V(1) - y * y);
  } else if constexpr (A == Activation::kRelu) {
    return where_positive(y, dy, V(0));
  } else {
    return dy;
  }
}

}  // namespace penstock::cells
