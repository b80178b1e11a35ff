#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "../core/utf8.hpp"

namespace shardwise::inline v0_1::detail {

struct ConfigMember;

/// A value of a file of configuration, and where it begins.
struct ConfigNode {
  enum class Kind : std::uint8_t { null, scalar, list, map };

  Kind kind = Kind::null;
  bool quoted = false;     ///< of a scalar
  std::size_t offset = 0;  ///< in the text, in bytes
  std::string text;        ///< of a scalar
  std::vector<ConfigNode> items;
  std::vector<ConfigMember> members;  ///< in the file's order; a key may come twice

  /// As it is shown to a person, in short.
  [[nodiscard]] std::string shown() const {
    if (kind == Kind::map) return members.empty() ? "{}" : "{...}";
    if (kind == Kind::list) return items.empty() ? "[]" : "[...]";
    if (kind == Kind::null) return "null";
    std::string result = text;
    if (text.size() > 60) {
      std::size_t end = 57;  // not within a character
      while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0u) == 0x80u) --end;
      result = text.substr(0, end) + "...";
    }
    std::replace_if(
        result.begin(), result.end(), [](char c) { return static_cast<unsigned char>(c) < ' '; },
        '?');
    return quoted ? '"' + result + '"' : result;
  }
};

struct ConfigMember {
  std::string key;
  std::size_t offset = 0;  ///< of the key
  ConfigNode value;
};

/// A place where a text is not of its syntax.
struct SyntaxProblem {
  std::size_t offset = 0;
  std::string path;
  std::string message;
};

/// "a.b" and "c" give "a.b.c".
[[nodiscard]] inline std::string joined_path(std::string_view parent, std::string_view key) {
  std::string path(parent);
  if (!path.empty()) path += '.';
  path += key;
  return path;
}

/// Line and column, from 1, of a byte; columns count characters.
struct TextPosition {
  std::size_t line = 1;
  std::size_t column = 1;
};

[[nodiscard]] inline TextPosition position_of(std::string_view text, std::size_t offset) noexcept {
  TextPosition position;
  offset = std::min(offset, text.size());
  for (std::size_t i = 0; i < offset; ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    if (byte == '\n') {
      ++position.line;
      position.column = 1;
    } else if ((byte & 0xc0u) != 0x80u) {  // not the middle of a character
      ++position.column;
    }
  }
  return position;
}

}  // namespace shardwise::inline v0_1::detail
