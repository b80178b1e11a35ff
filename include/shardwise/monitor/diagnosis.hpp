#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "../core/format.hpp"
#include "summary.hpp"
#include "units.hpp"

namespace shardwise::inline v0_1::monitor {

namespace detail {

// From where on something is worth a sentence, as a part of the step.
inline constexpr double straggling = 0.15;
inline constexpr double communicating = 0.15;
inline constexpr double optimizing = 0.3;
// A collective whose buffer is smaller is small on any link; what takes it four times as long as
// this rate does is a cost that it would have without any bytes.
inline constexpr double small_payload = 64 << 10;
inline constexpr double modest_rate = 1e9;

[[nodiscard]] inline std::string list_of(const std::vector<std::string>& words) {
  std::string text;
  for (std::size_t i = 0; i < words.size(); ++i) {
    if (i > 0) text += i + 1 == words.size() ? " or " : ", ";
    text += words[i];
  }
  return text;
}

[[nodiscard]] inline std::uint64_t power_of_two_from(double bytes) {
  std::uint64_t power = 1024;
  while (static_cast<double>(power) < bytes) power *= 2;
  return power;
}

// Ranks that share processors wait for each other to be run at all.
[[nodiscard]] inline std::string crowd_note(const Summary& s) {
  if (s.backend != "thread" || s.processors == 0 || s.world <= s.processors) return "";
  return format(" ({} ranks share {} processors, and wait for each other's turn, too)", s.world,
                s.processors);
}

[[nodiscard]] inline std::string straggler_sentence(const Summary& s) {
  const Straggler& slow = s.straggler;
  const std::string where =
      slow.where.empty() ? std::string("outside of leases and updates (data, sleep, host code)")
                         : format("in the {} of '{}'", slow.phase, slow.where);
  return format(
      "limited by a straggler: rank {} works {} of each step where the other ranks work {} "
      "(medians), and they wait for it {} of the step; most of the difference is {}: look at what "
      "that rank runs on, or give it less of the batch.",
      slow.rank, time_text(slow.work_ms), time_text(slow.others_ms),
      percent_text(slow.surplus_ms(), s.step_ms), where);
}

// What one of them costs the step, or its stream.
[[nodiscard]] inline double cost_of_collective(const Summary& s) {
  return s.collectives > 0 ? std::max(s.collective_ms, s.exposed_ms / s.collectives) : 0;
}

[[nodiscard]] inline bool has_small_collectives(const Summary& s) {
  const double bytes_ms = s.payload_bytes / modest_rate * 1000;
  return s.collectives >= 8 && s.payload_bytes < small_payload &&
         cost_of_collective(s) > 4 * bytes_ms &&
         static_cast<double>(s.bucket_bytes) < s.parameter_bytes / 8;
}

[[nodiscard]] inline std::string small_collectives_sentence(const Summary& s, const Row& worst) {
  const std::uint64_t bucket =
      power_of_two_from(std::max(s.parameter_bytes / 8, 4 * s.payload_bytes));
  const double fewer = s.collectives * s.payload_bytes / static_cast<double>(bucket);
  return format(
      "bound by the latency of small collectives: {} of the step ({} of {}) waits for {:.0f} "
      "collectives of {} on average, each of which takes {} whatever it carries ('{}' is waited "
      "for longest); bucket_bytes is {}: set it to {} for about {:.0f} of them.",
      percent_text(s.exposed_ms, s.step_ms), time_text(s.exposed_ms), time_text(s.step_ms),
      s.collectives, bytes_text(s.payload_bytes), time_text(cost_of_collective(s)), worst.name,
      s.bucket_bytes == 0 ? "0" : bytes_text(static_cast<double>(s.bucket_bytes)),
      bytes_text(static_cast<double>(bucket)), std::max(1.0, std::ceil(fewer)));
}

[[nodiscard]] inline std::string communication_sentence(const Summary& s, const Row& worst) {
  double of_kind = 0;
  for (const Row& row : s.rows) {
    if (row.activity == worst.activity) of_kind += row.exposed_ms;
  }
  const bool gathers = worst.activity == Activity::all_gather;
  const bool scalars = worst.activity == Activity::scalar;
  std::vector<std::string> advice;
  if (!s.overlap) advice.emplace_back("overlap = true");
  advice.emplace_back("a larger batch");
  if (gathers && s.prefetch < 2) {
    advice.push_back(format("prefetch {} (of gathers that run beside compute)", s.prefetch + 1));
  }
  if (gathers && s.strategy == "zero3") {
    advice.emplace_back("zero2 (it gathers once a step)");
  }
  if (!gathers && !scalars) {
    if (worst.calls > 1) advice.emplace_back("one reduction a step (accumulation = hold)");
    advice.emplace_back("bf16 on the wire");
  }
  if (scalars) {
    return format(
        "communication-bound: {} of the step ({} of {}) waits for communication{}, most of it ({}) "
        "in '{}', where the ranks meet: what came before it is uneven between them or still on "
        "its way; {} would make it a smaller part.",
        percent_text(s.exposed_ms, s.step_ms), time_text(s.exposed_ms), time_text(s.step_ms),
        crowd_note(s), time_text(of_kind), worst.name, list_of(advice));
  }
  return format(
      "communication-bound: {} of the step ({} of {}) waits for communication{}, {} of it for {}, "
      "most for '{}' ({} a step for {}, at {}); {} would hide more of it.",
      percent_text(s.exposed_ms, s.step_ms), time_text(s.exposed_ms), time_text(s.step_ms),
      crowd_note(s), time_text(of_kind),
      gathers ? "gathers of parameters" : "reductions of gradients", worst.name,
      time_text(worst.exposed_ms), bytes_text(worst.wire_bytes), bandwidth_text(worst.bandwidth()),
      list_of(advice));
}

[[nodiscard]] inline std::string optimizer_sentence(const Summary& s) {
  const Row* worst = nullptr;
  for (const Row& row : s.rows) {
    if (row.activity != Activity::update) continue;
    if (worst == nullptr || row.run_ms > worst->run_ms) worst = &row;
  }
  return format(
      "optimizer-bound: {} of the step ({} of {}) updates parameters, {} of it '{}'; {}more tokens "
      "in each step (a larger batch, more micro-batches) spread it.",
      percent_text(s.optimizer_ms, s.step_ms), time_text(s.optimizer_ms), time_text(s.step_ms),
      time_text(worst == nullptr ? 0 : worst->run_ms), worst == nullptr ? "" : worst->name,
      s.strategy == "ddp" && s.world > 1 ? "zero1 would share it between the ranks, and " : "");
}

}  // namespace detail

/// One sentence that says what limits the run, with numbers, and what to do about it. A function of
/// the summary alone.
[[nodiscard]] inline std::string diagnosis(const Summary& s) {
  using shardwise::detail::format;
  if (s.timed_steps == 0 || s.step_ms <= 0) {
    return "no step was marked, so nothing can be said of times: call Context::end_step at the end "
           "of each.";
  }
  if (s.world > 1 && s.straggler.surplus_ms() > detail::straggling * s.step_ms) {
    return detail::straggler_sentence(s);
  }
  const Row* worst = nullptr;
  for (const Row& row : s.rows) {
    if (row.exposed_ms > 0 && (worst == nullptr || row.exposed_ms > worst->exposed_ms)) {
      worst = &row;
    }
  }
  if (worst != nullptr && s.exposed_ms > detail::communicating * s.step_ms) {
    return detail::has_small_collectives(s) ? detail::small_collectives_sentence(s, *worst)
                                            : detail::communication_sentence(s, *worst);
  }
  if (s.optimizer_ms > detail::optimizing * s.step_ms) return detail::optimizer_sentence(s);
  return format(
      "compute-bound: {} of the step ({} of {}) computes, {} waits for communication and {} "
      "updates parameters; {}.",
      percent_text(s.compute_ms, s.step_ms), time_text(s.compute_ms), time_text(s.step_ms),
      percent_text(s.exposed_ms, s.step_ms), percent_text(s.optimizer_ms, s.step_ms),
      s.world > 1 ? "communication is hidden well: more ranks, or a faster model, shorten it"
                  : "more ranks, or a faster model, shorten it");
}

}  // namespace shardwise::inline v0_1::monitor
