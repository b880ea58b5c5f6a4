#include "cpu/isa.h"

#include <cstdlib>
#include <cstring>

#if defined(PENSTOCK_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

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

bool detect_amx() {
#if defined(PENSTOCK_AMX)
  if (isa() != Isa::kAvx512) return false;
  if (const char* cap = std::getenv("PENSTOCK_ISA");
      cap != nullptr && std::strcmp(cap, "avx512") == 0) {
    return false;
  }
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  constexpr unsigned kAmxTile = 1u << 24, kAmxInt8 = 1u << 25;
  if ((d & kAmxTile) == 0 || (d & kAmxInt8) == 0) return false;
  // The kernel hands the tile registers out on request, to the whole process.
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace

Isa isa() {
  static const Isa chosen = detect();
  return chosen;
}

bool has_amx() {
  static const bool has = detect_amx();
  return has;
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
