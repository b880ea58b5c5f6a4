// The cells that the CUDA backend has: one line each.

#include "cuda/cells.h"

#include "cells/sru_kernels.h"
#include "core/cell_table.h"

namespace penstock::cuda {

const sru::Kernels& sru_kernels();

const void* cell_kernels(const char* name) {
  static const CellEntry cells[] = {
      {sru::kKernelsName, &sru_kernels()},
  };
  return find_cell(cells, name);
}

}  // namespace penstock::cuda
