#pragma once

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>

namespace shardwise::inline v0_1::detail {

[[nodiscard]] constexpr bool is_digit(char c) noexcept { return c >= '0' && c <= '9'; }

/// A whole number that is not negative, also as 5e8 or 1.5e3; none where the text is another or
/// does not fit. Computed in integers: 5e8 is 500000000 exactly.
[[nodiscard]] constexpr std::optional<std::uint64_t> parse_count(std::string_view text) noexcept {
  std::uint64_t value = 0;
  int scale = 0;  // digits behind the point
  bool digits = false;
  bool point = false;
  std::size_t i = 0;
  for (; i < text.size() && (is_digit(text[i]) || (text[i] == '.' && !point)); ++i) {
    if (text[i] == '.') {
      point = true;
      continue;
    }
    digits = true;
    if (__builtin_mul_overflow(value, std::uint64_t{10}, &value) ||
        __builtin_add_overflow(value, static_cast<std::uint64_t>(text[i] - '0'), &value)) {
      return std::nullopt;
    }
    if (point) ++scale;
  }
  if (!digits) return std::nullopt;
  int exponent = 0;
  if (i < text.size() && (text[i] == 'e' || text[i] == 'E')) {
    ++i;
    bool negative = false;
    if (i < text.size() && (text[i] == '+' || text[i] == '-')) negative = text[i++] == '-';
    if (i == text.size()) return std::nullopt;
    for (; i < text.size() && is_digit(text[i]); ++i) {
      if (exponent < 10000) exponent = exponent * 10 + (text[i] - '0');
    }
    if (negative) exponent = -exponent;
  }
  if (i != text.size()) return std::nullopt;
  for (exponent -= scale; exponent > 0 && value != 0; --exponent) {
    if (__builtin_mul_overflow(value, std::uint64_t{10}, &value)) return std::nullopt;
  }
  for (; exponent < 0 && value != 0; ++exponent) {
    if (value % 10 != 0) return std::nullopt;
    value /= 10;
  }
  return value;
}

/// The same with KiB, MiB or GiB behind it.
[[nodiscard]] constexpr std::optional<std::uint64_t> parse_bytes(std::string_view text) noexcept {
  std::uint64_t unit = 1;
  if (text.ends_with("iB") && text.size() > 3) {
    constexpr std::string_view units = "KMG";
    const std::size_t power = units.find(text[text.size() - 3]);
    if (power == std::string_view::npos) return std::nullopt;
    unit = std::uint64_t{1} << (10 * (power + 1));
    text.remove_suffix(3);
    while (text.ends_with(' ')) text.remove_suffix(1);
  }
  const std::optional<std::uint64_t> count = parse_count(text);
  std::uint64_t bytes = 0;
  if (!count || __builtin_mul_overflow(*count, unit, &bytes)) return std::nullopt;
  return bytes;
}

/// A finite decimal number; none where the text is something else.
[[nodiscard]] inline std::optional<double> parse_number(std::string_view text) noexcept {
  if (text.starts_with('+')) text.remove_prefix(1);
  if (text.empty() || (!is_digit(text.back()) && text.back() != '.')) return std::nullopt;
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  constexpr double largest = std::numeric_limits<double>::max();
  if (!(value >= -largest && value <= largest)) return std::nullopt;
  return value;
}

/// The shortest text that reads as the same number.
[[nodiscard]] inline std::string print_number(double value) {
  char text[40];
  const auto result = std::to_chars(text, text + sizeof text, value);
  return std::string(text, result.ptr);
}

}  // namespace shardwise::inline v0_1::detail
