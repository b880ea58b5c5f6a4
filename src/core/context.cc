#include "penstock/context.h"

#include "core/backend.h"

namespace penstock {

Context Context::cpu() { return Context(host_backend(), Device{}, nullptr); }

Context Context::cuda(int index, void* stream) {
  return with_backend(cuda_backend(), Device{DeviceType::kCuda, index}, stream);
}

Context Context::with_backend(const Backend& backend, Device device, void* stream) {
  backend.prepare_device(device.index);
  return Context(backend, device, stream);
}

}  // namespace penstock
