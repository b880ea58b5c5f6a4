// Loads the CUDA plugin on first use. The library itself has no CUDA dependency, so it loads on a
// machine without a driver, and can say in words why CUDA is off.

#include <dlfcn.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "core/backend.h"
#include "penstock/error.h"

namespace penstock {
namespace {

struct Plugin {
  const Backend* backend = nullptr;
  std::string status;
};

std::string own_directory() {
  Dl_info info;
  if (dladdr(reinterpret_cast<void*>(&own_directory), &info) == 0 || info.dli_fname == nullptr) {
    return ".";
  }
  const std::string path = info.dli_fname;
  const auto slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, slash);
}

Plugin load() {
  Plugin plugin;
  std::vector<std::string> candidates;
  if (const char* path = std::getenv("PENSTOCK_CUDA_PLUGIN"); path != nullptr && *path != '\0') {
    candidates.emplace_back(path);
  } else {
    for (const char* major : {"13", "12"}) {
      candidates.push_back(own_directory() + "/libpenstock_cuda" + major + ".so");
    }
  }
  // The first plugin that finds a device; else why each one that is there does not.
  std::string reasons;
  const auto failed = [&](const std::string& words) {
    reasons += (reasons.empty() ? "" : "; ") + words;
  };
  for (const std::string& path : candidates) {
    void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
      const char* reason = dlerror();
      const std::string words = reason == nullptr ? "unknown error" : reason;
      // A plugin that was never built is not worth a loader's message.
      if (words.find("No such file") == std::string::npos ||
          words.find(path) == std::string::npos) {
        failed("the CUDA plugin does not load: " + words);
      }
      continue;
    }
    const auto entry = reinterpret_cast<PluginEntry>(dlsym(handle, kPluginEntryName));
    const Backend* backend = entry == nullptr ? nullptr : entry();
    if (backend == nullptr || backend->abi != kBackendAbi) {
      failed("the CUDA plugin was built for another version of penstock; reinstall both");
      continue;
    }
    char why[512] = {};
    const int devices = backend->device_count(why, sizeof why);
    if (devices == 0) {
      failed(why);
      continue;
    }
    plugin.backend = backend;
    plugin.status = std::to_string(devices) + (devices == 1 ? " device: " : " devices: ") + why;
    return plugin;
  }
  plugin.status = !reasons.empty() ? reasons
                                   : "this build has no CUDA plugin (" + candidates.front() +
                                         " does not exist); build with PENSTOCK_CUDA=ON";
  return plugin;
}

const Plugin& cuda_plugin() {
  static const Plugin plugin = load();
  return plugin;
}

const Backend& load_host_plugin(const char* path) {
  void* handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    throw Error(ErrorCode::kRuntime,
                std::string("PENSTOCK_HOST_PLUGIN does not load: ") + dlerror());
  }
  const auto entry = reinterpret_cast<PluginEntry>(dlsym(handle, kPluginEntryName));
  const Backend* backend = entry == nullptr ? nullptr : entry();
  if (backend == nullptr || backend->abi != kBackendAbi ||
      backend->device_type != DeviceType::kCpu) {
    throw Error(ErrorCode::kRuntime,
                std::string("PENSTOCK_HOST_PLUGIN: not a host backend of this version: ") + path);
  }
  return *backend;
}

}  // namespace

const Backend& host_backend() {
  static const Backend& backend = []() -> const Backend& {
    const char* path = std::getenv("PENSTOCK_HOST_PLUGIN");
    return path == nullptr || *path == '\0' ? cpu_backend() : load_host_plugin(path);
  }();
  return backend;
}

const Backend& cuda_backend() {
  const Plugin& plugin = cuda_plugin();
  if (plugin.backend == nullptr) {
    throw Error(ErrorCode::kRuntime, "CUDA is not available: " + plugin.status);
  }
  return *plugin.backend;
}

bool cuda_status(std::string* words) {
  const Plugin& plugin = cuda_plugin();
  *words = plugin.status;
  return plugin.backend != nullptr;
}

}  // namespace penstock
