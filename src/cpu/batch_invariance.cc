#include "cpu/batch_invariance.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

namespace penstock::cpu {
namespace {

std::atomic<bool>& setting() {
  static std::atomic<bool> enabled{[] {
    const char* env = std::getenv("PENSTOCK_BATCH_INVARIANT");
    return env != nullptr && std::strcmp(env, "1") == 0;
  }()};
  return enabled;
}

}  // namespace

bool batch_invariant() { return setting().load(std::memory_order_relaxed); }
void set_batch_invariant(bool enabled) { setting().store(enabled, std::memory_order_relaxed); }

}  // namespace penstock::cpu
