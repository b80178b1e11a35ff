#pragma once

#include <cstddef>
#include <optional>
#include <string_view>

namespace shardwise::inline v0_1::detail {

/// Where a text is not UTF-8 (overlong forms, surrogates and what ends early included) or has a
/// character NUL.
[[nodiscard]] inline std::optional<std::size_t> find_non_utf8(std::string_view text) noexcept {
  const auto byte = [&](std::size_t i) {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u;
  };
  for (std::size_t i = 0; i < text.size();) {
    const unsigned first = byte(i);
    if (first == 0) return i;
    if (first < 0x80) {
      ++i;
      continue;
    }
    const std::size_t length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
    unsigned low = 0x80;
    unsigned high = 0xbf;
    if (first < 0xc2 || first > 0xf4) return i;
    if (first == 0xe0) low = 0xa0;
    if (first == 0xed) high = 0x9f;
    if (first == 0xf0) low = 0x90;
    if (first == 0xf4) high = 0x8f;
    if (byte(i + 1) < low || byte(i + 1) > high) return i;
    for (std::size_t k = 2; k < length; ++k) {
      if ((byte(i + k) & 0xc0u) != 0x80u) return i;
    }
    i += length;
  }
  return std::nullopt;
}

}  // namespace shardwise::inline v0_1::detail
