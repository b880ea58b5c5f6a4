// The backends that the tests run over: the CPU, the CUDA sources over the stand-in runtime, and
// CUDA itself where there is a device.
#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <string>
#include <vector>

#include "penstock/context.h"

namespace penstock::tests {

/// "cpu", "cuda_emulated" where that plugin was built, and "cuda" where the CUDA plugin was built
/// and finds a device.
const std::vector<std::string>& backend_names();
/// A context of one of them, over memory that the host can read and write.
Context context_of(const std::string& backend);

/// Where arrays lie: in the host's memory or, for "cuda", in managed memory, which both can reach.
struct Memory {
  void* (*allocate)(std::size_t bytes);  ///< 256-byte aligned; throws std::bad_alloc
  void (*release)(void* memory);
  void (*synchronize)();  ///< wait for what was put on the device
};
/// That of the backend under test; the host's outside of a test over backends.
const Memory& current_memory();

/// A test over each backend, whose arrays lie where that backend can reach them.
class BackendTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override;
  void TearDown() override;
  Context ctx() const { return context_of(GetParam()); }
  const Backend& backend() const { return ctx().backend(); }
};

}  // namespace penstock::tests
