// Functions of the module with little between Python and C++: arguments by position alone, no
// overloads, no containers built per call, which is a tenth of a small call's time.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <new>
#include <string>
#include <type_traits>
#include <utility>

#include "penstock/error.h"

namespace penstock::python {

namespace py = pybind11;

/// Python's exception for an error of the library.
inline void set_error(const Error& e) {
  switch (e.code()) {
    case ErrorCode::kValue: return py::set_error(PyExc_ValueError, e.what());
    case ErrorCode::kType: return py::set_error(PyExc_TypeError, e.what());
    case ErrorCode::kBuffer: return py::set_error(PyExc_BufferError, e.what());
    case ErrorCode::kRuntime: return py::set_error(PyExc_RuntimeError, e.what());
  }
}

namespace function_detail {

/// The argument `object`, which the caller holds.
template <class T>
decltype(auto) argument(PyObject* object) {
  using Plain = std::remove_cv_t<std::remove_reference_t<T>>;
  if constexpr (std::is_same_v<Plain, py::handle>) {
    return py::handle(object);
  } else if constexpr (std::is_same_v<Plain, py::object>) {
    return py::reinterpret_borrow<py::object>(object);
  } else if constexpr (std::is_same_v<Plain, std::uintptr_t>) {
    if (object == Py_None) return std::uintptr_t{0};
    const unsigned long long value = PyLong_AsUnsignedLongLong(object);
    if (value == static_cast<unsigned long long>(-1) && PyErr_Occurred() != nullptr) {
      throw py::error_already_set();
    }
    return static_cast<std::uintptr_t>(value);
  } else {
    return py::handle(object).cast<T>();
  }
}

inline PyObject* result(py::object&& value) { return value.release().ptr(); }
inline PyObject* result(std::size_t value) { return PyLong_FromSize_t(value); }

template <auto kFunction, class R, class... Args, std::size_t... kIndices>
PyObject* call_with(R (*)(Args...), PyObject* const* arguments, std::index_sequence<kIndices...>) {
  return result(kFunction(argument<Args>(arguments[kIndices])...));
}
template <class R, class... Args>
constexpr std::size_t count_of(R (*)(Args...)) {
  return sizeof...(Args);
}
/// How many parameters at the end are objects or pointers.
template <class R, class... Args>
constexpr std::size_t optional_of(R (*)(Args...)) {
  std::size_t n = 0;
  ((n = std::is_same_v<Args, const py::object&> || std::is_same_v<Args, std::uintptr_t> ? n + 1
                                                                                        : 0),
   ...);
  return n;
}

template <auto kFunction>
PyObject* call(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  constexpr std::size_t kCount = count_of(kFunction), kOptional = optional_of(kFunction);
  const auto given = static_cast<std::size_t>(count);
  PyObject* all[kCount];
  if (given < kCount && given >= kCount - kOptional) {
    std::copy(arguments, arguments + given, all);
    std::fill(all + given, all + kCount, Py_None);
    arguments = all;
  } else if (given != kCount) {
    PyErr_Format(PyExc_TypeError, "expected %zu arguments (actual: %zd)", kCount, count);
    return nullptr;
  }
  // No `catch (...)`: what ends a thread must pass.
  try {
    return call_with<kFunction>(kFunction, arguments, std::make_index_sequence<kCount>());
  } catch (py::error_already_set& e) {
    e.restore();
  } catch (const py::cast_error& e) {
    py::set_error(PyExc_TypeError, e.what());
  } catch (const py::builtin_exception& e) {
    e.set_error();
  } catch (const Error& e) {
    set_error(e);
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& e) {
    py::set_error(PyExc_RuntimeError, e.what());
  }
  return nullptr;
}

}  // namespace function_detail

/// Make `kFunction` the module's function `name`: of handles, objects, integers that are pointers,
/// and bound classes, to an object or a size. Objects and pointers at the end may be left out, and
/// are None and null then.
template <auto kFunction>
void define(py::module_& m, std::string name) {
  // CPython keeps the pointer to both.
  static const std::string kept = std::move(name);
  static PyMethodDef definition = {kept.c_str(),
                                   reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(
                                       &function_detail::call<kFunction>)),
                                   METH_FASTCALL, nullptr};
  m.add_object(kept.c_str(),
               py::reinterpret_steal<py::object>(PyCFunction_New(&definition, nullptr)));
}

}  // namespace penstock::python
