// The cells that the CUDA backend has: one line each.

#include "cuda/cells.h"

#include "cells/recurrent_kernels.h"
#include "cells/sru_kernels.h"
#include "core/cell_table.h"

namespace penstock::cuda {

const sru::Kernels& sru_kernels();
const recurrent::Kernels& rnn_kernels();
const recurrent::Kernels& gru_kernels();
const recurrent::Kernels& lstm_kernels();

const void* cell_kernels(const char* name) {
  static const CellEntry cells[] = {
      {sru::kKernelsName, &sru_kernels()},
      {"rnn", &rnn_kernels()},
      {"gru", &gru_kernels()},
      {"lstm", &lstm_kernels()},
  };
  return find_cell(cells, name);
}

}  // namespace penstock::cuda
