#pragma once

#include <string>
#include <string_view>

#include "../core/error.hpp"
#include "../core/format.hpp"
#include "../core/utf8.hpp"
#include "shown.hpp"

namespace shardwise::inline v0_1::detail {

/// Appends `value` as a string of JSON. UsageError where it is not UTF-8 or has a NUL.
inline void append_json_string(std::string& text, std::string_view value) {
  if (find_non_utf8(value)) {
    raise("'{}' is to be written as JSON, but is not UTF-8, or has a NUL", shown(value));
  }
  text += '"';
  for (const char c : value) {
    if (c == '"' || c == '\\') {
      text += '\\';
      text += c;
    } else if (static_cast<unsigned char>(c) < ' ') {
      text += format("\\u{:04x}", static_cast<unsigned>(c));
    } else {
      text += c;
    }
  }
  text += '"';
}

}  // namespace shardwise::inline v0_1::detail
