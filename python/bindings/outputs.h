// Outputs of a call.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "arrays.h"
#include "gil.h"

namespace penstock::python {

/// A buffer of no bytes would have no address.
inline std::size_t at_least_one(std::size_t bytes) { return std::max<std::size_t>(bytes, 1); }

/// An output of the shape of `v`, which has two or three axes; not given if `v` is not.
inline Array output_like(const Allocator& allocator, const char* name, const TensorView& v) {
  if (!v.given()) return {};
  return v.rank == 3 ? allocator.array(name, {v.shape[0], v.shape[1], v.shape[2]})
                     : allocator.array(name, {v.shape[0], v.shape[1]});
}

/// Host memory from the pool, for libraries that import through DLPack.
inline py::object host_bytes(std::size_t bytes) {
  return Array::host(DataType::kUInt8, {static_cast<std::int64_t>(bytes)}).object();
}

/// A reserve of so many bytes that is an array of the caller's library.
inline Array reserve_array(const py::object& empty_bytes, std::size_t bytes,
                           std::uintptr_t stream) {
  Array made("reserve", call(empty_bytes, py::make_tuple(bytes)), stream);
  made.make_writable("reserve");
  return made;
}

/// The array for the caller; None for one that is not given.
inline py::object or_none(const Array& array) {
  return array.view().given() ? array.object() : py::object(py::none());
}

}  // namespace penstock::python
