// The stand-in's runtime: devices, memory, and the running of grids.
//
// Blocks run one after the other. A block's threads are functions called on fibres: a fibre calls
// one thread after the other until one of them waits at a barrier, and stays with that thread until
// it returns; the other threads go on with another fibre. So a kernel without barriers costs one
// call per thread, and any barrier is a real meeting point.

#include <cuda_runtime.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <vector>

#include "fibre.h"

namespace cuda_emulation {

namespace {

thread_local cudaError_t last_error = cudaSuccess;

cudaError_t fail(cudaError_t error) {
  last_error = error;
  return error;
}

/// splitmix64: small, and every seed is good.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next() {
    std::uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  template <class T>
  void shuffle(std::vector<T>& v) {
    for (std::size_t i = v.size(); i > 1; --i) std::swap(v[i - 1], v[next() % i]);
  }

 private:
  std::uint64_t state_;
};

/// Runs the blocks of one operating-system thread's launches.
class Block {
 public:
  /// Run every thread of the block at blockIdx; false if they met at different barriers.
  bool run(const dim3& shape, void (*body)(void*), void* user, Random* random) {
    body_ = body;
    user_ = user;
    shape_ = shape;
    order_.resize(std::size_t{shape.x} * shape.y * shape.z);
    std::iota(order_.begin(), order_.end(), 0u);
    if (random != nullptr) random->shuffle(order_);
    next_ = 0;
    waiting_.clear();
    bool together = true;
    while (next_ < order_.size()) resume(idle_fibre());
    while (!waiting_.empty()) {
      // All that have not returned are here: let them go on.
      std::vector<Waiter> released;
      released.swap(waiting_);
      for (const Waiter& w : released) together = together && same_place(w, released.front());
      if (random != nullptr) random->shuffle(released);
      for (const Waiter& w : released) {
        threadIdx = w.thread;
        resume(w.fibre);
      }
    }
    return together;
  }

  void barrier(const char* file, int line) {
    Fibre* self = current_;
    waiting_.push_back({self, threadIdx, file, line});
    self->leave();
  }

  std::vector<unsigned char> shared;

 private:
  struct Waiter {
    Fibre* fibre;
    uint3 thread;
    const char* file;
    int line;
  };

  static bool same_place(const Waiter& a, const Waiter& b) {
    if (a.line == b.line && std::strcmp(a.file, b.file) == 0) return true;
    std::fprintf(stderr,
                 "cuda_emulation: threads of block (%u, %u, %u) meet at two barriers: "
                 "%s:%d and %s:%d\n",
                 blockIdx.x, blockIdx.y, blockIdx.z, a.file, a.line, b.file, b.line);
    return false;
  }

  /// What a fibre does: take threads that have not started, one after the other.
  static void work(void* user) {
    auto* block = static_cast<Block*>(user);
    Fibre* self = block->current_;
    for (;;) {
      while (block->next_ < block->order_.size()) {
        const unsigned i = block->order_[block->next_++];
        const unsigned plane = block->shape_.x * block->shape_.y;
        threadIdx = {i % block->shape_.x, i % plane / block->shape_.x, i / plane};
        block->body_(block->user_);
      }
      block->idle_.push_back(self);
      self->leave();
    }
  }

  Fibre* idle_fibre() {
    if (idle_.empty()) {
      fibres_.push_back(std::make_unique<Fibre>(&Block::work, this));
      return fibres_.back().get();
    }
    Fibre* fibre = idle_.back();
    idle_.pop_back();
    return fibre;
  }

  void resume(Fibre* fibre) {
    current_ = fibre;
    fibre->enter();
  }

  void (*body_)(void*) = nullptr;
  void* user_ = nullptr;
  dim3 shape_;
  std::vector<unsigned> order_;  // threads by number, in the order they start
  std::size_t next_ = 0;
  std::vector<Waiter> waiting_;
  std::vector<std::unique_ptr<Fibre>> fibres_;
  std::vector<Fibre*> idle_;
  Fibre* current_ = nullptr;
};

thread_local std::unique_ptr<Block> block;

/// 0: the natural order, for debugging.
std::uint64_t seed() {
  static const std::uint64_t value = [] {
    const char* text = std::getenv("PENSTOCK_EMULATION_SEED");
    return text == nullptr || *text == '\0' ? std::uint64_t{1} : std::strtoull(text, nullptr, 10);
  }();
  return value;
}

bool legal(const cudaLaunchConfig_t& c) {
  const std::uint64_t threads = std::uint64_t{c.blockDim.x} * c.blockDim.y * c.blockDim.z;
  return threads >= 1 && threads <= kMaxThreadsPerBlock && c.blockDim.x <= 1024 &&
         c.blockDim.y <= 1024 && c.blockDim.z <= 64 && c.gridDim.x >= 1 && c.gridDim.y >= 1 &&
         c.gridDim.z >= 1 && c.gridDim.x <= 0x7fffffffu && c.gridDim.y <= 65535 &&
         c.gridDim.z <= 65535;
}

}  // namespace

cudaError_t run_grid(const cudaLaunchConfig_t& config, void (*body)(void*), void* user) {
  if (!legal(config)) return fail(cudaErrorInvalidConfiguration);
  if (config.dynamicSmemBytes > kMaxSharedBytes) return fail(cudaErrorInvalidValue);
  static std::atomic<std::uint64_t> launches{0};
  Random random(seed() * 0x2545f4914f6cdd1du + launches++);
  Random* shuffled = seed() == 0 ? nullptr : &random;

  if (block == nullptr) block = std::make_unique<Block>();
  const dim3 grid = config.gridDim;
  std::vector<std::uint64_t> order(std::uint64_t{grid.x} * grid.y * grid.z);
  std::iota(order.begin(), order.end(), std::uint64_t{0});
  if (shuffled != nullptr) random.shuffle(order);
  gridDim = grid;
  blockDim = config.blockDim;
  bool together = true;
  for (const std::uint64_t i : order) {
    const std::uint64_t plane = std::uint64_t{grid.x} * grid.y;
    blockIdx = {static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i % plane / grid.x),
                static_cast<unsigned>(i / plane)};
    // A new allocation for each block, so that a sanitizer sees its bounds.
    block->shared = std::vector<unsigned char>(config.dynamicSmemBytes, 0xff);
    together = block->run(config.blockDim, body, user, shuffled) && together;
  }
  block->shared = {};
  return together ? cudaSuccess : fail(cudaErrorLaunchFailure);
}

void block_barrier(const char* file, int line) { block->barrier(file, line); }

void* dynamic_shared_memory() { return block->shared.data(); }

}  // namespace cuda_emulation

using cuda_emulation::fail;

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorInsufficientDriver:
      return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorLaunchFailure: return "unspecified launch failure";
  }
  return "unrecognized error code";
}

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    case cudaErrorInsufficientDriver: return "cudaErrorInsufficientDriver";
    case cudaErrorNoDevice: return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorLaunchFailure: return "cudaErrorLaunchFailure";
  }
  return "unrecognized error code";
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = cuda_emulation::last_error;
  cuda_emulation::last_error = cudaSuccess;
  return error;
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  return device == 0 ? cudaSuccess : fail(cudaErrorInvalidDevice);
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
  if (device != 0) return fail(cudaErrorInvalidDevice);
  *p = {};
  std::snprintf(p->name, sizeof p->name, "emulated device");
  p->major = 9;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* dst, const void* src, std::size_t bytes, cudaMemcpyKind,
                            cudaStream_t) {
  if (bytes != 0) std::memcpy(dst, src, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* data, int value, std::size_t bytes, cudaStream_t) {
  if (bytes != 0) std::memset(data, value, bytes);
  return cudaSuccess;
}
