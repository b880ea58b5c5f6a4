// Options of a call: words, numbers and flags from Python, each checked and named if it is wrong.
#pragma once

#include <pybind11/pybind11.h>

#include <initializer_list>
#include <string>
#include <utility>

#include "penstock/error.h"
#include "penstock/types.h"

namespace penstock::python {

namespace py = pybind11;

[[noreturn]] inline void wrong_type(const std::string& name, const std::string& expected,
                                    py::handle value) {
  throw Error(ErrorCode::kType,
              name + ": expected " + expected + " (actual: " +
                  std::string(py::str(py::type::handle_of(value).attr("__name__"))) + ")");
}

/// The choice that a word stands for.
template <class E>
E choose(const char* name, py::handle object,
         std::initializer_list<std::pair<const char*, E>> choices) {
  if (py::isinstance<py::str>(object)) {
    for (const auto& [word, result] : choices) {
      if (PyUnicode_CompareWithASCIIString(object.ptr(), word) == 0) return result;
    }
  }
  std::string expected = "one of ";
  for (const auto& choice : choices) {
    expected += std::string(&choice == choices.begin() ? "'" : ", '") + choice.first + "'";
  }
  if (!py::isinstance<py::str>(object)) wrong_type(name, expected, object);
  throw Error(ErrorCode::kValue, std::string(name) + ": expected " + expected + " (actual: '" +
                                     object.cast<std::string>() + "')");
}

inline Activation activation_of(py::handle object) {
  return choose<Activation>("activation", object,
                            {{"identity", Activation::kIdentity},
                             {"tanh", Activation::kTanh},
                             {"relu", Activation::kRelu}});
}

inline Direction direction_of(py::handle object) {
  return choose<Direction>("direction", object,
                           {{"forward", Direction::kForward},
                            {"reverse", Direction::kReverse},
                            {"bidirectional", Direction::kBidirectional}});
}

inline double number(const char* name, py::handle object) {
  const double value = PyFloat_AsDouble(object.ptr());
  if (value == -1.0 && PyErr_Occurred() != nullptr) {
    PyErr_Clear();
    wrong_type(name, "a number", object);
  }
  return value;
}

inline bool flag(const char* name, py::handle object) {
  if (object.ptr() == Py_True) return true;
  if (object.ptr() == Py_False) return false;
  // NumPy's own booleans
  const std::string type = py::str(py::type::handle_of(object).attr("__name__"));
  if (type == "bool" || type == "bool_") return PyObject_IsTrue(object.ptr()) == 1;
  wrong_type(name, "True or False", object);
}

}  // namespace penstock::python
