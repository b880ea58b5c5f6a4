// Errors: one class, with a code that says which kind of mistake it was.
#pragma once

#include <stdexcept>
#include <string>

#include "penstock/export.h"

namespace penstock {

enum class ErrorCode {
  kValue,    // an argument has the wrong shape, range or layout
  kType,     // an argument has the wrong element type
  kBuffer,   // an argument's memory cannot be used: wrong device, read-only, overlapping
  kRuntime,  // the machine failed: no driver, no device memory, a launch error
};

/// Thrown by every function of the library. When a check fails nothing has been written.
class PENSTOCK_EXPORT Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message);
  ~Error() override;
  ErrorCode code() const noexcept { return code_; }

 private:
  ErrorCode code_;
};

}  // namespace penstock
