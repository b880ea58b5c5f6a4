// The interpreter's lock: computing without it, and what becomes of a thread that cannot get it
// back.
#pragma once

#include <pybind11/pybind11.h>

#if defined(__GLIBCXX__)
#include <cxxabi.h>
#include <unistd.h>
#endif

namespace penstock::python {

namespace py = pybind11;

/// Do what may ask for the interpreter's lock: whatever runs Python code does, every few
/// milliseconds. While the interpreter shuts down, CPython before 3.14 ends a daemon thread that
/// asks by unwinding its stack, and the destructors on it would use an interpreter that is gone.
/// Such a thread waits here for the end of the process, as later versions make it do. `function`
/// must be plain C, without objects to destroy: its own frames are unwound first.
template <class F>
auto survive_shutdown(F function) -> decltype(function()) {
#if defined(__GLIBCXX__)
  try {
    return function();
  } catch (abi::__forced_unwind&) {
    for (;;) pause();
  }
#else
  return function();
#endif
}

/// Gives the interpreter's lock back for its lifetime. Unlike pybind11's, it may be left while the
/// interpreter shuts down.
class GilRelease {
 public:
  GilRelease() : state_(PyEval_SaveThread()) {}
  GilRelease(const GilRelease&) = delete;
  GilRelease& operator=(const GilRelease&) = delete;
  ~GilRelease() {
    survive_shutdown([this] { PyEval_RestoreThread(state_); });
  }

 private:
  PyThreadState* state_;
};

// Python code of others, which may be under way when the interpreter shuts down.

/// `object.name`. Throws what it raises.
inline py::object attribute(py::handle object, const char* name) {
  PyObject* got = survive_shutdown([=] { return PyObject_GetAttrString(object.ptr(), name); });
  if (got == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(got);
}

inline bool has_attribute(py::handle object, const char* name) {
  return survive_shutdown([=] { return PyObject_HasAttrString(object.ptr(), name); }) == 1;
}

/// `function(*arguments, **named)`. Throws what it raises.
inline py::object call(py::handle function, const py::tuple& arguments,
                       const py::dict& named = py::dict()) {
  PyObject *in = arguments.ptr(), *by_name = named.ptr();
  PyObject* got = survive_shutdown([=] { return PyObject_Call(function.ptr(), in, by_name); });
  if (got == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(got);
}

}  // namespace penstock::python
