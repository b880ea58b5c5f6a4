// How a backend finds the kernels of a cell by name.
#pragma once

#include <cstddef>
#include <cstring>

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

}  // namespace penstock
