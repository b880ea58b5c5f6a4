// The emulated backend's table: CUDA's own, over host memory.

#include "cuda/cuda_backend.h"
#include "cuda/gemm.h"
#include "penstock/export.h"
#include "plugin_streams.h"

namespace {

// Small, since the stand-in needs none; it is filled at each product to show that nobody keeps
// anything there.
constexpr std::size_t kWorkspaceBytes = 1024;

std::size_t gemm_workspace_bytes() { return kWorkspaceBytes; }

void gemm(const penstock::Context& ctx, const penstock::GemmArgs& g) {
  penstock::cuda::gemm(ctx, g, kWorkspaceBytes);
}

}  // namespace

extern "C" PENSTOCK_EXPORT const penstock::Backend* penstock_plugin_backend() {
  static const penstock::Backend table = [] {
    penstock::Backend t = penstock::cuda::backend();
    t.name = "cuda_emulated";
    t.device_type = penstock::DeviceType::kCpu;
    t.host_accessible = true;
    t.gemm_workspace_bytes = &gemm_workspace_bytes;
    t.gemm = &gemm;
    // Contexts of host memory prepare no device.
    t.prepare_device(0);
    return t;
  }();
  return &table;
}

extern "C" PENSTOCK_EXPORT const cuda_emulation::PluginStreams* penstock_emulated_streams() {
  static constexpr cuda_emulation::PluginStreams table = {
      &cudaStreamCreateWithFlags, &cudaStreamDestroy,    &cudaStreamBeginCapture,
      &cudaStreamEndCapture,      &cudaGraphInstantiate, &cudaGraphLaunch,
      &cudaGraphDestroy,          &cudaGraphExecDestroy};
  return &table;
}
