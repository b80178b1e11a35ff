#pragma once

#include <bit>
#include <cstdint>

/// Conversions as the hardware makes them: nearest, ties to even, infinities kept, NaN stays NaN.
/// By bits and without branches, so that loops of them become vector code.
namespace emulation {

inline float bfloat16_to_float(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

inline std::uint16_t float_to_bfloat16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16;
  const std::uint32_t not_a_number = (bits >> 16) | 0x40U;
  return static_cast<std::uint16_t>((bits & 0x7fffffffU) > 0x7f800000U ? not_a_number : rounded);
}

inline float half_to_float(std::uint16_t bits) {
  // The exponent moves up by 112; the product does so for subnormal numbers too.
  const std::uint32_t magnitude = bits & 0x7fffU;
  const auto scaled =
      std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude << 13) * 0x1p112F);
  const std::uint32_t special = magnitude >= 0x7c00U ? 0x7f800000U : 0U;
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000U) << 16;
  return std::bit_cast<float>(scaled | special | sign);
}

inline std::uint16_t float_to_half(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t magnitude = bits & 0x7fffffffU;
  // 0.5 has the unit in the last place of a subnormal half, so the sum rounds to one.
  const std::uint32_t subnormal =
      std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5F) - 0x3f000000U;
  const std::uint32_t normal = ((magnitude + 0xfffU + ((magnitude >> 13) & 1U)) >> 13) - 0x1c000U;
  std::uint32_t half = magnitude < 0x38800000U ? subnormal : normal;
  half = magnitude >= 0x477ff000U ? 0x7c00U : half;  // from 65520 on the nearest is infinity
  half = magnitude > 0x7f800000U ? 0x7e00U : half;
  return static_cast<std::uint16_t>(half | ((bits >> 16) & 0x8000U));
}

}  // namespace emulation
