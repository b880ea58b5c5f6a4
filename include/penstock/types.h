// Element types, devices and enumerations shared by every operation.
#pragma once

#include <cstddef>
#include <cstdint>

#include "penstock/export.h"

namespace penstock {

enum class DataType : std::int32_t {
  kFloat32 = 0,
  kFloat64 = 1,
  kFloat16 = 2,
  kBFloat16 = 3,
  kBool = 4,  // one byte, zero is false
  kInt32 = 5,
  kInt64 = 6,
  kUInt8 = 7,  // workspace and reserve
};

/// Size of one element in bytes.
PENSTOCK_EXPORT std::size_t size_of(DataType dtype);
/// "float32", "bfloat16", ...
PENSTOCK_EXPORT const char* name_of(DataType dtype);
PENSTOCK_EXPORT bool is_floating(DataType dtype);

enum class DeviceType : std::int32_t { kCpu = 0, kCuda = 1 };

struct Device {
  DeviceType type = DeviceType::kCpu;
  std::int32_t index = 0;

  friend bool operator==(const Device& a, const Device& b) {
    return a.type == b.type && a.index == b.index;
  }
  friend bool operator!=(const Device& a, const Device& b) { return !(a == b); }
};

/// Activation of the candidate or of the state.
enum class Activation : std::int32_t { kIdentity = 0, kTanh = 1, kRelu = 2 };

/// Which way a recurrence reads time. Bidirectional layers hold both directions side by side:
/// direction 0 reads forward, direction 1 in reverse.
enum class Direction : std::int32_t { kForward = 0, kReverse = 1, kBidirectional = 2 };

}  // namespace penstock
