// What is put on a stream: done at once, or recorded in the graph that the stream captures into.
#pragma once

#include <cuda_runtime.h>

#include <functional>

namespace cuda_emulation {

struct Work {
  enum Kind { kKernel, kMemset, kCopy, kLibrary, kGraph };
  Kind kind;
  std::function<cudaError_t()> run;
};

cudaError_t put_on_stream(cudaStream_t stream, Work work);

/// What calls that would not be recorded must ask first: an error, and the end of the captures
/// concerned, while a stream captures in a mode that forbids them to this thread.
cudaError_t check_unsafe();

/// Remember an error for cudaGetLastError, and return it.
cudaError_t fail(cudaError_t error);

}  // namespace cuda_emulation
