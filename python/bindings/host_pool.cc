#include "host_pool.h"

#include <sys/mman.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

namespace penstock::python {
namespace {

constexpr std::size_t kAlignment = 256;
constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kMostKept = std::size_t{1} << 30;

// Size classes an eighth apart, so that nearly equal requests share blocks.
std::size_t round_up(std::size_t bytes) {
  std::size_t step = kAlignment;
  while (step * 16 < bytes) step *= 2;
  return (bytes + step - 1) / step * step;
}

class Pool {
 public:
  void* take(std::size_t size) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      auto it = free_.find(size);
      if (it != free_.end() && !it->second.empty()) {
        void* data = it->second.back();
        it->second.pop_back();
        kept_ -= size;
        return data;
      }
    }
    const std::size_t alignment = size >= 2 * kHugePage ? kHugePage : kAlignment;
    const std::size_t rounded = (size + alignment - 1) / alignment * alignment;
    void* data = std::aligned_alloc(alignment, rounded);
    if (data == nullptr) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
    if (alignment == kHugePage) madvise(data, rounded, MADV_HUGEPAGE);
#endif
    return data;
  }

  void give(void* data, std::size_t size) noexcept {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (kept_ + size <= kMostKept) {
        try {
          free_[size].push_back(data);
          kept_ += size;
          return;
        } catch (const std::bad_alloc&) {
        }
      }
    }
    std::free(data);
  }

  std::size_t kept() {
    std::lock_guard<std::mutex> lock(mutex_);
    return kept_;
  }

  void release() {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto& [size, blocks] : free_) {
      for (void* data : blocks) std::free(data);
    }
    free_.clear();
    kept_ = 0;
  }

 private:
  std::mutex mutex_;
  std::map<std::size_t, std::vector<void*>> free_;
  std::size_t kept_ = 0;
};

// Never destroyed: arrays may outlive static objects at interpreter exit.
Pool& pool() {
  static Pool* p = new Pool;
  return *p;
}

}  // namespace

HostBlock::HostBlock(std::size_t bytes) {
  if (bytes == 0) return;
  size_ = round_up(bytes);
  data_ = pool().take(size_);
}
HostBlock::HostBlock(HostBlock&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
HostBlock& HostBlock::operator=(HostBlock&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}
HostBlock::~HostBlock() {
  if (data_ != nullptr) pool().give(data_, size_);
}

std::size_t host_pool_bytes() { return pool().kept(); }
void release_host_pool() { pool().release(); }

}  // namespace penstock::python
