#include "cuda/driver.h"

#include <dlfcn.h>

namespace penstock::cuda {

std::string driver_problem() {
  // The runtime would only say that the driver is "insufficient", which sends people the wrong way.
  void* handle = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) return "no NVIDIA driver: libcuda.so.1 is not on this machine";
  dlclose(handle);
  return "";
}

}  // namespace penstock::cuda
