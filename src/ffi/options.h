// Options that several operations have.
#pragma once

#include "ffi/frame.h"
#include "penstock/gru.h"

namespace penstock::ffi {

inline Direction direction_of(const Frame& frame) {
  return frame.choice<Direction>("direction", {{"forward", Direction::kForward},
                                               {"reverse", Direction::kReverse},
                                               {"bidirectional", Direction::kBidirectional}});
}

inline Activation activation_of(const Frame& frame) {
  return frame.choice<Activation>("activation", {{"identity", Activation::kIdentity},
                                                 {"tanh", Activation::kTanh},
                                                 {"relu", Activation::kRelu}});
}

inline ResetMode reset_of(const Frame& frame) {
  return frame.choice<ResetMode>("reset",
                                 {{"after", ResetMode::kAfter}, {"before", ResetMode::kBefore}});
}

}  // namespace penstock::ffi
