#pragma once

#include <cstdint>
#include <string_view>

namespace shardwise::inline v0_1::detail {

/// FNV-1a of 64 bits (Fowler, Noll, Vo), for what ranks compare with each other: fast to write, and
/// no protection against whoever wants two values to agree.
class Hash {
 public:
  /// Its eight bytes, the lowest first.
  constexpr void add(std::uint64_t value) noexcept {
    for (int byte = 0; byte < 8; ++byte) add_byte((value >> (8 * byte)) & 0xffu);
  }
  /// The length goes before the letters, so that no two lists of texts give one sequence.
  constexpr void add(std::string_view text) noexcept {
    add(text.size());
    for (const char letter : text) add_byte(static_cast<unsigned char>(letter));
  }
  [[nodiscard]] constexpr std::uint64_t value() const noexcept { return value_; }

 private:
  constexpr void add_byte(std::uint64_t byte) noexcept {
    value_ = (value_ ^ byte) * 0x100000001b3ull;
  }

  std::uint64_t value_ = 0xcbf29ce484222325ull;
};

}  // namespace shardwise::inline v0_1::detail
