#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <unordered_set>
#include <vector>

#include "collect.hpp"
#include "json.hpp"
#include "records.hpp"
#include "units.hpp"

namespace shardwise::inline v0_1::monitor {

/// Outer spans come before those within; nothing overlaps but what is nested.
inline void sort_spans(std::vector<Span>& spans) {
  std::stable_sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) {
    if (a.begin_ns != b.begin_ns) return a.begin_ns < b.begin_ns;
    if (a.end_ns != b.end_ns) return a.end_ns > b.end_ns;
    return a.kind < b.kind;
  });
}

/// What a span is called in a trace: "forward h.3", "all_gather h.3", "wait for all_gather h.3".
[[nodiscard]] inline std::string name_of_span(const Rank& rank, const Span& span) {
  const std::string subject =
      span.subject < rank.subjects.size() ? rank.subjects[span.subject].name : std::string();
  const std::string activity(name_of(span.activity));
  switch (span.kind) {
    case SpanKind::step:
      return "step " + std::to_string(span.sequence);
    case SpanKind::micro_batch:
      return "micro-batch " + std::to_string(span.sequence);
    case SpanKind::forward:
      return "forward " + subject;
    case SpanKind::backward:
      return "backward " + subject;
    case SpanKind::issue:
      return "issue " + activity + ' ' + subject;
    case SpanKind::wait:
      return "wait for " + activity + ' ' + subject;
    case SpanKind::scalar:
      return subject;
    case SpanKind::update:
      return "update " + subject;
    case SpanKind::run:
      break;
  }
  return activity + ' ' + subject;
}

/// A trace of all ranks in the format of Chrome's tracing, which Perfetto (ui.perfetto.dev) opens:
/// a process for each rank, with a thread for the host's computation and one for the communication
/// stream, and an arrow from where a collective was issued to where it ran. (Trace Event Format,
/// Google, 2016: phases X, s, f and M; times in microseconds.)
///
/// A span that began before the oldest step that is still there is left out.
[[nodiscard]] inline std::string chrome_trace(std::span<const Rank> ranks) {
  constexpr int host_thread = 1;
  constexpr int communication_thread = 2;
  constexpr int issuing_thread = 3;  // of a host that runs ahead of its device
  std::int64_t origin = std::numeric_limits<std::int64_t>::max();
  for (const Rank& rank : ranks) {
    for (const Span& span : rank.host) {
      if (span.kind != SpanKind::step) continue;
      origin = std::min(origin, span.begin_ns + clock_offset(ranks[0], rank));
    }
  }

  std::string text = "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[";
  bool first = true;
  const auto add = [&](const Json& event) {
    text += first ? "\n" : ",\n";
    first = false;
    text += event.dump(-1, ' ', false, Json::error_handler_t::replace);
  };
  const auto add_name = [&](const char* what, int pid, int tid, const std::string& name) {
    add({{"ph", "M"}, {"name", what}, {"pid", pid}, {"tid", tid}, {"args", {{"name", name}}}});
  };
  for (const Rank& rank : ranks) {
    add_name("process_name", rank.rank, 0, "rank " + std::to_string(rank.rank));
    add({{"ph", "M"},
         {"name", "process_sort_index"},
         {"pid", rank.rank},
         {"tid", 0},
         {"args", {{"sort_index", rank.rank}}}});
    add_name("thread_name", rank.rank, host_thread, "compute");
    add_name("thread_name", rank.rank, communication_thread, "communication");
    if (rank.asynchronous) add_name("thread_name", rank.rank, issuing_thread, "host");

    const std::int64_t offset = clock_offset(ranks[0], rank) - origin;
    const auto microseconds = [&](std::int64_t ns) {
      return static_cast<double>(ns + offset) / 1000;
    };
    std::unordered_set<std::uint64_t> issued;
    std::unordered_set<std::uint64_t> run;
    for (const Span& span : rank.host) {
      if (span.kind == SpanKind::issue && span.begin_ns + offset >= 0) issued.insert(span.sequence);
    }
    for (const Span& span : rank.communication) {
      if (span.begin_ns + offset >= 0) run.insert(span.sequence);
    }
    const auto add_flow = [&](const char* phase, int tid, const Span& span) {
      // Ranks' collectives of one number are one collective, but arrows are within a rank.
      const std::uint64_t id = span.sequence * ranks.size() + static_cast<std::uint64_t>(rank.rank);
      Json event = {{"ph", phase},
                    {"cat", "collective"},
                    {"name", "issued"},
                    {"id", id},
                    {"pid", rank.rank},
                    {"tid", tid},
                    {"ts", microseconds(span.begin_ns)}};
      if (*phase == 'f') event["bp"] = "e";
      add(event);
    };
    for (const bool host : {true, false}) {
      std::vector<Span> spans = host ? rank.host : rank.communication;
      sort_spans(spans);
      for (const Span& span : spans) {
        if (span.begin_ns + offset < 0) continue;
        const bool issues = span.kind == SpanKind::issue || span.kind == SpanKind::scalar;
        const int tid = !host                         ? communication_thread
                        : rank.asynchronous && issues ? issuing_thread
                                                      : host_thread;
        Json event = {{"ph", "X"},
                      {"cat", host ? "compute" : "communication"},
                      {"name", name_of_span(rank, span)},
                      {"pid", rank.rank},
                      {"tid", tid},
                      {"ts", microseconds(span.begin_ns)},
                      {"dur", static_cast<double>(span.end_ns - span.begin_ns) / 1000}};
        if (span.kind == SpanKind::issue) {
          event["args"] = {{"sequence", span.sequence}, {"bytes", span.bytes}};
        } else if (span.kind == SpanKind::run) {
          event["args"] = {{"sequence", span.sequence}};
        }
        add(event);
        const bool paired = issued.contains(span.sequence) && run.contains(span.sequence);
        if (span.kind == SpanKind::issue && paired) add_flow("s", tid, span);
        if (span.kind == SpanKind::run && paired) add_flow("f", tid, span);
      }
    }
  }
  text += "\n]}\n";
  return text;
}

}  // namespace shardwise::inline v0_1::monitor
