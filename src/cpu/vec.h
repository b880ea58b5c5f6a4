// SIMD vectors over the compiler's vector extension. A source that uses them is compiled once per
// instruction set, each time with PENSTOCK_ISA_NAMESPACE naming another namespace, so that no
// symbol is shared between objects of different instruction sets.
//
// Every operation acts on each lane alone, so a value does not depend on the lane it falls into.
#pragma once

#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if !defined(PENSTOCK_ISA_NAMESPACE)
#error "PENSTOCK_ISA_NAMESPACE must name the namespace of this instruction set"
#endif

#define PENSTOCK_INLINE inline __attribute__((always_inline))
#define PENSTOCK_LAMBDA_INLINE __attribute__((always_inline))

namespace penstock::cpu::PENSTOCK_ISA_NAMESPACE {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T>
struct VecTraits;
template <>
struct VecTraits<float> {
  using Int = std::int32_t;
  using UInt = std::uint32_t;
  typedef float Native __attribute__((vector_size(kVectorBytes)));
  typedef std::int32_t Mask __attribute__((vector_size(kVectorBytes)));
  typedef std::uint32_t Bits __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VecTraits<double> {
  using Int = std::int64_t;
  using UInt = std::uint64_t;
  typedef double Native __attribute__((vector_size(kVectorBytes)));
  typedef std::int64_t Mask __attribute__((vector_size(kVectorBytes)));
  typedef std::uint64_t Bits __attribute__((vector_size(kVectorBytes)));
};

template <class T>
struct Vec {
  using Native = typename VecTraits<T>::Native;
  using Mask = typename VecTraits<T>::Mask;
  using Bits = typename VecTraits<T>::Bits;
  static constexpr int kSize = kVectorBytes / static_cast<int>(sizeof(T));

  Native v;

  Vec() = default;
  PENSTOCK_INLINE explicit Vec(T x) : v(x - Native{}) {}
  PENSTOCK_INLINE explicit Vec(Native x) : v(x) {}

  PENSTOCK_INLINE static Vec load(const T* p) {
    Vec r;
    __builtin_memcpy(&r.v, p, sizeof r.v);
    return r;
  }
  PENSTOCK_INLINE void store(T* p) const { __builtin_memcpy(p, &v, sizeof v); }
  /// The first n lanes, the others zero; n may be kSize.
  PENSTOCK_INLINE static Vec load(const T* p, int n);
  /// Only the first n lanes.
  PENSTOCK_INLINE void store(T* p, int n) const;
};

#if defined(__AVX512F__)
template <>
PENSTOCK_INLINE Vec<float> Vec<float>::load(const float* p, int n) {
  return Vec(
      reinterpret_cast<Native>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1u), p)));
}
template <>
PENSTOCK_INLINE void Vec<float>::store(float* p, int n) const {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1u), reinterpret_cast<__m512>(v));
}
template <>
PENSTOCK_INLINE Vec<double> Vec<double>::load(const double* p, int n) {
  return Vec(
      reinterpret_cast<Native>(_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << n) - 1u), p)));
}
template <>
PENSTOCK_INLINE void Vec<double>::store(double* p, int n) const {
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << n) - 1u), reinterpret_cast<__m512d>(v));
}
#elif defined(__AVX2__)
PENSTOCK_INLINE __m256i lane_mask(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
template <>
PENSTOCK_INLINE Vec<float> Vec<float>::load(const float* p, int n) {
  return Vec(reinterpret_cast<Native>(_mm256_maskload_ps(p, lane_mask(n))));
}
template <>
PENSTOCK_INLINE void Vec<float>::store(float* p, int n) const {
  _mm256_maskstore_ps(p, lane_mask(n), reinterpret_cast<__m256>(v));
}
template <>
PENSTOCK_INLINE Vec<double> Vec<double>::load(const double* p, int n) {
  const __m256i mask = _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
  return Vec(reinterpret_cast<Native>(_mm256_maskload_pd(p, mask)));
}
template <>
PENSTOCK_INLINE void Vec<double>::store(double* p, int n) const {
  const __m256i mask = _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
  _mm256_maskstore_pd(p, mask, reinterpret_cast<__m256d>(v));
}
#else
template <class T>
PENSTOCK_INLINE Vec<T> Vec<T>::load(const T* p, int n) {
  Vec r(T(0));
  for (int i = 0; i < n; ++i) r.v[i] = p[i];
  return r;
}
template <class T>
PENSTOCK_INLINE void Vec<T>::store(T* p, int n) const {
  for (int i = 0; i < n; ++i) p[i] = v[i];
}
#endif

template <class T>
PENSTOCK_INLINE Vec<T> operator+(Vec<T> a, Vec<T> b) {
  return Vec<T>(a.v + b.v);
}
template <class T>
PENSTOCK_INLINE Vec<T> operator-(Vec<T> a, Vec<T> b) {
  return Vec<T>(a.v - b.v);
}
template <class T>
PENSTOCK_INLINE Vec<T> operator*(Vec<T> a, Vec<T> b) {
  return Vec<T>(a.v * b.v);
}
template <class T>
PENSTOCK_INLINE Vec<T> operator/(Vec<T> a, Vec<T> b) {
  return Vec<T>(a.v / b.v);
}
template <class T>
PENSTOCK_INLINE Vec<T> operator-(Vec<T> a) {
  return Vec<T>(-a.v);
}

template <class T>
PENSTOCK_INLINE T horizontal_sum(Vec<T> a) {
  // Pairwise, in a fixed order.
  T lanes[Vec<T>::kSize];
  a.store(lanes);
  for (int half = Vec<T>::kSize / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

/// Lane by lane: mask ? a : b.
template <class T>
PENSTOCK_INLINE Vec<T> blend(typename Vec<T>::Mask mask, Vec<T> a, Vec<T> b) {
  return Vec<T>(mask ? a.v : b.v);
}

// NaN stays NaN in the clamps: a comparison with it is false.
template <class T>
PENSTOCK_INLINE Vec<T> clamp(Vec<T> x, T low, T high) {
  const Vec<T> lo(low), hi(high);
  x = blend<T>(x.v < lo.v, lo, x);
  return blend<T>(x.v > hi.v, hi, x);
}

// exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln 2 / 2; Taylor series of exp(r) cut where the
// rest is below half a unit in the last place. Adding 1.5 * 2^(mantissa bits) rounds to the nearest
// integer and leaves it in the low bits.
PENSTOCK_INLINE Vec<float> exp(Vec<float> x) {
  using V = Vec<float>;
  x = clamp(x, -87.33f, 88.8f);  // at the upper end n = 128, and 2^n becomes infinity
  const V shift(12582912.0f);
  const V biased = x * V(1.44269504f) + shift;
  const V n = biased - shift;
  const V r = x - n * V(0.693359375f) - n * V(-2.12194440e-4f);
  V p(1.0f / 5040);
  p = p * r + V(1.0f / 720);
  p = p * r + V(1.0f / 120);
  p = p * r + V(1.0f / 24);
  p = p * r + V(1.0f / 6);
  p = p * r + V(0.5f);
  p = p * r + V(1.0f);
  p = p * r + V(1.0f);
  V::Bits bits;
  __builtin_memcpy(&bits, &biased.v, sizeof bits);
  bits = (bits << 23) + 0x3f800000u;
  V scale;
  __builtin_memcpy(&scale.v, &bits, sizeof bits);
  return p * scale;
}

PENSTOCK_INLINE Vec<double> exp(Vec<double> x) {
  using V = Vec<double>;
  x = clamp(x, -708.0, 709.8);
  const V shift(6755399441055744.0);
  const V biased = x * V(1.4426950408889634) + shift;
  const V n = biased - shift;
  const V r = x - n * V(6.93145751953125e-1) - n * V(1.42860682030941723212e-6);
  V p(1.0 / 6227020800.0);
  p = p * r + V(1.0 / 479001600.0);
  p = p * r + V(1.0 / 39916800.0);
  p = p * r + V(1.0 / 3628800.0);
  p = p * r + V(1.0 / 362880.0);
  p = p * r + V(1.0 / 40320.0);
  p = p * r + V(1.0 / 5040.0);
  p = p * r + V(1.0 / 720.0);
  p = p * r + V(1.0 / 120.0);
  p = p * r + V(1.0 / 24.0);
  p = p * r + V(1.0 / 6.0);
  p = p * r + V(0.5);
  p = p * r + V(1.0);
  p = p * r + V(1.0);
  V::Bits bits;
  __builtin_memcpy(&bits, &biased.v, sizeof bits);
  bits = (bits << 52) + 0x3ff0000000000000ull;
  V scale;
  __builtin_memcpy(&scale.v, &bits, sizeof bits);
  return p * scale;
}

template <class T>
PENSTOCK_INLINE Vec<T> sigmoid(Vec<T> x) {
  return Vec<T>(T(1)) / (Vec<T>(T(1)) + exp(-x));
}

// tanh: an odd polynomial or rational function near zero, where 1 - 2 / (exp(2|x|) + 1) would
// cancel; coefficients as in the Cephes library's tanhf and tanh.
PENSTOCK_INLINE Vec<float> tanh_near_zero(Vec<float> x) {
  using V = Vec<float>;
  const V z = x * x;
  V p(-5.70498872745e-3f);
  p = p * z + V(2.06390887954e-2f);
  p = p * z + V(-5.37397155531e-2f);
  p = p * z + V(1.33314422036e-1f);
  p = p * z + V(-3.33332819422e-1f);
  return p * z * x + x;
}

PENSTOCK_INLINE Vec<double> tanh_near_zero(Vec<double> x) {
  using V = Vec<double>;
  const V z = x * x;
  V p(-9.64399179425052238628e-1);
  p = p * z + V(-9.92877231001918586564e1);
  p = p * z + V(-1.61468768441708447952e3);
  V q = z + V(1.12811678491632931402e2);
  q = q * z + V(2.23548839060100448583e3);
  q = q * z + V(4.84406305325125486048e3);
  return p / q * z * x + x;
}

template <class T>
PENSTOCK_INLINE Vec<T> tanh(Vec<T> x) {
  const Vec<T> zero(T(0)), one(T(1)), two(T(2));
  const Vec<T> magnitude = blend<T>(x.v < zero.v, -x, x);
  const Vec<T> tail = one - two / (exp(magnitude + magnitude) + one);
  const Vec<T> far = blend<T>(x.v < zero.v, -tail, tail);
  return blend<T>(magnitude.v < Vec<T>(T(0.625)).v, tanh_near_zero(x), far);
}

/// x > 0 ? a : b
template <class T>
PENSTOCK_INLINE Vec<T> where_positive(Vec<T> x, Vec<T> a, Vec<T> b) {
  return blend<T>(x.v > Vec<T>(T(0)).v, a, b);
}

/// Ask for the cache line at p; any address will do.
PENSTOCK_INLINE void prefetch_to_read(const void* p) { __builtin_prefetch(p, 0, 3); }
PENSTOCK_INLINE void prefetch_to_write(const void* p) { __builtin_prefetch(p, 1, 3); }

template <bool kValue>
struct Bool {
  static constexpr bool value = kValue;
};

/// step(Bool<true>, h, lanes) for each whole vector of n contiguous elements, then
/// step(Bool<false>, h, rest) for what is left.
template <class V, class F>
PENSTOCK_INLINE void for_each_vector(std::int64_t n, const F& step) {
  std::int64_t h = 0;
  for (; h + V::kSize <= n; h += V::kSize) step(Bool<true>{}, h, V::kSize);
  if (h < n) step(Bool<false>{}, h, static_cast<int>(n - h));
}

}  // namespace penstock::cpu::PENSTOCK_ISA_NAMESPACE
