// Reused host memory for workspaces and reserves. Fresh pages cost more than the work done in them
// (2 to 4 GB/s to fault in), so freed blocks are kept for the next call of the same size class.
#pragma once

#include <cstddef>

namespace penstock::python {

class HostBlock {
 public:
  HostBlock() = default;
  explicit HostBlock(std::size_t bytes);
  HostBlock(HostBlock&& other) noexcept;
  HostBlock& operator=(HostBlock&& other) noexcept;
  ~HostBlock();

  void* data() const { return data_; }

 private:
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

/// Bytes kept for reuse.
std::size_t host_pool_bytes();
/// Give them back to the system.
void release_host_pool();

}  // namespace penstock::python
