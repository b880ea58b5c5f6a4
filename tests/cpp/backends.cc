#include "backends.h"

#include <dlfcn.h>

#include <cstdlib>
#include <new>
#include <stdexcept>

#include "core/backend.h"

namespace penstock::tests {
namespace {

#if defined(PENSTOCK_EMULATED_PLUGIN) || defined(PENSTOCK_TESTED_CUDA_PLUGIN)
const Backend& load(const char* path) {
  void* handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) throw std::runtime_error(dlerror());
  const auto entry = reinterpret_cast<PluginEntry>(dlsym(handle, kPluginEntryName));
  if (entry == nullptr) throw std::runtime_error("the plugin exports no backend");
  return *entry();
}
#endif

#if defined(PENSTOCK_EMULATED_PLUGIN)
const Backend& emulated() {
  static const Backend& backend = load(PENSTOCK_EMULATED_PLUGIN);
  return backend;
}
#endif

const Memory kHostMemory = {
    [](std::size_t bytes) {
      void* memory = nullptr;
      if (posix_memalign(&memory, 256, bytes) != 0) throw std::bad_alloc();
      return memory;
    },
    [](void* memory) { std::free(memory); },
    [] {},
};

#if defined(PENSTOCK_TESTED_CUDA_PLUGIN)
/// The CUDA plugin, or null where it finds no device. Its table says host memory, so that tests
/// treat it as they do the other backends; their arrays are in managed memory.
const Backend* cuda() {
  static const Backend* backend = []() -> const Backend* {
    const Backend& plugin = load(PENSTOCK_TESTED_CUDA_PLUGIN);
    if (plugin.device_count(nullptr, 0) == 0) return nullptr;
    plugin.prepare_device(0);
    static Backend table = plugin;
    table.device_type = DeviceType::kCpu;
    table.host_accessible = true;
    return &table;
  }();
  return backend;
}

/// What tests need of the driver; no CUDA header is needed to build them.
struct Driver {
  int (*retain)(void** context, int device) = nullptr;
  int (*set_current)(void* context) = nullptr;
  int (*allocate)(unsigned long long* memory, std::size_t bytes, unsigned flags) = nullptr;
  int (*release)(unsigned long long memory) = nullptr;
  int (*synchronize)() = nullptr;
};

template <class Function>
void resolve(void* library, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(library, name));
  if (*function == nullptr) throw std::runtime_error(std::string("no ") + name);
}

void check(int status, const char* what) {
  if (status != 0) throw std::runtime_error(what + std::string(" ") + std::to_string(status));
}

const Driver& driver() {
  static const Driver d = [] {
    void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) throw std::runtime_error(dlerror());
    Driver functions;
    resolve(library, "cuDevicePrimaryCtxRetain", &functions.retain);
    resolve(library, "cuCtxSetCurrent", &functions.set_current);
    resolve(library, "cuMemAllocManaged", &functions.allocate);
    resolve(library, "cuMemFree_v2", &functions.release);
    resolve(library, "cuCtxSynchronize", &functions.synchronize);
    void* context = nullptr;  // the one that the plugin's runtime uses
    check(functions.retain(&context, 0), "cuDevicePrimaryCtxRetain");
    check(functions.set_current(context), "cuCtxSetCurrent");
    return functions;
  }();
  return d;
}

const Memory kManagedMemory = {
    [](std::size_t bytes) {
      constexpr unsigned kAttachGlobal = 1;
      unsigned long long memory = 0;
      if (driver().allocate(&memory, bytes, kAttachGlobal) != 0) throw std::bad_alloc();
      return reinterpret_cast<void*>(memory);
    },
    [](void* memory) { driver().release(reinterpret_cast<unsigned long long>(memory)); },
    [] { check(driver().synchronize(), "cuCtxSynchronize"); },
};
#endif

const Memory* g_memory = &kHostMemory;

}  // namespace

const Memory& current_memory() { return *g_memory; }

void BackendTest::SetUp() {
#if defined(PENSTOCK_TESTED_CUDA_PLUGIN)
  if (GetParam() == "cuda") g_memory = &kManagedMemory;
#endif
}

void BackendTest::TearDown() { g_memory = &kHostMemory; }

const std::vector<std::string>& backend_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> all = {"cpu"};
#if defined(PENSTOCK_EMULATED_PLUGIN)
    all.emplace_back("cuda_emulated");
#endif
#if defined(PENSTOCK_TESTED_CUDA_PLUGIN)
    if (cuda() != nullptr) all.emplace_back("cuda");
#endif
    return all;
  }();
  return names;
}

Context context_of(const std::string& backend) {
  if (backend == "cpu") return Context::cpu();
#if defined(PENSTOCK_EMULATED_PLUGIN)
  if (backend == "cuda_emulated") return Context::with_backend(emulated(), Device{}, nullptr);
#endif
#if defined(PENSTOCK_TESTED_CUDA_PLUGIN)
  if (backend == "cuda") return Context::with_backend(*cuda(), Device{}, nullptr);
#endif
  throw std::runtime_error("no backend " + backend);
}

}  // namespace penstock::tests
