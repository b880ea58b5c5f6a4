#include "backends.h"

#include <dlfcn.h>

#include <stdexcept>

namespace penstock::tests {
namespace {

#if defined(PENSTOCK_EMULATED_PLUGIN)
const Backend& emulated() {
  static const Backend& backend = []() -> const Backend& {
    void* handle = dlopen(PENSTOCK_EMULATED_PLUGIN, RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) throw std::runtime_error(dlerror());
    using Entry = const Backend* (*)();
    const auto entry = reinterpret_cast<Entry>(dlsym(handle, "penstock_plugin_backend"));
    if (entry == nullptr) throw std::runtime_error("the plugin exports no backend");
    return *entry();
  }();
  return backend;
}
#endif

}  // namespace

const std::vector<std::string>& backend_names() {
  static const std::vector<std::string> names = {
      "cpu",
#if defined(PENSTOCK_EMULATED_PLUGIN)
      "cuda_emulated",
#endif
  };
  return names;
}

Context context_of(const std::string& backend) {
  if (backend == "cpu") return Context::cpu();
#if defined(PENSTOCK_EMULATED_PLUGIN)
  if (backend == "cuda_emulated") return Context::with_backend(emulated(), Device{}, nullptr);
#endif
  throw std::runtime_error("no backend " + backend);
}

}  // namespace penstock::tests
