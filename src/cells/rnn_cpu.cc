#include "cells/rnn_cpu.h"

#include "cells/rnn_cell.h"

namespace penstock::cpu {
namespace {

recurrent::Spec spec(const recurrent::Options&) {
  return rnn_cell::Cell<Activation::kTanh>::spec();
}
const RecurrentVariant& variant(const recurrent::Options& o) {
  return rnn_steps().by_activation[static_cast<int>(o.activation)];
}

}  // namespace

const recurrent::Kernels& rnn_kernels() { return recurrent_kernels<&spec, &variant>(); }

}  // namespace penstock::cpu
