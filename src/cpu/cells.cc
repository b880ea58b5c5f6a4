// The cells that the CPU backend has: one line each.

#include "cpu/cells.h"

#include "cells/recurrent_cpu.h"
#include "cells/sru_cpu.h"
#include "core/cell_table.h"

namespace penstock::cpu {

const void* cell_kernels(const char* name) {
  static const CellEntry cells[] = {
      {sru::kKernelsName, &sru_kernels()},
      {"rnn", &rnn_kernels()},
      {"gru", &gru_kernels()},
      {"lstm", &lstm_kernels()},
  };
  return find_cell(cells, name);
}

}  // namespace penstock::cpu
