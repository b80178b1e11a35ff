#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <type_traits>

#include "host_device.hpp"

namespace shardwise::inline v0_1 {

namespace detail {
/// yes ? a : b by masks: g++ 12 turns a plain ?: into branches here and then vectorises no loop.
[[nodiscard]] SHARDWISE_HOST_DEVICE constexpr std::uint32_t choose(bool yes, std::uint32_t a,
                                                                   std::uint32_t b) noexcept {
  const std::uint32_t mask = 0u - static_cast<std::uint32_t>(yes);
  return (a & mask) | (b & ~mask);
}
}  // namespace detail

/// bfloat16: the upper half of an IEEE binary32. A storage type: compute in float.
struct bf16 {
  std::uint16_t bits = 0;

  bf16() = default;
  /// Rounds to nearest, ties to even; NaN stays NaN.
  SHARDWISE_HOST_DEVICE explicit constexpr bf16(float value) noexcept {
    const auto word = __builtin_bit_cast(std::uint32_t, value);
    const std::uint32_t rounded = (word + 0x7fffu + ((word >> 16) & 1u)) >> 16;
    const std::uint32_t quiet = (word >> 16) | 0x40u;
    bits = static_cast<std::uint16_t>((word & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
  }
  SHARDWISE_HOST_DEVICE constexpr operator float() const noexcept {
    return __builtin_bit_cast(float, static_cast<std::uint32_t>(bits) << 16);
  }
};

/// IEEE binary16. A storage type: compute in float.
struct f16 {
  std::uint16_t bits = 0;

  f16() = default;
  /// Rounds to nearest, ties to even; what is too large becomes infinity; NaN stays NaN.
  SHARDWISE_HOST_DEVICE explicit constexpr f16(float value) noexcept {
    const auto word = __builtin_bit_cast(std::uint32_t, value);
    const std::uint32_t sign = (word >> 16) & 0x8000u;
    const std::uint32_t magnitude = word & 0x7fffffffu;
    // Three candidates and selections instead of branches, so that loops vectorise.
    const std::uint32_t special = detail::choose(magnitude > 0x7f800000u, 0x7e00u, 0x7c00u);
    // Adding 0.5 leaves the subnormal's ten bits, rounded by the addition, at the bottom.
    const float shifted = __builtin_bit_cast(float, magnitude) + 0.5f;
    const std::uint32_t subnormal = __builtin_bit_cast(std::uint32_t, shifted) - 0x3f000000u;
    const std::uint32_t normal =
        (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    std::uint32_t result = detail::choose(magnitude < 0x38800000u, subnormal, normal);
    result = detail::choose(magnitude >= 0x47800000u, special, result);
    bits = static_cast<std::uint16_t>(sign | result);
  }
  SHARDWISE_HOST_DEVICE constexpr operator float() const noexcept {
    const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
    const std::uint32_t magnitude = static_cast<std::uint32_t>(bits & 0x7fffu) << 13;
    const std::uint32_t exponent = magnitude & (0x1fu << 23);
    const std::uint32_t normal = magnitude + (112u << 23);
    const std::uint32_t special = magnitude + (224u << 23);
    const float subnormal =
        __builtin_bit_cast(float, magnitude + (113u << 23)) - __builtin_bit_cast(float, 113u << 23);
    std::uint32_t result =
        detail::choose(exponent == 0, __builtin_bit_cast(std::uint32_t, subnormal), normal);
    result = detail::choose(exponent == (0x1fu << 23), special, result);
    return __builtin_bit_cast(float, sign | result);
  }
};

/// The element types that a communicator can carry. The set is closed.
enum class DType : std::uint8_t { f64, f32, bf16, f16, i64, i32, i8, u8 };

/// Bytes of one element.
[[nodiscard]] constexpr std::size_t size_of(DType type) noexcept {
  switch (type) {
    case DType::f64:
    case DType::i64:
      return 8;
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::bf16:
    case DType::f16:
      return 2;
    case DType::i8:
    case DType::u8:
      return 1;
  }
  return 0;
}

/// "f32", "bf16", ...
[[nodiscard]] constexpr std::string_view name_of(DType type) noexcept {
  constexpr std::string_view names[] = {"f64", "f32", "bf16", "f16", "i64", "i32", "i8", "u8"};
  return names[static_cast<std::size_t>(type)];
}

[[nodiscard]] constexpr bool is_floating(DType type) noexcept { return type <= DType::f16; }

namespace detail {
template <class T>
struct DTypeOf {};
template <>
struct DTypeOf<double> : std::integral_constant<DType, DType::f64> {};
template <>
struct DTypeOf<float> : std::integral_constant<DType, DType::f32> {};
template <>
struct DTypeOf<bf16> : std::integral_constant<DType, DType::bf16> {};
template <>
struct DTypeOf<f16> : std::integral_constant<DType, DType::f16> {};
template <>
struct DTypeOf<std::int64_t> : std::integral_constant<DType, DType::i64> {};
template <>
struct DTypeOf<std::int32_t> : std::integral_constant<DType, DType::i32> {};
template <>
struct DTypeOf<std::int8_t> : std::integral_constant<DType, DType::i8> {};
template <>
struct DTypeOf<std::uint8_t> : std::integral_constant<DType, DType::u8> {};
}  // namespace detail

/// A C++ type that has a DType.
template <class T>
concept Element = requires {
  detail::DTypeOf<T>::value;
};

/// An Element that holds real numbers: what parameters, gradients and states are made of.
template <class T>
concept FloatingElement = Element<T> &&
    (std::floating_point<T> || std::same_as<T, bf16> || std::same_as<T, f16>);

template <Element T>
inline constexpr DType dtype_of = detail::DTypeOf<T>::value;

/// The type in which sums and updates of T are computed: double for double, float for float, bf16
/// and f16, the type itself for integers.
template <Element T>
using Accumulator = std::conditional_t<std::same_as<T, bf16> || std::same_as<T, f16>, float, T>;

/// Calls `f.template operator()<T>()` for the type that `type` names.
template <class F>
constexpr decltype(auto) dispatch(DType type, F&& f) {
  switch (type) {
    case DType::f64:
      return f.template operator()<double>();
    case DType::bf16:
      return f.template operator()<bf16>();
    case DType::f16:
      return f.template operator()<f16>();
    case DType::i64:
      return f.template operator()<std::int64_t>();
    case DType::i32:
      return f.template operator()<std::int32_t>();
    case DType::i8:
      return f.template operator()<std::int8_t>();
    case DType::u8:
      return f.template operator()<std::uint8_t>();
    case DType::f32:
      break;
  }
  return f.template operator()<float>();
}

/// The same over the floating types alone; `type` must be one of them.
template <class F>
constexpr decltype(auto) dispatch_floating(DType type, F&& f) {
  switch (type) {
    case DType::f64:
      return f.template operator()<double>();
    case DType::bf16:
      return f.template operator()<bf16>();
    case DType::f16:
      return f.template operator()<f16>();
    default:
      break;
  }
  return f.template operator()<float>();
}

}  // namespace shardwise::inline v0_1
