#include "cpu/isa.h"

#include <cstdlib>
#include <cstring>

#include "cpu/amx.h"

namespace penstock::cpu {
namespace {

Isa detect() {
#if defined(__x86_64__) || defined(_M_X64)
  __builtin_cpu_init();
  Isa best = Isa::kBase;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    best = Isa::kAvx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      best = Isa::kAvx512;
    }
  }
  if (const char* cap = std::getenv("PENSTOCK_ISA"); cap != nullptr) {
    if (std::strcmp(cap, "base") == 0) return Isa::kBase;
    if (std::strcmp(cap, "avx2") == 0 && best == Isa::kAvx512) return Isa::kAvx2;
  }
  return best;
#else
  return Isa::kBase;
#endif
}

}  // namespace

Isa isa() {
  static const Isa chosen = detect();
  return chosen;
}

const char* isa_name() {
  switch (isa()) {
    case Isa::kAvx512: return has_amx() ? "avx512+amx" : "avx512";
    case Isa::kAvx2: return "avx2";
    case Isa::kBase: break;
  }
#if defined(__aarch64__)
  return "neon";
#else
  return "base";
#endif
}

}  // namespace penstock::cpu
