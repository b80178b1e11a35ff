#pragma once

#include <array>
#include <cstdint>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "../core/error.hpp"
#include "records.hpp"

/// @file
/// The records as JSON, as they travel between ranks.
namespace shardwise::inline v0_1::monitor {

/// Members in the order in which they are written.
using Json = nlohmann::ordered_json;

template <class J>
void to_json(J& json, const Counter& c) {
  json = {c.calls, c.wire_bytes, c.run_ns, c.exposed_ns};
}
template <class J>
void from_json(const J& json, Counter& c) {
  c = {json.at(0), json.at(1), json.at(2), json.at(3)};
}

template <class J>
void to_json(J& json, const Subject& s) {
  json = {
      {"name", s.name},         {"is_parameter", s.is_parameter}, {"bytes", s.bytes},
      {"counters", s.counters}, {"forward_ns", s.forward_ns},     {"backward_ns", s.backward_ns}};
}
template <class J>
void from_json(const J& json, Subject& s) {
  json.at("name").get_to(s.name);
  json.at("is_parameter").get_to(s.is_parameter);
  json.at("bytes").get_to(s.bytes);
  json.at("counters").get_to(s.counters);
  json.at("forward_ns").get_to(s.forward_ns);
  json.at("backward_ns").get_to(s.backward_ns);
}

// A loss that is no number is null in JSON's text; on its way it is its bits.
template <class J>
void to_json(J& json, const Step& s) {
  json = {s.number,    std::bit_cast<std::uint64_t>(s.loss),
          s.tokens,    s.begin_ns,
          s.end_ns,    s.exposed_ns,
          s.update_ns, s.peak_bytes};
}
template <class J>
void from_json(const J& json, Step& s) {
  s.number = json.at(0);
  s.loss = std::bit_cast<double>(json.at(1).template get<std::uint64_t>());
  s.tokens = json.at(2);
  s.begin_ns = json.at(3);
  s.end_ns = json.at(4);
  s.exposed_ns = json.at(5);
  s.update_ns = json.at(6);
  s.peak_bytes = json.at(7);
}

template <class J>
void to_json(J& json, const Span& s) {
  json = {s.begin_ns, s.end_ns, s.sequence, s.bytes, s.subject, s.activity, s.kind};
}
template <class J>
void from_json(const J& json, Span& s) {
  s = {json.at(0), json.at(1), json.at(2), json.at(3), json.at(4), json.at(5), json.at(6)};
}

template <class J>
void to_json(J& json, const LedgerPoint& p) {
  const Bytes& b = p.held;
  json = {p.time_ns, b.parameters, b.gradients, b.optimizer_state, b.slots, b.crumbs};
}
template <class J>
void from_json(const J& json, LedgerPoint& p) {
  p = {json.at(0), {json.at(1), json.at(2), json.at(3), json.at(4), json.at(5)}};
}

template <class J>
void to_json(J& json, const Rank& r) {
  json = {{"rank", r.rank},
          {"world", r.world},
          {"strategy", r.strategy},
          {"backend", r.backend},
          {"processors", r.processors},
          {"asynchronous", r.asynchronous},
          {"overlap", r.overlap},
          {"prefetch", r.prefetch},
          {"bucket_bytes", r.bucket_bytes},
          {"steps", r.steps},
          {"timed_steps", r.timed_steps},
          {"collectives", r.collectives},
          {"payload", r.payload},
          {"least_run_ns", r.least_run_ns},
          {"sum", r.sum},
          {"subjects", r.subjects},
          {"history", r.history},
          {"ledger", r.ledger},
          {"peak",
           {{"held", LedgerPoint{0, r.peak.held}},
            {"kind", r.peak.kind},
            {"allocation", r.peak.allocation},
            {"subject", r.peak.subject},
            {"step", r.peak.step}}},
          {"host", r.host},
          {"communication", r.communication},
          {"clock_ns", r.clock_ns}};
}
template <class J>
void from_json(const J& json, Rank& r) {
  json.at("rank").get_to(r.rank);
  json.at("world").get_to(r.world);
  json.at("strategy").get_to(r.strategy);
  json.at("backend").get_to(r.backend);
  json.at("processors").get_to(r.processors);
  json.at("asynchronous").get_to(r.asynchronous);
  json.at("overlap").get_to(r.overlap);
  json.at("prefetch").get_to(r.prefetch);
  json.at("bucket_bytes").get_to(r.bucket_bytes);
  json.at("steps").get_to(r.steps);
  json.at("timed_steps").get_to(r.timed_steps);
  json.at("collectives").get_to(r.collectives);
  json.at("payload").get_to(r.payload);
  json.at("least_run_ns").get_to(r.least_run_ns);
  json.at("sum").get_to(r.sum);
  json.at("subjects").get_to(r.subjects);
  json.at("history").get_to(r.history);
  json.at("ledger").get_to(r.ledger);
  const J& peak = json.at("peak");
  r.peak.held = peak.at("held").template get<LedgerPoint>().held;
  peak.at("kind").get_to(r.peak.kind);
  peak.at("allocation").get_to(r.peak.allocation);
  peak.at("subject").get_to(r.peak.subject);
  peak.at("step").get_to(r.peak.step);
  json.at("host").get_to(r.host);
  json.at("communication").get_to(r.communication);
  json.at("clock_ns").get_to(r.clock_ns);
}

/// Writes a file; BackendError where it cannot be.
inline void write_file(const std::string& path, std::string_view text) {
  std::ofstream file(path, std::ios::binary);
  file << text << std::flush;
  if (!file) raise<BackendError>("cannot write {} ({} bytes)", path, text.size());
}

}  // namespace shardwise::inline v0_1::monitor
