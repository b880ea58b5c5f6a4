// Cuts a caller's buffer into aligned pieces. The same code measures (no buffer) and cuts.
#pragma once

#include <cstddef>
#include <cstdint>

namespace penstock {

class Carver {
 public:
  /// `base` null: only measure.
  Carver(void* base, std::size_t alignment)
      : base_(static_cast<char*>(base)), alignment_(alignment) {}

  void* take(std::size_t bytes) {
    char* piece = base_ == nullptr ? nullptr : base_ + offset_;
    offset_ += (bytes + alignment_ - 1) / alignment_ * alignment_;
    return piece;
  }
  std::size_t bytes() const { return offset_; }

 private:
  char* base_;
  std::size_t alignment_;
  std::size_t offset_ = 0;
};

}  // namespace penstock
