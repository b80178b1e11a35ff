#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>

namespace shardwise::inline v0_1::detail {

/// A stranger's name as messages show it: at most `longest` bytes, cut between characters, and with
/// control characters as '?', so that it cannot forge lines of a log.
[[nodiscard]] inline std::string shown(std::string_view text, std::size_t longest = 200) {
  std::size_t end = std::min(text.size(), longest);
  if (end < text.size()) {
    while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0u) == 0x80u) --end;
  }
  std::string result(text.substr(0, end));
  std::replace_if(
      result.begin(), result.end(),
      [](char c) { return static_cast<unsigned char>(c) < ' ' || c == '\x7f'; }, '?');
  if (end < text.size()) result += "...";
  return result;
}

}  // namespace shardwise::inline v0_1::detail
