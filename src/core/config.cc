#include "penstock/config.h"

#include "core/backend.h"
#include "cpu/blas.h"
#include "cpu/isa.h"
#include "cpu/threads.h"
#include "penstock/error.h"

namespace penstock {

const char* version() { return PENSTOCK_VERSION; }

Config config() {
  Config c;
  c.version = version();
#if defined(__clang__)
  c.compiler = "clang " __clang_version__;
#elif defined(__GNUC__)
  c.compiler = "gcc " __VERSION__;
#endif
  c.cpu_isa = cpu::isa_name();
  c.blas = cpu::blas_name();
  c.blas_core = cpu::blas_core();
  c.blas_warning = cpu::blas_warning();
  c.num_threads = num_threads();
  c.cuda_available = cuda_status(&c.cuda_status);
  return c;
}

int num_threads() { return cpu::thread_count(); }

void set_num_threads(int n) {
  if (n < 1) {
    throw Error(ErrorCode::kValue,
                "set_num_threads: n: expected at least 1 (actual: " + std::to_string(n) + ")");
  }
  cpu::set_thread_count(n);
}

}  // namespace penstock
