// The cells that the CUDA backend has: one line each.

#include "cuda/cells.h"

#include <cstring>

#include "cells/sru_kernels.h"

namespace penstock::cuda {

const sru::Kernels& sru_kernels();

namespace {

struct Entry {
  const char* name;
  const void* kernels;
};

}  // namespace

const void* cell_kernels(const char* name) {
  static const Entry entries[] = {
      {sru::kKernelsName, &sru_kernels()},
  };
  for (const Entry& e : entries) {
    if (std::strcmp(e.name, name) == 0) return e.kernels;
  }
  return nullptr;
}

}  // namespace penstock::cuda
