// Where work runs: a device and a borrowed stream.
#pragma once

#include "penstock/export.h"
#include "penstock/types.h"

namespace penstock {

struct Backend;  // private: src/core/backend.h

/// A device and, on CUDA, the stream on which work is ordered. The stream is borrowed: the library
/// never creates, synchronises or destroys one. Cheap to copy; may be used from any thread, but
/// calls that share a workspace must not overlap.
class PENSTOCK_EXPORT Context {
 public:
  /// The CPU.
  static Context cpu();
  /// CUDA device `index`; `stream` is a cudaStream_t passed as void* (nullptr: the default stream).
  /// The first call for a device loads the CUDA plugin and creates its cuBLAS handle, so make it
  /// outside of stream capture. Throws Error(kRuntime) saying why CUDA cannot be used.
  static Context cuda(int index, void* stream);
  /// A backend of one's own, for tests.
  static Context with_backend(const Backend& backend, Device device, void* stream);

  Device device() const { return device_; }
  void* stream() const { return stream_; }
  const Backend& backend() const { return *backend_; }

 private:
  Context(const Backend& backend, Device device, void* stream)
      : backend_(&backend), device_(device), stream_(stream) {}

  const Backend* backend_;
  Device device_;
  void* stream_;
};

}  // namespace penstock
