#pragma once

#include <pybind11/pybind11.h>

namespace penstock::python {

/// rnn, gru and lstm.
void bind_recurrent(pybind11::module_& m);

}  // namespace penstock::python
