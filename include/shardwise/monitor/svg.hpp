#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <string_view>
#include <vector>

#include "../core/format.hpp"

namespace shardwise::inline v0_1::monitor {

/// Text within HTML and SVG.
[[nodiscard]] inline std::string escaped(std::string_view text) {
  std::string result;
  for (const char c : text) {
    switch (c) {
      case '&':
        result += "&amp;";
        break;
      case '<':
        result += "&lt;";
        break;
      case '>':
        result += "&gt;";
        break;
      case '"':
        result += "&quot;";
        break;
      default:
        result += c;
    }
  }
  return result;
}

/// A drawing that stands within a page: colours are classes of its style sheet. Units are pixels of
/// a page that is as wide as the drawing.
class Svg {
 public:
  Svg(double width, double height, std::string_view label)
      : text_(shardwise::detail::format(
            "<svg viewBox=\"0 0 {:.0f} {:.0f}\" role=\"img\" aria-label=\"{}\">\n", width, height,
            escaped(label))) {}

  /// `tip` shows while the pointer rests on it; none where it is empty.
  void rect(double x, double y, double width, double height, std::string_view classes,
            std::string_view tip = {}) {
    text_ += shardwise::detail::format(
        "<rect x=\"{:.2f}\" y=\"{:.2f}\" width=\"{:.2f}\" height=\"{:.2f}\" class=\"{}\"", x, y,
        width, height, classes);
    close("rect", tip);
  }
  void line(double x1, double y1, double x2, double y2, std::string_view classes) {
    text_ += shardwise::detail::format(
        "<line x1=\"{:.2f}\" y1=\"{:.2f}\" x2=\"{:.2f}\" y2=\"{:.2f}\" class=\"{}\"/>\n", x1, y1,
        x2, y2, classes);
  }
  void circle(double x, double y, double radius, std::string_view classes,
              std::string_view tip = {}) {
    text_ += shardwise::detail::format(
        "<circle cx=\"{:.2f}\" cy=\"{:.2f}\" r=\"{:.2f}\" class=\"{}\"", x, y, radius, classes);
    close("circle", tip);
  }
  /// `anchor`: "start", "middle" or "end".
  void text(double x, double y, std::string_view words, std::string_view anchor = "start",
            std::string_view classes = "label") {
    text_ += shardwise::detail::format(
        "<text x=\"{:.2f}\" y=\"{:.2f}\" text-anchor=\"{}\" class=\"{}\">{}</text>\n", x, y, anchor,
        classes, escaped(words));
  }
  /// A line through points, or the area that it encloses.
  struct Point {
    double x, y;
  };
  void path(const std::vector<Point>& points, std::string_view classes, bool closed = false,
            std::string_view tip = {}) {
    if (points.empty()) return;
    text_ += "<path d=\"";
    for (const Point& point : points) {
      text_ += shardwise::detail::format("{}{:.1f} {:.1f}", &point == points.data() ? 'M' : 'L',
                                         point.x, point.y);
    }
    text_ += shardwise::detail::format("{}\" class=\"{}\"", closed ? "Z" : "", classes);
    close("path", tip);
  }

  [[nodiscard]] std::string str() const { return text_ + "</svg>\n"; }

 private:
  void close(std::string_view element, std::string_view tip) {
    if (tip.empty()) {
      text_ += "/>\n";
    } else {
      text_ += shardwise::detail::format("><title>{}</title></{}>\n", escaped(tip), element);
    }
  }

  std::string text_;
};

/// Round numbers from `low` to at most `high`, about `count` of them.
[[nodiscard]] inline std::vector<double> ticks(double low, double high, int count) {
  std::vector<double> result;
  if (!(high > low) || !std::isfinite(high - low)) return result;
  const double raw = (high - low) / count;
  const double power = std::pow(10, std::floor(std::log10(raw)));
  double step = power;
  for (const double factor : {1.0, 2.0, 5.0, 10.0}) {
    step = factor * power;
    if (step >= raw) break;
  }
  for (double at = std::ceil(low / step) * step; at <= high + step / 1e6; at += step) {
    result.push_back(std::abs(at) < step / 1e6 ? 0 : at);
  }
  return result;
}

/// The same for bytes: round in powers of two.
[[nodiscard]] inline std::vector<double> byte_ticks(double high, int count) {
  std::vector<double> result;
  if (!(high > 0)) return result;
  const double step = std::pow(2, std::ceil(std::log2(high / count)));
  for (double at = 0; at <= high; at += step) result.push_back(at);
  return result;
}

}  // namespace shardwise::inline v0_1::monitor
