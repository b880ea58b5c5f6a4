// The cells that the CPU backend has: one line each.

#include "cpu/cells.h"

#include <cstring>

#include "cells/sru_cpu.h"

namespace penstock::cpu {
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

}  // namespace penstock::cpu
