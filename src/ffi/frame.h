// One call of XLA's as the library's own types: arrays and options, each by its name.
//
// A call carries the names of its arrays in two attributes, `operands` and `results`, separated by
// commas; what is not listed is not given. All other attributes are options, whose words are those
// of the Python functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

#include "ffi/xla_abi.h"
#include "penstock/context.h"
#include "penstock/error.h"
#include "penstock/tensor_view.h"

namespace penstock::ffi {

constexpr std::size_t kWorkspaceAlignment = 256;

class Frame {
 public:
  /// Throws Error if something else than buffers was passed, or not as many as there are names.
  Frame(const char* op, const xla::CallFrame& call, DeviceType device);

  const Context& context() const { return context_; }

  /// The array of that name; one that is not given if it is not listed.
  TensorView operand(std::string_view name) { return operands_.take(name); }
  TensorView result(std::string_view name) { return results_.take(name); }
  /// The result of that name from the first address on that the library takes: XLA aligns its
  /// buffers to less. Callers give kWorkspaceAlignment bytes more than a call needs.
  TensorView workspace();
  /// To be called when all that an operation knows has been asked for: throws Error if there was
  /// something else.
  void no_others() const;

  /// Options; throw Error if there is none of that name and kind.
  bool flag(const char* name) const;
  double number(const char* name) const;
  std::string_view text(const char* name) const;
  /// At most `room` integers, written to `values`; how many there are.
  int integers(const char* name, std::int64_t* values, int room) const;
  template <class E>
  E choice(const char* name, std::initializer_list<std::pair<const char*, E>> choices) const {
    const std::string_view word = text(name);
    for (const auto& [text, value] : choices) {
      if (word == text) return value;
    }
    fail(name, "expected a word that it knows (actual: '" + std::string(word) + "')");
  }

 private:
  /// The arrays of one side of a call.
  class Buffers {
   public:
    TensorView take(std::string_view name);

    // An SRU or a GRU in as many slices as there may be, with its gradients.
    static constexpr int kMost = 128;
    std::string_view names[kMost];
    TensorView views[kMost];
    bool taken[kMost] = {};
    int count = 0;
  };

  void read(Buffers& to, const char* attribute, std::int64_t size, void* const* values,
            bool read_only) const;
  /// The attribute's value; null if there is none of that kind.
  const void* find(std::string_view name, xla::AttributeType type) const;
  [[noreturn]] void fail(const char* name, const std::string& what) const;

  const char* op_;
  const xla::CallFrame& call_;
  Context context_;
  Buffers operands_, results_;
};

/// Run `work(frame)` for a call of XLA's, or answer what the call asks about the handler. No
/// exception leaves: what is thrown becomes XLA's error, with a code that fits.
using Work = void (*)(Frame&);
xla::Error* handle(const char* op, Work work, DeviceType device, xla::CallFrame* call) noexcept;

}  // namespace penstock::ffi
