// Which instruction set this processor runs, and the per-ISA kernel tables.
#pragma once

#include <cstdint>

namespace penstock::cpu {

enum class Isa { kBase, kAvx2, kAvx512 };

/// The best instruction set that this build and this processor have; PENSTOCK_ISA=base|avx2|avx512
/// caps it.
Isa isa();
/// Whether this build, this processor and this kernel have AMX, Intel's matrix unit, with int8, and
/// PENSTOCK_ISA does not cap it.
bool has_amx();
/// "avx512+amx", "avx512", "avx2", "neon" (base on AArch64) or "base".
const char* isa_name();

/// Pick this processor's entry of a table with one pointer per instruction set. On processors
/// other than x86 there is one.
template <class T>
const T& pick(const T& base, const T* avx2, const T* avx512) {
  switch (isa()) {
    case Isa::kAvx512:
      if (avx512 != nullptr) return *avx512;
      [[fallthrough]];
    case Isa::kAvx2:
      if (avx2 != nullptr) return *avx2;
      [[fallthrough]];
    case Isa::kBase: break;
  }
  return base;
}

}  // namespace penstock::cpu

// PENSTOCK_CPU_KERNEL_TABLE(Table, name) declares `const Table& name()`, which returns this
// processor's table; each per-ISA object defines its own `const Table& name()` in its namespace.
#if defined(__x86_64__) || defined(_M_X64)
#define PENSTOCK_CPU_KERNEL_TABLE(Table, name)                                              \
  namespace isa_base {                                                                      \
  const Table& name();                                                                      \
  }                                                                                         \
  namespace isa_avx2 {                                                                      \
  const Table& name();                                                                      \
  }                                                                                         \
  namespace isa_avx512 {                                                                    \
  const Table& name();                                                                      \
  }                                                                                         \
  inline const Table& name() {                                                              \
    return ::penstock::cpu::pick(isa_base::name(), &isa_avx2::name(), &isa_avx512::name()); \
  }
#else
#define PENSTOCK_CPU_KERNEL_TABLE(Table, name) \
  namespace isa_base {                         \
  const Table& name();                         \
  }                                            \
  inline const Table& name() { return isa_base::name(); }
#endif
