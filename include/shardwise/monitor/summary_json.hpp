#pragma once

#include <cmath>
#include <string>
#include <string_view>
#include <utility>

#include "diagnosis.hpp"
#include "json.hpp"
#include "summary.hpp"

namespace shardwise::inline v0_1::monitor {

namespace detail {

[[nodiscard]] inline Json bytes_json(Bytes held) {
  Json json = Json::object();
  constexpr std::string_view keys[] = {"parameters", "gradients", "optimizer_state", "slots",
                                       "crumbs"};
  for (const StateKind kind : state_kinds) json[keys[static_cast<std::size_t>(kind)]] = held[kind];
  json["total"] = held.total();
  return json;
}

}  // namespace detail

/// The summary as JSON, indented: the diagnosis, means of a step, each rank, memory and each row.
[[nodiscard]] inline std::string summary_json(const Summary& s) {
  Json json = {{"diagnosis", diagnosis(s)},
               {"strategy", s.strategy},
               {"world", s.world},
               {"backend", s.backend},
               {"processors", s.processors},
               {"overlap", s.overlap},
               {"prefetch", s.prefetch},
               {"bucket_bytes", s.bucket_bytes},
               {"steps", s.steps},
               {"timed_steps", s.timed_steps},
               {"loss", s.loss},  // null where it is no number
               {"tokens_per_s", s.tokens_per_s},
               {"step_ms", s.step_ms},
               {"compute_ms", s.compute_ms},
               {"exposed_communication_ms", s.exposed_ms},
               {"optimizer_ms", s.optimizer_ms},
               {"collectives_per_step", s.collectives},
               {"payload_bytes", s.payload_bytes},
               {"collective_ms", s.collective_ms},
               {"slowest", s.slowest},
               {"fastest", s.fastest}};
  if (s.straggler.rank >= 0) {
    json["skew"] = {{"rank", s.straggler.rank},
                    {"work_ms", s.straggler.work_ms},
                    {"others_ms", s.straggler.others_ms},
                    {"where", s.straggler.where},
                    {"phase", s.straggler.phase}};
  }
  json["peak"] = {{"rank", s.peak_rank},          {"bytes", detail::bytes_json(s.peak.held)},
                  {"kind", name_of(s.peak.kind)}, {"allocation", s.peak.allocation},
                  {"parameter", s.peak_cause},    {"step", s.peak.step}};
  Json& ranks = json["ranks"] = Json::array();
  for (const RankSummary& rank : s.ranks) {
    ranks.push_back({{"rank", rank.rank},
                     {"step_ms", rank.step_ms},
                     {"compute_ms", rank.compute_ms},
                     {"exposed_communication_ms", rank.exposed_ms},
                     {"optimizer_ms", rank.optimizer_ms},
                     {"peak_bytes", detail::bytes_json(rank.peak)}});
  }
  Json& rows = json["rows"] = Json::array();
  for (const Row& row : s.rows) {
    rows.push_back({{"name", row.name},
                    {"operation", name_of(row.activity)},
                    {"wire_bytes_per_step", row.wire_bytes},
                    {"calls_per_step", row.calls},
                    {"run_ms_per_step", row.run_ms},
                    {"exposed_ms_per_step", row.exposed_ms},
                    {"bandwidth_bytes_per_s", row.bandwidth()}});
  }
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + '\n';
}

}  // namespace shardwise::inline v0_1::monitor
