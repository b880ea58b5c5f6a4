// Building blocks of an operation's check function. Every message names the argument, what was
// expected and what came.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>

#include "penstock/context.h"
#include "penstock/error.h"
#include "penstock/tensor_view.h"

namespace penstock::checks {

/// Collects an operation's arguments, each checked against what it should be.
class Checker {
 public:
  Checker(const char* op, const Context& ctx) : op_(op), ctx_(ctx) {}

  /// The argument must be given.
  void required(const char* name, const TensorView& v) const;
  /// Given or not; if given, this shape (with its formula for the message), type and the
  /// context's device.
  void input(const char* name, const TensorView& v, DataType dtype,
             std::initializer_list<std::int64_t> shape, const char* formula);
  /// As input, and contiguous, writable and not overlapping anything seen so far: so check inputs
  /// first.
  void output(const char* name, const TensorView& v, DataType dtype,
              std::initializer_list<std::int64_t> shape, const char* formula);
  /// A byte buffer of at least `bytes`, aligned; not overlapping anything seen so far.
  void buffer(const char* name, const TensorView& v, std::size_t bytes, std::size_t alignment,
              bool written);
  void rank(const char* name, const TensorView& v, int rank, const char* formula) const;
  void device(const char* name, const TensorView& v) const;

  [[noreturn]] void fail(ErrorCode code, const char* name, const std::string& what) const;

 private:
  void shape(const char* name, const TensorView& v, std::initializer_list<std::int64_t> shape,
             const char* formula) const;
  void remember(const char* name, const TensorView& v);
  void no_overlap(const char* name, const TensorView& v) const;

  struct Range {
    const char* name;
    std::uintptr_t begin, end;
  };
  static constexpr int kMaxRanges = 192;

  const char* op_;
  const Context& ctx_;
  Range ranges_[kMaxRanges];  // range_count_ of them are set
  int range_count_ = 0;
};

}  // namespace penstock::checks
