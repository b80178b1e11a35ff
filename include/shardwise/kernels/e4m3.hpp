#pragma once

#include <cstdint>

#include "../core/dtype.hpp"
#include "../core/host_device.hpp"

namespace shardwise::inline v0_1 {

/// The 8-bit floating type E4M3 (Micikevicius et al., FP8 formats for deep learning, 2022): no
/// infinity, largest value 448, smallest 2^-9. A storage type: compute in float.
struct e4m3 {
  std::uint8_t bits = 0;

  static constexpr float largest = 448;

  e4m3() = default;
  /// Rounds to nearest, ties to even; what is too large becomes 448, also infinity; NaN stays NaN.
  SHARDWISE_HOST_DEVICE explicit constexpr e4m3(float value) noexcept {
    const auto word = __builtin_bit_cast(std::uint32_t, value);
    const std::uint32_t sign = (word >> 24) & 0x80u;
    const std::uint32_t magnitude = word & 0x7fffffffu;
    // 2^14 has bits down to 2^-9, where the addition rounds.
    constexpr float shift = 16384;
    const float shifted = __builtin_bit_cast(float, magnitude) + shift;
    const std::uint32_t subnormal =
        __builtin_bit_cast(std::uint32_t, shifted) - __builtin_bit_cast(std::uint32_t, shift);
    const std::uint32_t normal =
        (magnitude - (120u << 23) + 0x7ffffu + ((magnitude >> 20) & 1u)) >> 20;
    std::uint32_t result = detail::choose(magnitude < (121u << 23), subnormal, normal);
    result = detail::choose(magnitude >= 0x43e00000u, 0x7eu, result);
    const bool is_nan = magnitude > 0x7f800000u;
    bits = static_cast<std::uint8_t>(detail::choose(is_nan, 0x7fu, sign | result));
  }
  SHARDWISE_HOST_DEVICE constexpr operator float() const noexcept {
    const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x80u) << 24;
    const std::uint32_t magnitude = bits & 0x7fu;
    const std::uint32_t normal = (magnitude << 20) + (120u << 23);
    const auto subnormal =
        __builtin_bit_cast(std::uint32_t, static_cast<float>(magnitude) * 0x1p-9f);
    std::uint32_t result = detail::choose(magnitude < 8, subnormal, normal);
    result = detail::choose(magnitude == 0x7fu, 0x7fc00000u, result);
    return __builtin_bit_cast(float, sign | result);
  }
};

}  // namespace shardwise::inline v0_1
