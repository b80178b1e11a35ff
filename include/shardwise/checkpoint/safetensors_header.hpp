#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "safetensors_dtype.hpp"

namespace shardwise::inline v0_1 {

/// One tensor of a safetensors file: row-major, little-endian.
struct SafetensorsTensor {
  std::string name;
  SafetensorsDType dtype = SafetensorsDType::f32;
  std::vector<std::uint64_t> shape;  ///< empty: a scalar
  std::uint64_t begin = 0;           ///< of its bytes, from the beginning of the data on
  std::uint64_t end = 0;             ///< past its last byte, likewise

  [[nodiscard]] bool operator==(const SafetensorsTensor&) const = default;
};

/// What a safetensors file says of itself.
struct SafetensorsHeader {
  std::vector<SafetensorsTensor> tensors;                     ///< by offset
  std::vector<std::pair<std::string, std::string>> metadata;  ///< in the order of the file
  std::uint64_t data_begin = 0;                               ///< where the data begin in the file
  std::vector<std::uint32_t> by_name;  ///< indices in `tensors`, by name; for find

  /// The tensor of this name; null where there is none.
  [[nodiscard]] const SafetensorsTensor* find(std::string_view name) const noexcept {
    const auto found = std::partition_point(by_name.begin(), by_name.end(),
                                            [&](auto i) { return tensors[i].name < name; });
    if (found == by_name.end() || tensors[*found].name != name) return nullptr;
    return &tensors[*found];
  }
  /// The value of this key of the metadata; null where there is none.
  [[nodiscard]] const std::string* find_metadata(std::string_view key) const noexcept {
    const auto found = std::find_if(metadata.begin(), metadata.end(),
                                    [&](const auto& entry) { return entry.first == key; });
    return found == metadata.end() ? nullptr : &found->second;
  }
};

namespace detail {

/// Bytes of a tensor; none where they do not fit in 64 bits or are not whole.
[[nodiscard]] inline std::optional<std::uint64_t> safetensors_bytes(
    SafetensorsDType type, const std::vector<std::uint64_t>& shape) noexcept {
  // An extent of 0 first: the product of the others may be anything then.
  if (std::find(shape.begin(), shape.end(), 0u) != shape.end()) return 0;
  std::uint64_t bits = bits_of(type);
  std::uint64_t elements = 1;
  for (const std::uint64_t extent : shape) {
    if (__builtin_mul_overflow(elements, extent, &elements)) return std::nullopt;
  }
  if (__builtin_mul_overflow(bits, elements, &bits) || bits % 8 != 0) return std::nullopt;
  return bits / 8;
}

}  // namespace detail
}  // namespace shardwise::inline v0_1
