// The plugin has a runtime of its own, whose streams alone its kernels can be put on: what a test
// needs of it to capture the library's work.
#pragma once

#include <cuda_runtime.h>

namespace cuda_emulation {

struct PluginStreams {
  cudaError_t (*create)(cudaStream_t*, unsigned flags);
  cudaError_t (*destroy)(cudaStream_t);
  cudaError_t (*begin_capture)(cudaStream_t, cudaStreamCaptureMode);
  cudaError_t (*end_capture)(cudaStream_t, cudaGraph_t*);
  cudaError_t (*instantiate)(cudaGraphExec_t*, cudaGraph_t, unsigned long long flags);
  cudaError_t (*launch)(cudaGraphExec_t, cudaStream_t);
  cudaError_t (*destroy_graph)(cudaGraph_t);
  cudaError_t (*destroy_exec)(cudaGraphExec_t);
};

/// What the plugin exports, as `extern "C" const PluginStreams* penstock_emulated_streams()`.
using PluginStreamsEntry = const PluginStreams* (*)();
constexpr const char* kPluginStreamsName = "penstock_emulated_streams";

}  // namespace cuda_emulation
