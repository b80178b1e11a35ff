#pragma once

#include <algorithm>
#include <cstddef>
#include <string>

#include "diagnosis.hpp"
#include "summary.hpp"
#include "units.hpp"

namespace shardwise::inline v0_1::monitor {

/// What made the memory's peak: "most of it slots (1.0 MiB, 55 %); the last to add to it were slots
/// (210.3 KiB) for 'h.3', before the end of the first step".
[[nodiscard]] inline std::string cause_of_peak(const Summary& s) {
  Bytes held = s.peak.held;
  StateKind most = StateKind::parameters;
  for (const StateKind kind : state_kinds) {
    if (held[kind] > held[most]) most = kind;
  }
  const auto bytes = static_cast<double>(held[most]);
  return shardwise::detail::format(
      "most of it {} ({}, {}); the last to add to it were {} ({}) for {}, {}", name_of(most),
      bytes_text(bytes), percent_text(bytes, static_cast<double>(held.total())),
      name_of(s.peak.kind), bytes_text(static_cast<double>(s.peak.allocation)),
      s.peak_cause.empty() ? std::string("the context") : "'" + s.peak_cause + "'",
      s.peak.step == 0 ? std::string("before the end of the first step")
                       : shardwise::detail::format("in step {}", s.peak.step));
}

/// The summary for a terminal: the diagnosis, each rank, memory, and the rows that were waited for
/// longest, at most `rows` of them.
[[nodiscard]] inline std::string table(const Summary& s, std::size_t rows = 24) {
  using shardwise::detail::format;
  std::string text = diagnosis(s) + "\n\n";
  text += format("{} on {} rank(s) ({}), {} steps of {}", s.strategy, s.world, s.backend, s.steps,
                 time_text(s.step_ms));
  if (s.tokens_per_s > 0) text += format(", {:.0f} tokens/s", s.tokens_per_s);
  text += "\n\nrank      step   compute   exposed  optimizer  memory peak\n";
  for (const RankSummary& rank : s.ranks) {
    text += format("{:>4}{:>10}{:>10}{:>10}{:>11}{:>13}{}\n", rank.rank, time_text(rank.step_ms),
                   time_text(rank.compute_ms), time_text(rank.exposed_ms),
                   time_text(rank.optimizer_ms), bytes_text(static_cast<double>(rank.peak.total())),
                   s.world > 1 && rank.rank == s.slowest   ? "  slowest"
                   : s.world > 1 && rank.rank == s.fastest ? "  fastest"
                                                           : "");
  }
  if (s.world > 1 && s.straggler.others_ms > 0) {
    text += format("skew: rank {} works {:.0f} % longer than the median of the others\n", s.slowest,
                   100 * s.straggler.surplus_ms() / s.straggler.others_ms);
  }
  text += format("\nmemory of rank {} at its peak of {}:", s.peak_rank,
                 bytes_text(static_cast<double>(s.peak.held.total())));
  Bytes held = s.peak.held;
  for (const StateKind kind : state_kinds) {
    if (held[kind] == 0) continue;
    text += format(" {} {},", name_of(kind), bytes_text(static_cast<double>(held[kind])));
  }
  text.pop_back();
  text += format("\n  {}\n", cause_of_peak(s));

  std::size_t width = 9;
  for (const Row& row : s.rows) width = std::max(width, row.name.size());
  width = std::min<std::size_t>(width, 40);
  const auto padded = [&](const std::string& name) {
    const std::string cut = name.size() > width ? name.substr(0, width - 1) + "~" : name;
    return cut + std::string(width - cut.size(), ' ');
  };
  text += format("\n{}  operation       bytes/step  calls/step      time   exposed    bandwidth\n",
                 padded("parameter"));
  std::size_t shown = 0;
  for (const Row& row : s.rows) {
    if (shown++ == rows) {
      text += format("... and {} more rows\n", s.rows.size() - rows);
      break;
    }
    text +=
        format("{}  {:<14}{:>12}{:>12.1f}{:>10}{:>10}{:>13}\n", padded(row.name),
               name_of(row.activity), bytes_text(row.wire_bytes), row.calls, time_text(row.run_ms),
               time_text(row.exposed_ms), bandwidth_text(row.bandwidth()));
  }
  return text;
}

}  // namespace shardwise::inline v0_1::monitor
