// float16 and bfloat16 to float32 and back, rounding to nearest even.
#pragma once

#include <cstdint>
#include <cstring>

namespace penstock::cpu {

inline float bits_to_float(std::uint32_t u) {
  float f;
  std::memcpy(&f, &u, sizeof f);
  return f;
}
inline std::uint32_t float_to_bits(float f) {
  std::uint32_t u;
  std::memcpy(&u, &f, sizeof u);
  return u;
}

struct Float16 {
  std::uint16_t bits;
  operator float() const {
    // Shift exponent and mantissa into place and move the exponent's zero; infinity and NaN keep
    // theirs. No subnormal float on the way: frameworks call from threads that flush them.
    const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
    const std::uint32_t rest = static_cast<std::uint32_t>(bits & 0x7fffu) << 13;
    const std::uint32_t exponent = bits & 0x7c00u;
    const std::uint32_t magnitude =
        exponent == 0x7c00u ? rest | 0x7f800000u
        : exponent == 0     ? float_to_bits(static_cast<float>(bits & 0x3ffu) * 0x1p-24f)
                            : rest + (112u << 23);
    return bits_to_float(sign | magnitude);
  }
  static Float16 from(float f) {
    const std::uint32_t u = float_to_bits(f);
    const std::uint32_t sign = u & 0x80000000u;
    const std::uint32_t magnitude = u ^ sign;
    std::uint32_t half;
    if (magnitude > 0x7f800000u) {
      half = 0x7e00u;
    } else if (magnitude >= 0x477ff000u) {  // 65520 and above round to infinity
      half = 0x7c00u;
    } else if (magnitude < 0x38800000u) {  // subnormal: let an addition round at the right bit
      half = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000u;
    } else {
      half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    }
    return {static_cast<std::uint16_t>(half | (sign >> 16))};
  }
};

struct BFloat16 {
  std::uint16_t bits;
  operator float() const { return bits_to_float(static_cast<std::uint32_t>(bits) << 16); }
  static BFloat16 from(float f) {
    const std::uint32_t u = float_to_bits(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return {static_cast<std::uint16_t>((u >> 16) | 0x40u)};
    return {static_cast<std::uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
  }
};

}  // namespace penstock::cpu
