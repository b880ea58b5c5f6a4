// Compiled once per instruction set.

#include "cells/recurrent_cpu_steps.h"
#include "cells/rnn_cell.h"
#include "cells/rnn_cpu.h"

namespace penstock::cpu::PENSTOCK_ISA_NAMESPACE {
namespace {

template <Activation A>
constexpr RecurrentVariant rnn() {
  return variant<Steps<float, rnn_cell::Cell<A>>, Steps<double, rnn_cell::Cell<A>>>();
}

}  // namespace

const RnnSteps& rnn_steps() {
  static constexpr RnnSteps table = {
      {rnn<Activation::kIdentity>(), rnn<Activation::kTanh>(), rnn<Activation::kRelu>()}};
  return table;
}

}  // namespace penstock::cpu::PENSTOCK_ISA_NAMESPACE
