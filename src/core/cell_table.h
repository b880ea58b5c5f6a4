// How a backend finds the kernels of a cell by name.
#pragma once

#include <cstddef>
#include <cstring>
#include <string>

#include "core/backend.h"
#include "penstock/context.h"
#include "penstock/error.h"

namespace penstock {

/// One cell that a backend has: the name and the table of src/cells/X_kernels.h.
struct CellEntry {
  const char* name;
  const void* kernels;
};

/// The kernels registered under `name`, or null.
template <std::size_t kCount>
const void* find_cell(const CellEntry (&cells)[kCount], const char* name) {
  for (const CellEntry& cell : cells) {
    if (std::strcmp(cell.name, name) == 0) return cell.kernels;
  }
  return nullptr;
}

/// The kernels of a cell, `Kernels` as in src/cells/X_kernels.h; throws Error(kRuntime) where the
/// context's backend has none.
template <class Kernels>
const Kernels& kernels_of(const Context& ctx, const char* cell) {
  const void* kernels = ctx.backend().cell_kernels(cell);
  if (kernels == nullptr) {
    throw Error(ErrorCode::kRuntime, std::string(cell) + ": the backend " + ctx.backend().name +
                                         " does not have this cell");
  }
  return *static_cast<const Kernels*>(kernels);
}

}  // namespace penstock
