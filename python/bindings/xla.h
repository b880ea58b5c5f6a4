// What penstock.jax needs of the library.
#pragma once

#include <pybind11/pybind11.h>

namespace penstock::python {

void bind_xla(pybind11::module_& m);

}  // namespace penstock::python
