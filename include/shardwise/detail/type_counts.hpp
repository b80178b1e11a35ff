#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "../core/dtype.hpp"

namespace shardwise::inline v0_1::detail {

/// How many values of each type an optimizer keeps for an element.
class TypeCounts {
 public:
  TypeCounts() = default;
  explicit TypeCounts(std::span<const DType> types) noexcept {
    for (const DType type : types) add(type);
  }

  void add(DType type) noexcept { ++counts_[static_cast<std::size_t>(type)]; }
  void remove(DType type) noexcept { --counts_[static_cast<std::size_t>(type)]; }

  /// Of all of them.
  [[nodiscard]] std::size_t bytes() const noexcept {
    std::size_t bytes = 0;
    for (std::size_t i = 0; i < counts_.size(); ++i) {
      bytes += counts_[i] * size_of(static_cast<DType>(i));
    }
    return bytes;
  }
  /// Each type as often as it was added, in the order of DType.
  [[nodiscard]] std::vector<DType> list() const {
    std::vector<DType> types;
    for (std::size_t i = 0; i < counts_.size(); ++i) {
      types.insert(types.end(), counts_[i], static_cast<DType>(i));
    }
    return types;
  }

 private:
  std::array<std::uint16_t, static_cast<std::size_t>(DType::u8) + 1> counts_ = {};
};

}  // namespace shardwise::inline v0_1::detail
