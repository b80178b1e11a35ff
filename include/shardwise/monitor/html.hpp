#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "../core/format.hpp"
#include "charts.hpp"
#include "diagnosis.hpp"
#include "records.hpp"
#include "summary.hpp"
#include "table.hpp"
#include "units.hpp"

namespace shardwise::inline v0_1::monitor {

namespace detail {

// Colours are told apart with the common kinds of colour blindness, too, and beside each other in
// this order; every part has a tip and a value in words.
inline constexpr std::string_view style = R"css(
:root { color-scheme: light dark;
  --page: #f6f6f4; --card: #ffffff; --ink: #1d1d1b; --muted: #66665f; --rule: #e3e3de;
  --lane: #f0f0ec; --blue: #2f6fd0; --deep: #1f478f; --red: #d6462f; --teal: #1a9079;
  --amber: #dc9a12; --violet: #8257c9; --gray: #96968d; --say: #eef3fb; --edge: #2f6fd0; }
@media (prefers-color-scheme: dark) { :root {
  --page: #161615; --card: #20201e; --ink: #ececE6; --muted: #a3a39a; --rule: #353531;
  --lane: #2a2a27; --blue: #5b94ec; --deep: #9dbdf4; --red: #ee6b55; --teal: #3bb79d;
  --amber: #e3ac3c; --violet: #a988e6; --gray: #83837b; --say: #1d2836; --edge: #5b94ec; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 28px 24px 48px; }
h1 { font-size: 15px; font-weight: 600; color: var(--muted); margin: 0 0 10px; }
h2 { font-size: 17px; margin: 0 0 4px; }
.say { background: var(--say); border-left: 4px solid var(--edge); border-radius: 6px;
  padding: 14px 18px; margin: 0 0 18px; font-size: 18px; line-height: 1.45; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; }
.tile, section { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; }
.tile { padding: 12px 16px; }
.tile b { display: block; font-size: 22px; font-weight: 650; font-variant-numeric: tabular-nums; }
.tile span, .muted, .note { color: var(--muted); font-size: 13px; }
section { padding: 18px 20px; margin-top: 16px; }
.note { margin: 0 0 10px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 6px 0 10px; font-size: 13px;
  color: var(--muted); }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 3px;
  margin-right: 6px; vertical-align: -1px; }
svg { display: block; width: 100%; height: auto; }
svg text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: var(--muted);
  font-variant-numeric: tabular-nums; }
svg text.strong { fill: var(--ink); font-weight: 600; }
.grid { stroke: var(--rule); stroke-width: 1; }
.lane { fill: var(--lane); }
.peak { stroke: var(--ink); stroke-width: 1; stroke-dasharray: 3 3; }
.curve { fill: none; stroke: var(--blue); stroke-width: 2; stroke-linejoin: round; }
.dot { fill: var(--blue); stroke: var(--card); stroke-width: 2; }
.compute, .forward, .k0 { fill: var(--blue); background: var(--blue); }
.backward { fill: var(--deep); background: var(--deep); }
.exposed { fill: var(--red); background: var(--red); }
.optimizer, .k2 { fill: var(--teal); background: var(--teal); }
.gather, .k1 { fill: var(--amber); background: var(--amber); }
.reduce, .k3 { fill: var(--violet); background: var(--violet); }
.k4 { fill: var(--gray); background: var(--gray); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px;
  font-variant-numeric: tabular-nums; }
th { text-align: right; font-weight: 600; color: var(--muted); padding: 6px 10px;
  border-bottom: 1px solid var(--rule); white-space: nowrap; }
td { text-align: right; padding: 5px 10px; border-bottom: 1px solid var(--rule);
  white-space: nowrap; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; }
tbody tr:hover { background: var(--lane); }
td .meter { display: inline-block; height: 8px; border-radius: 2px; background: var(--red);
  margin-left: 8px; vertical-align: 1px; }
td .space { display: inline-block; margin-left: 0; }
details > summary { cursor: pointer; color: var(--muted); font-size: 13px; padding: 8px 0 0; }
)css";

[[nodiscard]] inline std::string tile(std::string_view value, std::string_view label) {
  return format("<div class=\"tile\"><b>{}</b><span>{}</span></div>\n", escaped(value),
                escaped(label));
}

[[nodiscard]] inline std::string section(std::string_view title, std::string_view note,
                                         std::string_view body) {
  return format("<section>\n<h2>{}</h2>\n<p class=\"note\">{}</p>\n{}</section>\n", escaped(title),
                escaped(note), body);
}

[[nodiscard]] inline std::string rows_table(std::span<const Row> rows, double longest_ms) {
  std::string html =
      "<div class=\"scroll\"><table>\n<thead><tr><th>parameter</th><th>operation</th>"
      "<th>bytes / step</th><th>calls / step</th><th>time / step</th><th>bandwidth</th>"
      "<th>exposed / step</th><th></th></tr></thead>\n<tbody>\n";
  for (const Row& row : rows) {
    html += format("<tr><td>{}</td><td>{}</td><td>{}</td><td>{:.1f}</td><td>{}</td><td>{}</td>",
                   escaped(row.name), name_of(row.activity),
                   row.wire_bytes > 0 ? bytes_text(row.wire_bytes) : "-", row.calls,
                   row.run_ms > 0 ? time_text(row.run_ms) : "-", bandwidth_text(row.bandwidth()));
    const double width = longest_ms > 0 ? 90 * row.exposed_ms / longest_ms : 0;
    html += format(
        "<td>{}</td><td style=\"text-align:left;width:120px\"><span class=\"meter\" "
        "style=\"width:{:.0f}px\"></span></td></tr>\n",
        row.exposed_ms > 0 ? time_text(row.exposed_ms) : "-", width);
  }
  return html + "</tbody></table></div>\n";
}

[[nodiscard]] inline std::string parameters_section(const Summary& s) {
  constexpr std::size_t shown = 25;
  const std::span<const Row> rows = s.rows;
  const double longest = rows.empty() ? 0 : rows[0].exposed_ms;
  std::string body = rows_table(rows.first(std::min(shown, rows.size())), longest);
  if (rows.size() > shown) {
    body += format("<details><summary>{} more rows</summary>\n{}</details>\n", rows.size() - shown,
                   rows_table(rows.subspan(shown), longest));
  }
  return body;
}

}  // namespace detail

/// A page that stands for itself: no scripts, nothing from a network; light or dark as the reader's
/// system is. The diagnosis comes first, then numbers, step time and memory of each rank, one
/// step's timeline, the loss and a table of parameters.
[[nodiscard]] inline std::string html_report(const Summary& s, std::span<const Rank> ranks,
                                             std::string_view title = "training run") {
  using detail::format;
  using detail::section;
  using detail::tile;
  std::string html = format(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<title>shardwise: {}</title>\n<style>{}</style>\n</head>\n<body>\n<main>\n",
      escaped(title), detail::style);
  html += format("<h1>shardwise &middot; {} &middot; {} on {} rank{} ({}) &middot; {} steps</h1>\n",
                 escaped(title), escaped(s.strategy), s.world, s.world == 1 ? "" : "s",
                 escaped(s.backend), s.steps);
  html += format("<p class=\"say\">{}</p>\n", escaped(diagnosis(s)));
  html += "<div class=\"tiles\">\n" + tile(time_text(s.step_ms), "step, mean");
  if (s.tokens_per_s > 0) html += tile(format("{:.0f}", s.tokens_per_s), "tokens per second");
  html += tile(percent_text(s.exposed_ms, s.step_ms), "of the step waits for communication");
  html += tile(bytes_text(static_cast<double>(s.peak.held.total())),
               format("memory peak, rank {}", s.peak_rank));
  if (s.world > 1 && s.straggler.others_ms > 0) {
    html += tile(format("{:+.0f} %", 100 * s.straggler.surplus_ms() / s.straggler.others_ms),
                 format("more work than the median: rank {}, the slowest", s.slowest));
  }
  html += "</div>\n";
  if (ranks.empty()) return html + "</main>\n</body>\n</html>\n";

  html += section("Step time",
                  format("Each rank in the mean of {} steps. Exposed: the host stood still for "
                         "communication; what ran beside computation is not in it.",
                         s.timed_steps),
                  split_chart(s));
  html += section("One step",
                  "The last one that was kept whole; above the host's thread, below the stream of "
                  "collectives. Bars tell their names; trace.json has all of it for "
                  "ui.perfetto.dev.",
                  timeline_chart(ranks));
  html += section("Memory of each rank", "By kind, at the moment at which most was held.",
                  memory_chart(s));
  const auto& peak_rank = ranks[static_cast<std::size_t>(
      std::clamp<int>(s.peak_rank, 0, static_cast<int>(ranks.size()) - 1))];
  html += section(format("Memory over time, rank {}", s.peak_rank),
                  format("At the peak: {}.", cause_of_peak(s)), ledger_chart(peak_rank));
  html += section("Loss", "Of each step, as the trainer told it.", loss_chart(ranks[0]));
  html +=
      section("Parameters and operations",
              "In the mean over steps and ranks; what was waited for longest comes first. Bytes "
              "are what a rank sends by the ring formula; time is on the stream of collectives, "
              "with the other ranks' arrival.",
              detail::parameters_section(s));
  return html + "</main>\n</body>\n</html>\n";
}

}  // namespace shardwise::inline v0_1::monitor
