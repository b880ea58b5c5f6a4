#include "host_pool.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <list>
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
      if (it != free_.end()) {  // the one given last, which may still be in the cache
        const auto block = it->second.back();
        void* data = block->data;
        forget(block);
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
    if (size > kMostKept) {
      std::free(data);
      return;
    }
    std::lock_guard<std::mutex> lock(mutex_);
    // Sizes change with the lengths of sequences: what has lain longest makes room.
    while (kept_ + size > kMostKept) {
      void* oldest = blocks_.front().data;
      forget(blocks_.begin());
      std::free(oldest);
    }
    bool listed = false;
    try {
      blocks_.push_back({data, size});
      listed = true;
      free_[size].push_back(std::prev(blocks_.end()));
      kept_ += size;
    } catch (const std::bad_alloc&) {
      if (listed) blocks_.pop_back();
      std::free(data);
    }
  }

  std::size_t kept() {
    std::lock_guard<std::mutex> lock(mutex_);
    return kept_;
  }

  void release() {
    std::lock_guard<std::mutex> lock(mutex_);
    for (const Block& block : blocks_) std::free(block.data);
    blocks_.clear();
    free_.clear();
    kept_ = 0;
  }

 private:
  struct Block {
    void* data;
    std::size_t size;
  };
  using Blocks = std::list<Block>;

  /// Drop it from the books. Blocks of a size are in the order in which they came.
  void forget(Blocks::iterator block) {
    const auto same = free_.find(block->size);
    auto& those = same->second;
    those.erase(std::find(those.begin(), those.end(), block));
    if (those.empty()) free_.erase(same);
    kept_ -= block->size;
    blocks_.erase(block);
  }

  std::mutex mutex_;
  Blocks blocks_;  // the oldest first
  std::map<std::size_t, std::vector<Blocks::iterator>> free_;
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
