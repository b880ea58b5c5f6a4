#include "cuda/cublas.h"

#include <dlfcn.h>

#include <cstdlib>

namespace penstock::cuda {
namespace {

struct Loaded {
  Cublas table = {};
  bool usable = false;
  std::string why;
};

// Where a major version's libraries lie below site-packages/nvidia.
struct Version {
  const char* major;
  const char* wheel_folder;
};
// The plugin's own major version first, though either serves: all that crosses is driver types.
#if defined(PENSTOCK_CUDA_MAJOR) && PENSTOCK_CUDA_MAJOR < 13
constexpr Version kVersions[] = {{"12", "cublas/lib"}, {"13", "cu13/lib"}};
#else
constexpr Version kVersions[] = {{"13", "cu13/lib"}, {"12", "cublas/lib"}};
#endif

std::string own_directory() {
  Dl_info info;
  if (dladdr(reinterpret_cast<void*>(&own_directory), &info) == 0 || info.dli_fname == nullptr) {
    return ".";
  }
  const std::string path = info.dli_fname;
  const auto slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, slash);
}

/// libcublas in `folder` (empty: the loader's search). Its libcublasLt is loaded first, because
/// the loader would not look for that in the same folder.
void* open_in(const std::string& folder, const std::string& major) {
  const std::string prefix = folder.empty() ? "" : folder + "/";
  dlopen((prefix + "libcublasLt.so." + major).c_str(), RTLD_NOW | RTLD_LOCAL);
  return dlopen((prefix + "libcublas.so." + major).c_str(), RTLD_NOW | RTLD_LOCAL);
}

void* open_library(std::string* why) {
  // A second copy beside the one that CuPy or PyTorch has loaded would cost memory and time.
  for (const Version& v : kVersions) {
    const std::string name = std::string("libcublas.so.") + v.major;
    if (void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_NOLOAD)) return handle;
  }
  if (const char* path = std::getenv("PENSTOCK_CUBLAS"); path != nullptr && *path != '\0') {
    const std::string file = path;
    const auto slash = file.rfind('/');
    const auto so = file.rfind(".so.");
    if (slash != std::string::npos && so != std::string::npos) {
      dlopen((file.substr(0, slash) + "/libcublasLt" + file.substr(so)).c_str(),
             RTLD_NOW | RTLD_LOCAL);
    }
    void* handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) *why = std::string("PENSTOCK_CUBLAS does not load: ") + dlerror();
    return handle;
  }
  // In a wheel the plugin is site-packages/penstock/lib/….
  const std::string wheels = own_directory() + "/../../nvidia/";
  for (const Version& v : kVersions) {
    if (void* handle = open_in(wheels + v.wheel_folder, v.major)) return handle;
  }
  for (const Version& v : kVersions) {
    if (void* handle = open_in("", v.major)) return handle;
  }
  *why = std::string("cuBLAS was not found (libcublas.so.") + kVersions[0].major +
         "): pip install nvidia-cublas" + (kVersions[0].major[1] == '2' ? "-cu12" : "") +
         ", or set PENSTOCK_CUBLAS to the library's path";
  return nullptr;
}

template <class Function>
bool resolve(void* library, const char* name, Function* function, std::string* why) {
  *function = reinterpret_cast<Function>(dlsym(library, name));
  if (*function == nullptr) {
    *why = std::string("this cuBLAS is too old: it has no ") + name + " (12.0 or newer is needed)";
  }
  return *function != nullptr;
}

Loaded load() {
  Loaded l;
  void* library = open_library(&l.why);
  Cublas& t = l.table;
  l.usable = library != nullptr && resolve(library, "cublasCreate_v2", &t.create, &l.why) &&
             resolve(library, "cublasDestroy_v2", &t.destroy, &l.why) &&
             resolve(library, "cublasSetStream_v2", &t.set_stream, &l.why) &&
             resolve(library, "cublasSetWorkspace_v2", &t.set_workspace, &l.why) &&
             resolve(library, "cublasSetMathMode", &t.set_math_mode, &l.why) &&
             resolve(library, "cublasGemmEx_64", &t.gemm, &l.why) &&
             resolve(library, "cublasGemmStridedBatchedEx_64", &t.gemm_strided_batched, &l.why) &&
             resolve(library, "cublasGetStatusString", &t.status_string, &l.why);
  return l;
}

}  // namespace

const Cublas* cublas(std::string* why) {
  static const Loaded loaded = load();
  if (!loaded.usable && why != nullptr) *why = loaded.why;
  return loaded.usable ? &loaded.table : nullptr;
}

}  // namespace penstock::cuda
