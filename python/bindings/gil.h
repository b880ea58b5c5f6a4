// Computing without the interpreter's lock.
#pragma once

#include <pybind11/pybind11.h>

#if defined(__GLIBCXX__)
#include <cxxabi.h>
#include <unistd.h>
#endif

namespace penstock::python {

/// Gives the interpreter's lock back for its lifetime. Unlike pybind11's, it may be left while the
/// interpreter shuts down: CPython before 3.14 then ends a daemon thread that asks for the lock by
/// unwinding its stack, which no destructor survives. Such a thread waits here for the end of the
/// process, as later versions make it do.
class GilRelease {
 public:
  GilRelease() : state_(PyEval_SaveThread()) {}
  GilRelease(const GilRelease&) = delete;
  GilRelease& operator=(const GilRelease&) = delete;
  ~GilRelease() {
#if defined(__GLIBCXX__)
    try {
      PyEval_RestoreThread(state_);
    } catch (abi::__forced_unwind&) {
      for (;;) pause();
    }
#else
    PyEval_RestoreThread(state_);
#endif
  }

 private:
  PyThreadState* state_;
};

}  // namespace penstock::python
