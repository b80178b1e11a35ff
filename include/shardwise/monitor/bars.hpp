#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "svg.hpp"
#include "units.hpp"

namespace shardwise::inline v0_1::monitor {

namespace detail {

inline constexpr double chart_width = 960;

/// A legend above a drawing; `names` beside the classes that colour them.
struct Key {
  std::string_view classes, name;
};
[[nodiscard]] inline std::string legend(std::span<const Key> keys) {
  std::string html = "<p class=\"legend\">";
  for (const Key& key : keys) {
    html += format("<span><i class=\"{}\"></i>{}</span>", key.classes, escaped(key.name));
  }
  return html + "</p>\n";
}

struct BarPart {
  double value;
  std::string_view classes;
  std::string tip;
};
struct Bar {
  std::string label;
  std::string value;
  std::vector<BarPart> parts;
};

/// Stacked bars, one below the other. `axis(value)` is a tick's text.
template <class Axis>
[[nodiscard]] std::string stacked_bars(std::span<const Bar> bars, const std::vector<double>& marks,
                                       double largest, const Axis& axis, std::string_view label) {
  constexpr double left = 70, right = 90, row = 26, bar = 18;
  const double width = chart_width - left - right;
  const double height = row * static_cast<double>(bars.size());
  const double scale = largest > 0 ? width / largest : 0;
  Svg svg(chart_width, height + 28, label);
  for (const double mark : marks) {
    svg.line(left + mark * scale, 0, left + mark * scale, height, "grid");
    svg.text(left + mark * scale, height + 16, axis(mark), "middle");
  }
  for (std::size_t i = 0; i < bars.size(); ++i) {
    const double y = row * static_cast<double>(i) + (row - bar) / 2;
    double x = left;
    svg.text(left - 8, y + bar - 5, bars[i].label, "end", "label strong");
    for (const BarPart& part : bars[i].parts) {
      const double extent = std::max(0.0, part.value * scale);
      // A gap of the page's own colour between parts.
      if (extent > 0) svg.rect(x, y, std::max(0.5, extent - 1), bar, part.classes, part.tip);
      x += extent;
    }
    svg.text(x + 6, y + bar - 5, bars[i].value);
  }
  return svg.str();
}

inline constexpr std::array<std::string_view, 5> kind_classes{"k0", "k1", "k2", "k3", "k4"};

}  // namespace detail

}  // namespace shardwise::inline v0_1::monitor
