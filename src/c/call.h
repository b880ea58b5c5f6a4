// What every function of the C interface does: read structures of any version, check what C's types
// leave open, and turn exceptions into a status with a message.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>

#include "penstock/c.h"
#include "penstock/error.h"
#include "penstock/tensor_view.h"
#include "penstock/types.h"

namespace penstock::c {

/// Inside of a catch block: remember what was thrown as this thread's last error.
penstock_status status_of_exception() noexcept;

/// Run `work`; no exception leaves.
template <class Work>
penstock_status guarded(const Work& work) noexcept {
  try {
    work();
    return PENSTOCK_OK;
  } catch (...) {
    return status_of_exception();
  }
}

/// "op: name: expected … (actual: …)"
[[noreturn]] void fail(ErrorCode code, const char* op, const std::string& name,
                       const std::string& expected, const std::string& actual);

template <class T>
T& required(const char* op, const char* name, T* p) {
  if (p == nullptr) fail(ErrorCode::kValue, op, name, "expected a pointer", "null");
  return *p;
}

template <class Enum>
Enum enumerator(const char* op, const char* name, std::int32_t value, std::int32_t count) {
  if (value < 0 || value >= count) {
    fail(ErrorCode::kValue, op, name, "expected 0 to " + std::to_string(count - 1),
         std::to_string(value));
  }
  return static_cast<Enum>(value);
}

/// A view of what the tensor describes; a default-constructed one if it is not given.
TensorView view_of(const char* op, const char* name, const penstock_tensor& tensor);

/// Set a structure of the caller's size to `defaults`. What is beyond those, in a structure of a
/// newer version, becomes zeros.
template <class T>
void initialise(const char* op, const char* name, T* p, std::size_t size, T defaults) {
  static_assert(std::is_trivially_copyable_v<T>);
  required(op, name, p);
  if (size < sizeof(T)) {
    fail(ErrorCode::kValue, op, "size", "expected at least " + std::to_string(sizeof(T)),
         std::to_string(size));
  }
  defaults.size = size;
  std::memcpy(p, &defaults, sizeof(T));
  std::memset(reinterpret_cast<char*>(p) + sizeof(T), 0, size - sizeof(T));
}

/// The structure, checked for what its size says. A caller's structure may be longer, of a newer
/// version, if what this version does not know is zero. When one grows here, this is where those
/// of the size it had before get defaults for the rest.
template <class T>
const T& known(const char* op, const char* name, const T* args) {
  const std::size_t size = required(op, name, args).size;
  const std::string whose = std::string(name) + ".size";
  if (size < sizeof(T)) {
    fail(ErrorCode::kValue, op, whose,
         "expected at least " + std::to_string(sizeof(T)) + ", as the init function sets it",
         std::to_string(size));
  }
  const auto* bytes = reinterpret_cast<const unsigned char*>(args);
  if (!std::all_of(bytes + sizeof(T), bytes + size, [](unsigned char b) { return b == 0; })) {
    fail(ErrorCode::kValue, op, whose,
         "expected zeros beyond " + std::to_string(sizeof(T)) + " bytes",
         "a field that this version does not know");
  }
  return *args;
}

}  // namespace penstock::c
