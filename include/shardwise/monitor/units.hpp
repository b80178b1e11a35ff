#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <string_view>

#include "../core/format.hpp"

/// @file
/// Numbers as people read them.
namespace shardwise::inline v0_1::monitor {

namespace detail {
using shardwise::detail::format;
}

/// "0 B", "812 B", "3.1 KiB", "12.0 MiB", ...
[[nodiscard]] inline std::string bytes_text(double bytes) {
  constexpr std::array<std::string_view, 5> units{"B", "KiB", "MiB", "GiB", "TiB"};
  std::size_t unit = 0;
  while (bytes >= 1024 && unit + 1 < units.size()) {
    bytes /= 1024;
    ++unit;
  }
  if (unit == 0) return detail::format("{:.0f} B", bytes);
  return detail::format("{:.1f} {}", bytes, units[unit]);
}

/// "35 us", "1.20 ms", "84.0 ms", "3.10 s".
[[nodiscard]] inline std::string time_text(double ms) {
  if (ms < 1) return detail::format("{:.0f} us", ms * 1000);
  if (ms < 10) return detail::format("{:.2f} ms", ms);
  if (ms < 1000) return detail::format("{:.1f} ms", ms);
  return detail::format("{:.2f} s", ms / 1000);
}

/// "-" where nothing travelled, else "0.42 GB/s".
[[nodiscard]] inline std::string bandwidth_text(double bytes_per_s) {
  if (bytes_per_s <= 0) return "-";
  if (bytes_per_s < 1e7) return detail::format("{:.2f} MB/s", bytes_per_s / 1e6);
  return detail::format("{:.2f} GB/s", bytes_per_s / 1e9);
}

/// "61 %"; of nothing it is 0 %.
[[nodiscard]] inline std::string percent_text(double part, double whole) {
  return detail::format("{:.0f} %", whole > 0 ? 100 * part / whole : 0.0);
}

}  // namespace shardwise::inline v0_1::monitor
