// Compiled once per instruction set.

#include "cells/lstm_cell.h"
#include "cells/lstm_cpu.h"
#include "cells/recurrent_cpu_steps.h"

namespace penstock::cpu::PENSTOCK_ISA_NAMESPACE {

const RecurrentVariant& lstm_steps() {
  static constexpr RecurrentVariant table =
      variant<Steps<float, lstm_cell::Cell>, Steps<double, lstm_cell::Cell>>();
  return table;
}

}  // namespace penstock::cpu::PENSTOCK_ISA_NAMESPACE
