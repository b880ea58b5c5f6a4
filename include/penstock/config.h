// What this build is and what it found on this machine; settings of the process.
#pragma once

#include <string>

#include "penstock/export.h"

namespace penstock {

/// Version of the library, "major.minor.patch".
PENSTOCK_EXPORT const char* version();

struct Config {
  std::string version;
  std::string compiler;
  std::string cpu_isa;  // instruction set in use: "avx512+amx", "avx512", "avx2", "neon", "base"
  std::string cpu_warning;   // empty, or which setting of the environment has no meaning
  std::string blas;          // name and version of the BLAS
  std::string blas_core;     // the processor for which that BLAS chose its kernels
  std::string blas_warning;  // empty, or why that choice looks slow
  int num_threads = 1;
  bool cuda_available = false;
  std::string cuda_status;  // in words: devices found, or why CUDA is off
};

/// Describe the library. Loads the CUDA plugin to find out whether it works; never throws for that.
PENSTOCK_EXPORT Config config();

/// Number of threads that CPU work is spread over; results do not depend on it.
/// Default: PENSTOCK_NUM_THREADS, else the processors this process may run on.
PENSTOCK_EXPORT int num_threads();
/// `n` >= 1; throws Error(kValue) otherwise.
PENSTOCK_EXPORT void set_num_threads(int n);

/// Whether, on the CPU, a sequence's result never depends on what else is in the batch nor on how
/// long that is, bit for bit. Otherwise two kinds of calls round in their own ways, because that is
/// faster: the SRU's, by their number of steps and sequences, and those of the other cells with a
/// single step of fewer than 16 sequences and large weights (not sliced ones). A setting of the
/// process, not to be changed between the query of a size and the call that it is for. Default:
/// PENSTOCK_BATCH_INVARIANT=1, else false.
PENSTOCK_EXPORT bool batch_invariant();
PENSTOCK_EXPORT void set_batch_invariant(bool enabled);

}  // namespace penstock
