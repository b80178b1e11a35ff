#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "../core/format.hpp"
#include "../strategy.hpp"
#include "configuration.hpp"
#include "document.hpp"
#include "field.hpp"

namespace shardwise::inline v0_1 {

/// Where the value of each field comes from: "z3.json:12:5: zero_optimization.stage". Indexed by
/// ConfigField; empty: not said.
using ConfigSources = std::array<std::string, config_field_count>;

namespace detail {

/// The library's name for the placements of `strategy`, with or without reshard_after_forward;
/// empty where there is none. shard_group is said by itself.
[[nodiscard]] inline std::string placements_name(Strategy strategy) {
  strategy.shard_group = 0;
  const std::string name = strategy.name();
  return name.find('/') == std::string::npos ? name : std::string();
}

[[nodiscard]] inline bool is_placement(std::size_t field) noexcept {
  return field <= static_cast<std::size_t>(ConfigField::optimizer_state);
}

/// Nothing in it ends a comment, whatever a file is called.
[[nodiscard]] inline std::string one_line(std::string text) {
  const bool odd = find_non_utf8(text).has_value();
  std::replace_if(
      text.begin(), text.end(),
      [&](char c) {
        const auto byte = static_cast<unsigned char>(c);
        return byte < ' ' || (odd && byte >= 0x80);
      },
      '?');
  return text;
}

/// `text` with "# " before each of its lines.
[[nodiscard]] inline std::string commented(std::string_view text) {
  std::string result;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    result += end == 0 ? "#" : "# ";
    result += one_line(std::string(text.substr(0, end)));
    result += '\n';
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return result;
}

}  // namespace detail

/// The configuration in shardwise's own form: YAML, one key a line, which load_config reads back as
/// an equal value, if each field is of its domain (examples/configuration.md). `heading`: comment
/// before it, one or more lines. `sources`: comment behind each value. What the configuration
/// leaves to the host is not written.
[[nodiscard]] inline std::string write_config(const Configuration& configuration,
                                              std::string_view heading = {},
                                              const ConfigSources& sources = {}) {
  struct Line {
    std::string text;
    std::string source;
  };
  std::vector<Line> lines;
  const Strategy& strategy = configuration.strategy;
  const std::string name = detail::placements_name(strategy);
  const bool named = !name.empty();
  if (named) lines.push_back({"strategy: " + name, sources[0]});
  const Strategy base = named ? Strategy::parse(name) : Strategy::zero3();
  for (std::size_t i = 0; i < config_field_count; ++i) {
    if (named && detail::is_placement(i)) continue;
    const auto field = static_cast<ConfigField>(i);
    if (named && field == ConfigField::reshard_after_forward &&
        base.reshard_after_forward == strategy.reshard_after_forward) {
      continue;
    }
    const std::string value = text_of(configuration, field);
    if (value.empty()) continue;
    if (field == ConfigField::gradient_storage && !configuration.gradient_storage) continue;
    lines.push_back({detail::format("{}: {}", name_of(field), value), sources[i]});
  }
  std::size_t width = 0;
  for (const Line& line : lines) width = std::max(width, line.text.size());
  std::string text = detail::commented(heading);
  for (const Line& line : lines) {
    text += line.text;
    if (!line.source.empty()) {
      text += std::string(width - line.text.size() + 2, ' ') + "# " + detail::one_line(line.source);
    }
    text += '\n';
  }
  return text;
}

/// The same for a strategy alone.
[[nodiscard]] inline std::string write_config(const Strategy& strategy,
                                              std::string_view heading = {}) {
  Configuration configuration;
  configuration.strategy = strategy;
  return write_config(configuration, heading);
}

}  // namespace shardwise::inline v0_1
