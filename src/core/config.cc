#include "penstock/config.h"

#include <cstdlib>
#include <cstring>

#include "core/backend.h"
#include "cpu/batch_invariance.h"
#include "cpu/blas.h"
#include "cpu/isa.h"
#include "cpu/threads.h"
#include "penstock/error.h"

namespace penstock {

namespace {

// Settings that were misspelt and so have no effect.
std::string settings_warning() {
  std::string words;
  if (const char* isa = std::getenv("PENSTOCK_ISA"); isa != nullptr && *isa != '\0') {
    bool known = false;
    for (const char* name : {"base", "avx2", "avx512", "amx"}) {
      known = known || std::strcmp(isa, name) == 0;
    }
    if (!known) {
      words +=
          std::string("PENSTOCK_ISA=") + isa + " is ignored: expected base, avx2, avx512 or amx";
    }
  }
  if (const char* threads = std::getenv("PENSTOCK_NUM_THREADS");
      threads != nullptr && *threads != '\0') {
    char* end = nullptr;
    const long n = std::strtol(threads, &end, 10);
    if (*end != '\0' || n < 1) {
      words += std::string(words.empty() ? "" : "; ") + "PENSTOCK_NUM_THREADS=" + threads +
               " is ignored: expected a whole number from 1";
    }
  }
  if (const char* invariant = std::getenv("PENSTOCK_BATCH_INVARIANT");
      invariant != nullptr && *invariant != '\0' && std::strcmp(invariant, "0") != 0 &&
      std::strcmp(invariant, "1") != 0) {
    words += std::string(words.empty() ? "" : "; ") + "PENSTOCK_BATCH_INVARIANT=" + invariant +
             " is ignored: expected 0 or 1";
  }
  return words;
}

}  // namespace

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
  c.cpu_warning = settings_warning();
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

bool batch_invariant() { return cpu::batch_invariant(); }

void set_batch_invariant(bool enabled) { cpu::set_batch_invariant(enabled); }

}  // namespace penstock
