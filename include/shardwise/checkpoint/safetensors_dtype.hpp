#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "../core/dtype.hpp"

namespace shardwise::inline v0_1 {

/// The element types that a safetensors file may have; more than a communicator carries.
enum class SafetensorsDType : std::uint8_t {
  boolean,
  f4,
  f6_e2m3,
  f6_e3m2,
  u8,
  i8,
  f8_e5m2,
  f8_e4m3,
  f8_e8m0,
  f8_e4m3fnuz,
  f8_e5m2fnuz,
  i16,
  u16,
  f16,
  bf16,
  i32,
  u32,
  f32,
  c64,
  f64,
  i64,
  u64
};

namespace detail {
struct SafetensorsType {
  std::string_view name;  ///< in files
  unsigned bits;          ///< of one element
  std::optional<DType> held = std::nullopt;
};
/// In the order of SafetensorsDType.
inline constexpr std::array<SafetensorsType, 22> safetensors_types{{
    {"BOOL", 8},
    {"F4", 4},
    {"F6_E2M3", 6},
    {"F6_E3M2", 6},
    {"U8", 8, DType::u8},
    {"I8", 8, DType::i8},
    {"F8_E5M2", 8},
    {"F8_E4M3", 8},
    {"F8_E8M0", 8},
    {"F8_E4M3FNUZ", 8},
    {"F8_E5M2FNUZ", 8},
    {"I16", 16},
    {"U16", 16},
    {"F16", 16, DType::f16},
    {"BF16", 16, DType::bf16},
    {"I32", 32, DType::i32},
    {"U32", 32},
    {"F32", 32, DType::f32},
    {"C64", 64},
    {"F64", 64, DType::f64},
    {"I64", 64, DType::i64},
    {"U64", 64},
}};
[[nodiscard]] constexpr const SafetensorsType& about(SafetensorsDType type) noexcept {
  return safetensors_types[static_cast<std::size_t>(type)];
}
}  // namespace detail

/// "F32", "BF16", ..., as in files.
[[nodiscard]] constexpr std::string_view name_of(SafetensorsDType type) noexcept {
  return detail::about(type).name;
}
/// Bits of one element; those of a tensor add up to whole bytes.
[[nodiscard]] constexpr unsigned bits_of(SafetensorsDType type) noexcept {
  return detail::about(type).bits;
}
/// The library's own type; none where it has none.
[[nodiscard]] constexpr std::optional<DType> dtype_in(SafetensorsDType type) noexcept {
  return detail::about(type).held;
}
/// The type of files for one of the library's own.
[[nodiscard]] constexpr SafetensorsDType safetensors_dtype(DType type) noexcept {
  for (std::size_t i = 0; i < detail::safetensors_types.size(); ++i) {
    if (detail::safetensors_types[i].held == type) return static_cast<SafetensorsDType>(i);
  }
  return SafetensorsDType::f32;  // not reached: every DType is in the table
}
/// The type of that name; none where there is none.
[[nodiscard]] constexpr std::optional<SafetensorsDType> parse_safetensors_dtype(
    std::string_view name) noexcept {
  for (std::size_t i = 0; i < detail::safetensors_types.size(); ++i) {
    if (detail::safetensors_types[i].name == name) return static_cast<SafetensorsDType>(i);
  }
  return std::nullopt;
}

}  // namespace shardwise::inline v0_1
