// The functions that XLA calls, by names that a program can look up:
// penstock_xla_OPERATION_PASS_DEVICE, each an XLA_FFI_Handler.

#include "ffi/operations.h"
#include "penstock/export.h"

// XLA keeps a handler for each platform, so there is one for each.
#define PENSTOCK_XLA_PASS(op, pass)                                                             \
  extern "C" PENSTOCK_EXPORT penstock::ffi::xla::Error* penstock_xla_##op##_##pass##_cpu(       \
      penstock::ffi::xla::CallFrame* call) {                                                    \
    return penstock::ffi::handle(#op, &penstock::ffi::op##_##pass, penstock::DeviceType::kCpu,  \
                                 call);                                                         \
  }                                                                                             \
  extern "C" PENSTOCK_EXPORT penstock::ffi::xla::Error* penstock_xla_##op##_##pass##_cuda(      \
      penstock::ffi::xla::CallFrame* call) {                                                    \
    return penstock::ffi::handle(#op, &penstock::ffi::op##_##pass, penstock::DeviceType::kCuda, \
                                 call);                                                         \
  }
#define PENSTOCK_XLA_OPERATION(op) \
  PENSTOCK_XLA_PASS(op, forward)   \
  PENSTOCK_XLA_PASS(op, backward)

PENSTOCK_XLA_OPERATION(rnn)
PENSTOCK_XLA_OPERATION(gru)
PENSTOCK_XLA_OPERATION(lstm)
PENSTOCK_XLA_OPERATION(sru)
PENSTOCK_XLA_OPERATION(sliced)
