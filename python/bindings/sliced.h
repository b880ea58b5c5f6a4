#pragma once

#include <pybind11/pybind11.h>

namespace penstock::python {

void bind_sliced(pybind11::module_& m);

}  // namespace penstock::python
