#include "cells/gru_cpu.h"

#include "cells/gru_cell.h"

namespace penstock::cpu {
namespace {

recurrent::Spec spec(const recurrent::Options& o) {
  return o.reset == ResetMode::kAfter ? gru_cell::CellAfter<Activation::kTanh>::spec()
                                      : gru_cell::CellBefore<Activation::kTanh>::spec();
}
const RecurrentVariant& variant(const recurrent::Options& o) {
  const int activation = static_cast<int>(o.activation);
  return o.reset == ResetMode::kAfter ? gru_steps().after[activation]
                                      : gru_steps().before[activation];
}

}  // namespace

const recurrent::Kernels& gru_kernels() { return recurrent_kernels<&spec, &variant>(); }

}  // namespace penstock::cpu
