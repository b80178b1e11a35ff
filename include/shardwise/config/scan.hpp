#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>

#include "../core/format.hpp"
#include "document.hpp"
#include "key.hpp"
#include "number.hpp"

namespace shardwise::inline v0_1::detail {

/// A value of a file that is of its key's kind and domain.
struct ConfigValue {
  const ConfigKey* key = nullptr;
  std::string path;  ///< as it is spelled in the file
  std::size_t offset = 0;
  bool automatic = false;
  bool flag = false;
  std::uint64_t count = 0;
  double number = 0;
  std::string text;        ///< of a scalar; words are in lower case
  std::size_t report = 0;  ///< index of its report
};

/// In ASCII.
[[nodiscard]] inline std::string lower_case(std::string_view text) {
  std::string result(text);
  for (char& c : result) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return result;
}

/// Whether a domain "a|b" has the word, which is in lower case.
[[nodiscard]] inline bool in_words(std::string_view word, std::string_view domain) {
  while (!domain.empty()) {
    const std::size_t end = std::min(domain.find('|'), domain.size());
    if (word == lower_case(domain.substr(0, end))) return true;
    domain.remove_prefix(std::min(end + 1, domain.size()));
  }
  return false;
}

/// Whether a key that is refused has a value that asks for nothing.
[[nodiscard]] inline bool is_harmless(const ConfigNode& node, const ConfigKey& key) {
  if (node.kind == ConfigNode::Kind::map) return node.members.empty();
  if (node.kind == ConfigNode::Kind::list) return node.items.empty();
  return in_words(lower_case(node.text), key.harmless);
}

/// Limits of a numeric domain.
struct ConfigRange {
  double least = -std::numeric_limits<double>::infinity();
  double most = std::numeric_limits<double>::infinity();
  bool above = false;  // the least is not of it
  [[nodiscard]] bool has(double value) const noexcept {
    return value <= most && (above ? value > least : value >= least);
  }
};
[[nodiscard]] inline ConfigRange range_of(std::string_view domain) {
  ConfigRange range;
  const std::size_t dots = domain.find("..");
  if (dots == std::string_view::npos) return range;
  std::string_view first = domain.substr(0, dots);
  if (first.ends_with('<')) {
    range.above = true;
    first.remove_suffix(1);
  }
  range.least = parse_number(first).value_or(range.least);
  range.most = parse_number(domain.substr(dots + 2)).value_or(range.most);
  return range;
}
/// "0 or more".
[[nodiscard]] inline std::string range_text(std::string_view domain) {
  const ConfigRange range = range_of(domain);
  if (range.above) return format("above {}", range.least);
  if (range.most == std::numeric_limits<double>::infinity()) {
    return format("{} or more", range.least);
  }
  return format("from {} to {}", range.least, range.most);
}

/// "an integer, 0 or more, or "auto"".
[[nodiscard]] inline std::string expected_of(const ConfigKey& key) {
  std::string text;
  switch (key.kind) {
    case ConfigKind::boolean:
      text = "true or false";
      break;
    case ConfigKind::yes_no:
      text = "yes or no";
      break;
    case ConfigKind::integer:
    case ConfigKind::bytes:
    case ConfigKind::number:
      text = key.kind == ConfigKind::integer ? "an integer"
             : key.kind == ConfigKind::bytes ? "bytes (a number, or as 25MiB)"
                                             : "a number";
      if (!key.domain.empty()) text += ", " + range_text(key.domain);
      break;
    case ConfigKind::word:
      for (const char c : key.domain) text += c == '|' ? std::string(", ") : std::string(1, c);
      text = "one of " + text;
      break;
    case ConfigKind::text:
      text = "a text";
      break;
    case ConfigKind::list:
      text = "a list";
      break;
    case ConfigKind::map_or_flag:
      text = "a group of keys, or true or false";
      break;
    case ConfigKind::map:
    case ConfigKind::free_map:
      text = "a group of keys";
      break;
    case ConfigKind::value:
      text = "any value";
      break;
  }
  return key.automatic ? text + ", or \"auto\"" : text;
}

[[nodiscard]] inline bool scan_integer(const ConfigNode& node, ConfigValue& value) {
  const ConfigKey& key = *value.key;
  if (node.quoted) return false;
  const bool negative = node.text.starts_with('-');
  const std::string_view digits = std::string_view(node.text).substr(negative ? 1 : 0);
  const std::optional<std::uint64_t> count =
      key.kind == ConfigKind::bytes && !negative ? parse_bytes(digits) : parse_count(digits);
  constexpr auto largest = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
  if (!count || *count > largest) return false;
  value.number = static_cast<double>(*count) * (negative ? -1 : 1);
  value.count = negative ? 0 : *count;
  return range_of(key.domain).has(value.number);
}

/// Whether `node` is of the key's kind and domain; `value` is what it says.
[[nodiscard]] inline bool scan_value(const ConfigNode& node, ConfigValue& value) {
  const ConfigKey& key = *value.key;
  const bool scalar = node.kind == ConfigNode::Kind::scalar;
  value.text = node.text;
  if (scalar && key.automatic && node.text == "auto") {
    value.automatic = true;
    return true;
  }
  switch (key.kind) {
    case ConfigKind::boolean:
    case ConfigKind::map_or_flag:
      value.flag = node.text == "true";
      return scalar && !node.quoted && (value.flag || node.text == "false");
    case ConfigKind::yes_no: {
      const std::string word = lower_case(node.text);
      value.flag = in_words(word, "true|yes|on|1");
      return scalar && (value.flag || in_words(word, "false|no|off|0"));
    }
    case ConfigKind::integer:
    case ConfigKind::bytes:
      return scalar && scan_integer(node, value);
    case ConfigKind::number: {
      const std::optional<double> number =
          scalar && !node.quoted ? parse_number(node.text) : std::nullopt;
      value.number = number.value_or(0);
      return number && range_of(key.domain).has(*number);
    }
    case ConfigKind::word:
      value.text = lower_case(node.text);
      return scalar && in_words(value.text, key.domain);
    case ConfigKind::text:
      return scalar;
    case ConfigKind::list:
      return node.kind == ConfigNode::Kind::list;
    case ConfigKind::map:
    case ConfigKind::free_map:
      return node.kind == ConfigNode::Kind::map;
    case ConfigKind::value:
      return true;
  }
  return false;
}

}  // namespace shardwise::inline v0_1::detail
