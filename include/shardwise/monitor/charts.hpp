#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "bars.hpp"
#include "collect.hpp"
#include "records.hpp"
#include "summary.hpp"
#include "svg.hpp"
#include "trace.hpp"
#include "units.hpp"

/// @file
/// The drawings of the report: each is a piece of SVG.
namespace shardwise::inline v0_1::monitor {

/// Memory of each rank when it held most, by kind.
[[nodiscard]] inline std::string memory_chart(const Summary& s) {
  std::vector<detail::Bar> bars;
  std::array<bool, state_kinds.size()> occurs = {};
  double largest = 0;
  for (const RankSummary& rank : s.ranks) {
    detail::Bar bar{"rank " + std::to_string(rank.rank),
                    bytes_text(static_cast<double>(rank.peak.total())),
                    {}};
    Bytes held = rank.peak;
    for (const StateKind kind : state_kinds) {
      const auto k = static_cast<std::size_t>(kind);
      const auto bytes = static_cast<double>(held[kind]);
      occurs[k] = occurs[k] || bytes > 0;
      bar.parts.push_back({bytes, detail::kind_classes[k],
                           detail::format("{}: {}", name_of(kind), bytes_text(bytes))});
    }
    largest = std::max(largest, static_cast<double>(rank.peak.total()));
    bars.push_back(std::move(bar));
  }
  std::vector<detail::Key> keys;
  for (const StateKind kind : state_kinds) {
    const auto k = static_cast<std::size_t>(kind);
    if (occurs[k]) keys.push_back({detail::kind_classes[k], name_of(kind)});
  }
  return detail::legend(keys) + detail::stacked_bars(bars, byte_ticks(largest, 5), largest,
                                                     bytes_text, "Memory of each rank by kind");
}

/// What was held on one rank after each change of its ledger.
[[nodiscard]] inline std::string ledger_chart(const Rank& rank) {
  constexpr double left = 70, right = 20, height = 170;
  const double width = detail::chart_width - left - right;
  std::vector<LedgerPoint> points = rank.ledger;
  if (points.size() < 2) return "<p class=\"muted\">Nothing was allocated.</p>\n";
  // What ends with the Context is of no interest.
  while (points.size() > 2 && points.back().held.total() < points[points.size() - 2].held.total()) {
    points.pop_back();
  }
  const double peak = static_cast<double>(rank.peak.held.total());
  const double dx = width / static_cast<double>(points.size());
  Svg svg(detail::chart_width, height + 44, "Memory held after each change of the ledger");
  for (const double mark : byte_ticks(peak, 4)) {
    const double y = 14 + height * (1 - mark / peak);
    svg.line(left, y, left + width, y, "grid");
    svg.text(left - 8, y + 4, bytes_text(mark), "end");
  }
  std::vector<double> below(points.size(), 0);
  for (const StateKind kind : state_kinds) {
    std::vector<Svg::Point> area;
    std::vector<double> above = below;
    double most = 0;
    for (std::size_t i = 0; i < points.size(); ++i) {
      Bytes held = points[i].held;
      above[i] += static_cast<double>(held[kind]);
      most = std::max(most, static_cast<double>(held[kind]));
    }
    if (most == 0) continue;
    const auto y_of = [&](double bytes) { return 14 + height * (1 - bytes / peak); };
    for (std::size_t i = 0; i < points.size(); ++i) {
      const double x = left + dx * static_cast<double>(i);
      area.push_back({x, y_of(above[i])});
      area.push_back({x + dx, y_of(above[i])});
    }
    for (std::size_t i = points.size(); i-- > 0;) {
      const double x = left + dx * static_cast<double>(i);
      area.push_back({x + dx, y_of(below[i])});
      area.push_back({x, y_of(below[i])});
    }
    svg.path(area, detail::kind_classes[static_cast<std::size_t>(kind)], true,
             detail::format("{}: at most {}", name_of(kind), bytes_text(most)));
    below = above;
  }
  for (std::size_t i = 0; i < points.size(); ++i) {
    if (points[i].held.total() != rank.peak.held.total()) continue;
    const double x = left + dx * static_cast<double>(i);
    svg.line(x, 8, x, 14 + height, "peak");
    const bool is_right = x > left + width * 0.6;
    svg.text(is_right ? x - 6 : x + 6, 11, "peak " + bytes_text(peak), is_right ? "end" : "start",
             "label strong");
    break;
  }
  svg.text(left + width / 2, height + 36, "allocations and releases, in order", "middle");
  return svg.str();
}

/// A step of each rank, in the mean: what it computed, waited for and updated.
[[nodiscard]] inline std::string split_chart(const Summary& s) {
  std::vector<detail::Bar> bars;
  double largest = 0;
  for (const RankSummary& rank : s.ranks) {
    const auto tip = [&](std::string_view what, double ms) {
      return detail::format("{}: {} ({})", what, time_text(ms), percent_text(ms, rank.step_ms));
    };
    bars.push_back({"rank " + std::to_string(rank.rank),
                    time_text(rank.step_ms),
                    {{rank.compute_ms, "compute", tip("compute", rank.compute_ms)},
                     {rank.exposed_ms, "exposed", tip("exposed communication", rank.exposed_ms)},
                     {rank.optimizer_ms, "optimizer", tip("optimizer", rank.optimizer_ms)}}});
    largest = std::max(largest, rank.step_ms);
  }
  constexpr std::array<detail::Key, 3> keys{
      {{"compute", "compute"}, {"exposed", "exposed communication"}, {"optimizer", "optimizer"}}};
  return detail::legend(keys) + detail::stacked_bars(
                                    bars, ticks(0, largest, 6), largest,
                                    [](double ms) { return detail::format("{:.4g} ms", ms); },
                                    "Step time of each rank");
}

/// The last step that all of these ranks have whole, as their host threads and their communication
/// streams saw it.
[[nodiscard]] inline std::string timeline_chart(std::span<const Rank> ranks,
                                                std::size_t largest_count = 8) {
  ranks = ranks.first(std::min(ranks.size(), largest_count));
  const Span* chosen = nullptr;
  for (const Rank& rank : ranks) {
    for (const Span& span : rank.host) {
      if (span.kind == SpanKind::step && &rank == &ranks[0]) chosen = &span;
    }
  }
  if (chosen == nullptr) return "<p class=\"muted\">No step was marked.</p>\n";
  std::int64_t begin = chosen->begin_ns;
  std::int64_t end = chosen->end_ns;
  for (const Rank& rank : ranks) {
    for (const Span& span : rank.host) {
      if (span.kind != SpanKind::step || span.sequence != chosen->sequence) continue;
      const std::int64_t offset = clock_offset(ranks[0], rank);
      begin = std::min(begin, span.begin_ns + offset);
      end = std::max(end, span.end_ns + offset);
    }
  }
  constexpr double left = 70, right = 20, lane = 17, rank_gap = 12;
  const double width = detail::chart_width - left - right;
  const double per_rank = 2 * lane + 3 + rank_gap;
  const double height = per_rank * static_cast<double>(ranks.size());
  const double total_ms = static_cast<double>(end - begin) / 1e6;
  Svg svg(detail::chart_width, height + 24, "Timeline of one step");
  for (const double mark : ticks(0, total_ms, 8)) {
    const double x = left + width * mark / total_ms;
    svg.line(x, 0, x, height, "grid");
    svg.text(x, height + 14, detail::format("{:.4g} ms", mark), "middle");
  }
  const auto draw = [&](const Rank& rank, const Span& span, double y, std::string_view classes) {
    const std::int64_t offset = clock_offset(ranks[0], rank);
    const std::int64_t from = std::max(span.begin_ns + offset, begin);
    const std::int64_t to = std::min(span.end_ns + offset, end);
    if (to <= from) return;
    const double x = left + width * static_cast<double>(from - begin) / 1e6 / total_ms;
    const double extent = width * static_cast<double>(to - from) / 1e6 / total_ms;
    svg.rect(x, y, std::max(0.4, extent), lane, classes,
             detail::format("rank {}: {}, {}", rank.rank, name_of_span(rank, span),
                            time_text(static_cast<double>(to - from) / 1e6)));
  };
  double y = 0;
  for (const Rank& rank : ranks) {
    svg.text(left - 8, y + 13, "rank " + std::to_string(rank.rank), "end", "label strong");
    svg.text(left - 8, y + lane + 16, "comm.", "end");
    svg.rect(left, y, width, lane, "lane");
    svg.rect(left, y + lane + 3, width, lane, "lane");
    for (const Span& span : rank.host) {
      switch (span.kind) {
        case SpanKind::forward:
          draw(rank, span, y, "forward");
          break;
        case SpanKind::backward:
          draw(rank, span, y, "backward");
          break;
        case SpanKind::wait:
        case SpanKind::scalar:
          draw(rank, span, y, "exposed");
          break;
        case SpanKind::update:
          draw(rank, span, y, "optimizer");
          break;
        default:
          break;
      }
    }
    for (const Span& span : rank.communication) {
      draw(rank, span, y + lane + 3, span.activity == Activity::all_gather ? "gather" : "reduce");
    }
    y += per_rank;
  }
  constexpr std::array<detail::Key, 6> keys{{{"forward", "forward"},
                                             {"backward", "backward"},
                                             {"optimizer", "optimizer"},
                                             {"exposed", "waits for communication"},
                                             {"gather", "gather runs"},
                                             {"reduce", "reduction runs"}}};
  return detail::legend(keys) + svg.str();
}

/// The loss of each step that was kept.
[[nodiscard]] inline std::string loss_chart(const Rank& rank) {
  constexpr double left = 70, right = 70, top = 8, height = 180;
  const double width = detail::chart_width - left - right;
  std::vector<Svg::Point> values;
  for (const Step& step : rank.history) {
    if (std::isfinite(step.loss)) values.push_back({static_cast<double>(step.number), step.loss});
  }
  const auto by_y = [](const Svg::Point& a, const Svg::Point& b) { return a.y < b.y; };
  if (values.size() < 2) return "<p class=\"muted\">There are too few steps for a curve.</p>\n";
  double low = std::min_element(values.begin(), values.end(), by_y)->y;
  double high = std::max_element(values.begin(), values.end(), by_y)->y;
  if (low == 0 && high == 0) return "<p class=\"muted\">Context::end_step was given no loss.</p>\n";
  const double margin = std::max((high - low) * 0.06, 1e-9);
  low -= margin;
  high += margin;
  const double first = values.front().x;
  const double last = values.back().x;
  const auto x_of = [&](double step) { return left + width * (step - first) / (last - first); };
  const auto y_of = [&](double loss) { return top + height * (high - loss) / (high - low); };
  Svg svg(detail::chart_width, top + height + 28, "Loss of each step");
  for (const double mark : ticks(low, high, 5)) {
    svg.line(left, y_of(mark), left + width, y_of(mark), "grid");
    svg.text(left - 8, y_of(mark) + 4, detail::format("{:.4g}", mark), "end");
  }
  for (const double mark : ticks(first, last, 8)) {
    if (mark != std::floor(mark)) continue;
    svg.text(x_of(mark), top + height + 18, detail::format("{:.0f}", mark), "middle");
  }
  std::vector<Svg::Point> curve;
  for (const Svg::Point& value : values) curve.push_back({x_of(value.x), y_of(value.y)});
  svg.path(curve, "curve");
  svg.circle(curve.back().x, curve.back().y, 4, "dot",
             detail::format("step {:.0f}: loss {:.4f}", values.back().x, values.back().y));
  svg.text(curve.back().x + 9, curve.back().y + 4, detail::format("{:.4f}", values.back().y),
           "start", "label strong");
  return svg.str();
}

}  // namespace shardwise::inline v0_1::monitor
