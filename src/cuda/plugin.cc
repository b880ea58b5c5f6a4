// The plugin's one exported symbol.

#include "cuda/cuda_backend.h"
#include "penstock/export.h"

extern "C" PENSTOCK_EXPORT const penstock::Backend* penstock_plugin_backend() {
  return &penstock::cuda::backend();
}
