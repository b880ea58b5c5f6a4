// CUDA's own device functions, as far as kernels here use them: coordinates, synchronisation, warp
// exchanges, atomics, loads and stores with cache hints, bits.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cuda_emulation/execution.h"
#include "cuda_emulation/vector_types.h"

// Of the emulated thread that runs now.
inline thread_local uint3 threadIdx = {};
inline thread_local uint3 blockIdx = {};
inline thread_local dim3 blockDim = {};
inline thread_local dim3 gridDim = {};
constexpr int warpSize = 32;

// ---- synchronisation ---------------------------------------------------------------------------

inline void __syncthreads(cuda_emulation::Place at = cuda_emulation::Place::here()) {
  cuda_emulation::block_barrier(at);
}
inline int __syncthreads_count(int predicate,
                               cuda_emulation::Place at = cuda_emulation::Place::here()) {
  return cuda_emulation::block_count(predicate != 0, at);
}
inline int __syncthreads_or(int predicate,
                            cuda_emulation::Place at = cuda_emulation::Place::here()) {
  return cuda_emulation::block_count(predicate != 0, at) != 0;
}
inline int __syncthreads_and(int predicate,
                             cuda_emulation::Place at = cuda_emulation::Place::here()) {
  return cuda_emulation::block_count(predicate == 0, at) == 0;
}

// One thread runs at a time, so memory is always in order.
inline void __threadfence_block() {}
inline void __threadfence() {}
inline void __threadfence_system() {}

/// Other threads run meanwhile: a loop that waits for a value must call it.
inline void __nanosleep(unsigned) { cuda_emulation::yield(); }

// ---- the warp ----------------------------------------------------------------------------------

inline void __syncwarp(unsigned mask = 0xffffffffu,
                       cuda_emulation::Place at = cuda_emulation::Place::here()) {
  cuda_emulation::warp_together("__syncwarp", mask, nullptr, nullptr, at);
}

/// Threads of an emulated warp never run together, which CUDA allows: only the caller's own bit.
inline unsigned __activemask() { return 1u << cuda_emulation::lane(); }

namespace cuda_emulation {

struct Vote {
  bool predicate;
  unsigned ballot;
};

inline unsigned vote(const char* name, unsigned mask, bool predicate, Place at) {
  Vote own = {predicate, 0};
  warp_together(
      name, mask, &own,
      [](void* const* lanes) {
        unsigned ballot = 0;
        for (unsigned i = 0; i < 32; ++i) {
          if (lanes[i] != nullptr && static_cast<Vote*>(lanes[i])->predicate) ballot |= 1u << i;
        }
        for (unsigned i = 0; i < 32; ++i) {
          if (lanes[i] != nullptr) static_cast<Vote*>(lanes[i])->ballot = ballot;
        }
      },
      at);
  return own.ballot;
}

struct Shuffle {
  std::uint64_t value;
  unsigned source;  // lane
  Place at;
  std::uint64_t result;
};

inline void shuffle_lanes(void* const* lanes) {
  for (unsigned i = 0; i < 32; ++i) {
    if (lanes[i] == nullptr) continue;
    auto* own = static_cast<Shuffle*>(lanes[i]);
    const auto* source = static_cast<const Shuffle*>(lanes[own->source]);
    if (source == nullptr) {
      fault("%s:%d: lane %u reads from lane %u, which takes no part in the shuffle", own->at.file,
            own->at.line, i, own->source);
    }
    own->result = source->value;
  }
}

inline std::uint64_t shuffle_bits(const char* name, unsigned mask, std::uint64_t value,
                                  unsigned source, int width, Place at) {
  if (width < 1 || width > 32 || (width & (width - 1)) != 0) {
    fault("%s:%d: %s with width %d: expected 1, 2, 4, 8, 16 or 32", at.file, at.line, name, width);
  }
  Shuffle own = {value, source, at, 0};
  warp_together(name, mask, &own, &shuffle_lanes, at);
  return own.result;
}

template <class T>
T shuffle(const char* name, unsigned mask, T value, unsigned source, int width, Place at) {
  static_assert(std::is_trivially_copyable<T>::value && sizeof(T) <= 8, "4 or 8 bytes");
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = shuffle_bits(name, mask, bits, source, width, at);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

/// First lane of the caller's part of the warp.
inline unsigned segment(int width) { return lane() & ~(static_cast<unsigned>(width) - 1u); }

}  // namespace cuda_emulation

inline unsigned __ballot_sync(unsigned mask, int predicate,
                              cuda_emulation::Place at = cuda_emulation::Place::here()) {
  return cuda_emulation::vote("__ballot_sync", mask, predicate != 0, at);
}
inline int __any_sync(unsigned mask, int predicate,
                      cuda_emulation::Place at = cuda_emulation::Place::here()) {
  return cuda_emulation::vote("__any_sync", mask, predicate != 0, at) != 0;
}
inline int __all_sync(unsigned mask, int predicate,
                      cuda_emulation::Place at = cuda_emulation::Place::here()) {
  return cuda_emulation::vote("__all_sync", mask, predicate == 0, at) == 0;
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              cuda_emulation::Place at = cuda_emulation::Place::here()) {
  const unsigned within = static_cast<unsigned>(source) & (static_cast<unsigned>(width) - 1u);
  return cuda_emulation::shuffle("__shfl_sync", mask, value,
                                 cuda_emulation::segment(width) | within, width, at);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 cuda_emulation::Place at = cuda_emulation::Place::here()) {
  const unsigned own = cuda_emulation::lane(), first = cuda_emulation::segment(width);
  return cuda_emulation::shuffle("__shfl_up_sync", mask, value,
                                 own - first >= delta ? own - delta : own, width, at);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   cuda_emulation::Place at = cuda_emulation::Place::here()) {
  const unsigned own = cuda_emulation::lane();
  const unsigned end = cuda_emulation::segment(width) + static_cast<unsigned>(width);
  return cuda_emulation::shuffle("__shfl_down_sync", mask, value,
                                 delta < end - own ? own + delta : own, width, at);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32,
                  cuda_emulation::Place at = cuda_emulation::Place::here()) {
  const unsigned own = cuda_emulation::lane();
  const unsigned end = cuda_emulation::segment(width) + static_cast<unsigned>(width);
  const unsigned source = own ^ static_cast<unsigned>(bits);
  return cuda_emulation::shuffle("__shfl_xor_sync", mask, value, source < end ? source : own, width,
                                 at);
}

// ---- atomics -----------------------------------------------------------------------------------
// Threads switch only where they wait, so plain arithmetic is atomic.

namespace cuda_emulation {
template <class T>
struct Same {
  using type = T;
};
/// T where it must not be deduced.
template <class T>
using same_t = typename Same<T>::type;

template <class T, class F>
T change(T* at, F&& f) {
  const T before = *at;
  *at = static_cast<T>(f(before));
  return before;
}
}  // namespace cuda_emulation

template <class T>
T atomicAdd(T* at, cuda_emulation::same_t<T> v) {
  return cuda_emulation::change(at, [&](T before) { return before + v; });
}
template <class T>
T atomicSub(T* at, cuda_emulation::same_t<T> v) {
  return cuda_emulation::change(at, [&](T before) { return before - v; });
}
template <class T>
T atomicMax(T* at, cuda_emulation::same_t<T> v) {
  return cuda_emulation::change(at, [&](T before) { return before < v ? v : before; });
}
template <class T>
T atomicMin(T* at, cuda_emulation::same_t<T> v) {
  return cuda_emulation::change(at, [&](T before) { return v < before ? v : before; });
}
template <class T>
T atomicAnd(T* at, cuda_emulation::same_t<T> v) {
  return cuda_emulation::change(at, [&](T before) { return before & v; });
}
template <class T>
T atomicOr(T* at, cuda_emulation::same_t<T> v) {
  return cuda_emulation::change(at, [&](T before) { return before | v; });
}
template <class T>
T atomicExch(T* at, cuda_emulation::same_t<T> v) {
  return cuda_emulation::change(at, [&](T) { return v; });
}
template <class T>
T atomicCAS(T* at, cuda_emulation::same_t<T> expected, cuda_emulation::same_t<T> v) {
  return cuda_emulation::change(at, [&](T before) { return before == expected ? v : before; });
}

// ---- memory ------------------------------------------------------------------------------------

template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
void __stcg(T* p, cuda_emulation::same_t<T> v) {
  *p = v;
}
template <class T>
void __stcs(T* p, cuda_emulation::same_t<T> v) {
  *p = v;
}

// ---- bits and numbers --------------------------------------------------------------------------

namespace cuda_emulation {
template <class To, class From>
To bits_as(From v) {
  static_assert(sizeof(To) == sizeof(From), "as many bits");
  To to;
  std::memcpy(&to, &v, sizeof to);
  return to;
}
}  // namespace cuda_emulation

inline unsigned __float_as_uint(float v) { return cuda_emulation::bits_as<unsigned>(v); }
inline int __float_as_int(float v) { return cuda_emulation::bits_as<int>(v); }
inline float __uint_as_float(unsigned v) { return cuda_emulation::bits_as<float>(v); }
inline float __int_as_float(int v) { return cuda_emulation::bits_as<float>(v); }
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __clz(int v) { return v == 0 ? 32 : __builtin_clz(static_cast<unsigned>(v)); }

// The approximations are the exact functions here: what a test can say about their error is
// nothing.
inline float __expf(float v) { return std::exp(v); }
inline float __logf(float v) { return std::log(v); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float v) { return 1.0f / v; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __saturatef(float v) { return v > 0.0f ? (v < 1.0f ? v : 1.0f) : 0.0f; }
inline float rsqrtf(float v) { return 1.0f / std::sqrt(v); }

#define PENSTOCK_EMULATED_MIN_MAX(T)               \
  inline T min(T a, T b) { return b < a ? b : a; } \
  inline T max(T a, T b) { return a < b ? b : a; }
PENSTOCK_EMULATED_MIN_MAX(int)
PENSTOCK_EMULATED_MIN_MAX(unsigned)
PENSTOCK_EMULATED_MIN_MAX(long)
PENSTOCK_EMULATED_MIN_MAX(unsigned long)
PENSTOCK_EMULATED_MIN_MAX(long long)
PENSTOCK_EMULATED_MIN_MAX(unsigned long long)
#undef PENSTOCK_EMULATED_MIN_MAX
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }
