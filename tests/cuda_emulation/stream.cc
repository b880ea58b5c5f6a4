// Streams, their capture into graphs, and graphs.

#include "stream.h"

#include <algorithm>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

struct CUgraph_st {
  std::vector<cuda_emulation::Work> nodes;  // in order: a stream's work has no branches
};
struct CUgraphExec_st {
  std::vector<cuda_emulation::Work> nodes;
};

struct CUstream_st {
  unsigned flags = cudaStreamDefault;
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  std::thread::id thread;  // that began the capture
  std::vector<cuda_emulation::Work> nodes;
};

namespace cuda_emulation {
namespace {

std::mutex mutex;
/// Streams that capture.
std::vector<cudaStream_t>& capturing() {
  static std::vector<cudaStream_t> streams;
  return streams;
}

/// End every capture for which `concerned` holds; whether there was one. Under the lock.
template <class F>
bool invalidate(F&& concerned) {
  bool any = false;
  for (const cudaStream_t s : capturing()) {
    if (!concerned(*s)) continue;
    s->status = cudaStreamCaptureStatusInvalidated;
    any = true;
  }
  return any;
}

cudaError_t run(const std::vector<Work>& nodes) {
  for (const Work& work : nodes) {
    const cudaError_t status = work.run();
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

}  // namespace

cudaError_t put_on_stream(cudaStream_t stream, Work work) {
  {
    const std::lock_guard<std::mutex> lock(mutex);
    if (stream == nullptr) {
      // The legacy stream waits for all streams that were not created as non-blocking.
      if (invalidate([](const CUstream_st& s) { return s.flags != cudaStreamNonBlocking; })) {
        return cudaErrorStreamCaptureImplicit;
      }
    } else if (stream->status == cudaStreamCaptureStatusInvalidated) {
      return cudaErrorStreamCaptureInvalidated;
    } else if (stream->status == cudaStreamCaptureStatusActive) {
      stream->nodes.push_back(std::move(work));
      return cudaSuccess;
    }
  }
  return work.run();
}

cudaError_t check_unsafe() {
  const std::lock_guard<std::mutex> lock(mutex);
  const bool forbidden = invalidate([](const CUstream_st& s) {
    return s.mode == cudaStreamCaptureModeGlobal ||
           (s.mode == cudaStreamCaptureModeThreadLocal && s.thread == std::this_thread::get_id());
  });
  return forbidden ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}

}  // namespace cuda_emulation

using cuda_emulation::capturing;
using cuda_emulation::fail;

// ---- streams -----------------------------------------------------------------------------------

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  if (flags > cudaStreamNonBlocking) return fail(cudaErrorInvalidValue);
  *stream = new CUstream_st();
  (*stream)->flags = flags;
  return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const std::lock_guard<std::mutex> lock(cuda_emulation::mutex);
  auto& all = capturing();
  all.erase(std::remove(all.begin(), all.end(), stream), all.end());
  delete stream;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const std::lock_guard<std::mutex> lock(cuda_emulation::mutex);
  const auto concerned = [&](const CUstream_st& s) {
    return stream == nullptr ? s.flags != cudaStreamNonBlocking : &s == stream;
  };
  if (!cuda_emulation::invalidate(concerned)) return cudaSuccess;
  return fail(stream == nullptr ? cudaErrorStreamCaptureImplicit
                                : cudaErrorStreamCaptureUnsupported);
}
cudaError_t cudaStreamQuery(cudaStream_t stream) { return cudaStreamSynchronize(stream); }

cudaError_t cudaDeviceSynchronize() {
  const std::lock_guard<std::mutex> lock(cuda_emulation::mutex);
  const bool any = cuda_emulation::invalidate([](const CUstream_st&) { return true; });
  return any ? fail(cudaErrorStreamCaptureUnsupported) : cudaSuccess;
}

// ---- capture -----------------------------------------------------------------------------------

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  if (stream == nullptr) return fail(cudaErrorStreamCaptureUnsupported);
  const std::lock_guard<std::mutex> lock(cuda_emulation::mutex);
  if (stream->status != cudaStreamCaptureStatusNone) return fail(cudaErrorIllegalState);
  stream->status = cudaStreamCaptureStatusActive;
  stream->mode = mode;
  stream->thread = std::this_thread::get_id();
  stream->nodes.clear();
  capturing().push_back(stream);
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  const std::lock_guard<std::mutex> lock(cuda_emulation::mutex);
  if (stream == nullptr || stream->status == cudaStreamCaptureStatusNone) {
    return fail(cudaErrorIllegalState);
  }
  auto& all = capturing();
  all.erase(std::remove(all.begin(), all.end(), stream), all.end());
  const bool good = stream->status == cudaStreamCaptureStatusActive;
  stream->status = cudaStreamCaptureStatusNone;
  std::vector<cuda_emulation::Work> nodes = std::move(stream->nodes);
  stream->nodes.clear();
  if (!good) return fail(cudaErrorStreamCaptureInvalidated);
  *graph = new CUgraph_st{std::move(nodes)};
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  const std::lock_guard<std::mutex> lock(cuda_emulation::mutex);
  if (stream == nullptr) {
    *status = cudaStreamCaptureStatusNone;
    const auto blocking = [](cudaStream_t s) { return s->flags != cudaStreamNonBlocking; };
    return std::any_of(capturing().begin(), capturing().end(), blocking)
               ? fail(cudaErrorStreamCaptureImplicit)
               : cudaSuccess;
  }
  *status = stream->status;
  return cudaSuccess;
}

// ---- graphs ------------------------------------------------------------------------------------

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, std::size_t* count) {
  if (graph == nullptr || nodes != nullptr) return fail(cudaErrorInvalidValue);
  *count = graph->nodes.size();
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  if (graph == nullptr) return fail(cudaErrorInvalidValue);
  *exec = new CUgraphExec_st{graph->nodes};
  return cudaSuccess;
}

cudaError_t cudaGraphExecUpdate(cudaGraphExec_t exec, cudaGraph_t graph,
                                cudaGraphExecUpdateResultInfo* info) {
  if (exec == nullptr || graph == nullptr) return fail(cudaErrorInvalidValue);
  *info = {};
  if (exec->nodes.size() != graph->nodes.size()) {
    info->result = cudaGraphExecUpdateErrorTopologyChanged;
  } else {
    for (std::size_t i = 0; i < exec->nodes.size(); ++i) {
      if (exec->nodes[i].kind == graph->nodes[i].kind) continue;
      info->result = cudaGraphExecUpdateErrorNodeTypeChanged;
    }
  }
  if (info->result != cudaGraphExecUpdateSuccess) return fail(cudaErrorGraphExecUpdateFailure);
  exec->nodes = graph->nodes;
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  if (exec == nullptr) return fail(cudaErrorInvalidValue);
  // Captured, it is a node that holds a copy of the graph.
  const std::vector<cuda_emulation::Work> nodes = exec->nodes;
  return fail(cuda_emulation::put_on_stream(
      stream, {cuda_emulation::Work::kGraph, [nodes] { return cuda_emulation::run(nodes); }}));
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}
