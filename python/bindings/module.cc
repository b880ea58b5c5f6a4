// The extension module penstock._core.

#include <pybind11/pybind11.h>

#include "arrays.h"
#include "function.h"
#include "host_pool.h"
#include "penstock/penstock.h"
#include "recurrent.h"
#include "sliced.h"
#include "sru.h"
#include "xla.h"

namespace py = pybind11;

namespace {

py::dict config() {
  const penstock::Config c = penstock::config();
  py::dict d;
  d["version"] = c.version;
  d["compiler"] = c.compiler;
  d["cpu_isa"] = c.cpu_isa;
  d["cpu_warning"] = c.cpu_warning;
  d["blas"] = c.blas;
  d["blas_core"] = c.blas_core;
  d["blas_warning"] = c.blas_warning;
  d["num_threads"] = c.num_threads;
  d["cuda_available"] = c.cuda_available;
  d["cuda_status"] = c.cuda_status;
  return d;
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.attr("__version__") = penstock::version();
  py::register_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const penstock::Error& e) {
      penstock::python::set_error(e);
    }
  });
  m.def("config", &config);
  m.def("num_threads", &penstock::num_threads);
  m.def("set_num_threads", &penstock::set_num_threads);
  m.def("batch_invariant", &penstock::batch_invariant);
  m.def("set_batch_invariant", &penstock::set_batch_invariant);
  m.def("host_pool_bytes", &penstock::python::host_pool_bytes);
  m.def("release_host_pool", &penstock::python::release_host_pool);
  penstock::python::bind_arrays(m);
  penstock::python::bind_sru(m);
  penstock::python::bind_recurrent(m);
  penstock::python::bind_sliced(m);
  penstock::python::bind_xla(m);
}
