#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "records.hpp"

namespace shardwise::inline v0_1::monitor {

/// One rank in the mean of its timed steps.
struct RankSummary {
  int rank = 0;
  double step_ms = 0;
  double compute_ms = 0;
  double exposed_ms = 0;  ///< the host stood still for communication
  double optimizer_ms = 0;
  Bytes peak;  ///< by kind, when most was held

  /// What it does itself, whoever else is slow.
  [[nodiscard]] double work_ms() const noexcept { return compute_ms + optimizer_ms; }
};

/// One activity of one subject in a step, in the mean over steps and ranks.
struct Row {
  std::string name;
  bool is_parameter = true;
  Activity activity = Activity::all_gather;
  double wire_bytes = 0;
  double calls = 0;
  double run_ms = 0;      ///< on its stream
  double exposed_ms = 0;  ///< the host stood still for it

  /// Bytes a second that a rank sent while it ran; 0 where nothing travelled.
  [[nodiscard]] double bandwidth() const noexcept {
    return run_ms > 0 ? wire_bytes / (run_ms / 1000) : 0;
  }
};

/// Where a rank is slower than the others, step by step: a step that took long once is no matter.
struct Straggler {
  int rank = -1;         ///< the one that works longest in a step; -1: world of one
  double work_ms = 0;    ///< its work in a step, the median over steps
  double others_ms = 0;  ///< the median of the others'
  std::string where;     ///< the parameter with most of the surplus; empty: between leases
  std::string phase;     ///< "forward", "backward" or "optimizer"; empty: between leases

  [[nodiscard]] double surplus_ms() const noexcept { return work_ms - others_ms; }
};

/// A run in numbers, all ranks together: what tables, reports and diagnosis() show.
struct Summary {
  int world = 1;
  std::string strategy;
  std::string backend;
  int processors = 0;  ///< of rank 0's machine; 0: unknown
  bool overlap = true;
  int prefetch = 0;
  std::uint64_t bucket_bytes = 0;

  std::uint64_t steps = 0;
  std::uint64_t timed_steps = 0;
  double step_ms = 0;  ///< these four in the mean over timed steps and ranks
  double compute_ms = 0;
  double exposed_ms = 0;
  double optimizer_ms = 0;
  double tokens_per_s = 0;
  double loss = 0;  ///< of the last step

  double collectives = 0;      ///< of parameters and gradients in a step
  double payload_bytes = 0;    ///< of the whole buffer of one of these, in the mean
  double collective_ms = 0;    ///< how long one runs, in the mean
  double least_ms = 0;         ///< and the shortest one
  double parameter_bytes = 0;  ///< of all parameters in the lease type

  std::vector<RankSummary> ranks;
  int slowest = 0;  ///< by its work in a step, in the median
  int fastest = 0;
  Straggler straggler;
  std::vector<Row> rows;  ///< what was waited for longest comes first

  int peak_rank = 0;  ///< that held most
  Peak peak;
  std::string peak_cause;  ///< for which parameter; empty: for the Context itself
};

namespace detail {

[[nodiscard]] inline double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const std::size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

[[nodiscard]] inline double ms_per_step(std::int64_t ns, const Rank& rank) noexcept {
  return rank.timed_steps == 0
             ? 0
             : static_cast<double>(ns) / 1e6 / static_cast<double>(rank.timed_steps);
}

[[nodiscard]] inline std::string name_of_subject(const Rank& rank, SubjectId subject) {
  return subject < rank.subjects.size() ? rank.subjects[subject].name : std::string();
}

// What a rank works in the median of its timed steps.
[[nodiscard]] inline double median_work(const Rank& rank) {
  const std::uint64_t warm_up = rank.steps - rank.timed_steps;
  std::vector<double> work;
  for (const Step& step : rank.history) {
    if (step.number < warm_up) continue;
    work.push_back(static_cast<double>(step.compute_ns() + step.update_ns) / 1e6);
  }
  return median(std::move(work));
}

// Which part of its work the rank needs longest for, compared with the median of the others.
inline void find_surplus(std::span<const Rank> ranks, std::size_t slow, Straggler& straggler) {
  double largest = straggler.surplus_ms() / 2;  // else it is between leases
  const auto compare = [&](std::size_t subject, const char* phase, auto&& part) {
    std::vector<double> others;
    for (std::size_t r = 0; r < ranks.size(); ++r) {
      if (r == slow || subject >= ranks[r].subjects.size()) continue;
      others.push_back(ms_per_step(part(ranks[r].subjects[subject]), ranks[r]));
    }
    const double surplus =
        ms_per_step(part(ranks[slow].subjects[subject]), ranks[slow]) - median(std::move(others));
    if (surplus <= largest) return;
    largest = surplus;
    straggler.where = ranks[slow].subjects[subject].name;
    straggler.phase = phase;
  };
  for (std::size_t s = 0; s < ranks[slow].subjects.size(); ++s) {
    compare(s, "forward", [](const Subject& subject) { return subject.forward_ns; });
    compare(s, "backward", [](const Subject& subject) { return subject.backward_ns; });
    compare(s, "optimizer",
            [](const Subject& subject) { return subject[Activity::update].run_ns; });
  }
}

}  // namespace detail

/// The numbers of a run, of all ranks' records in order.
[[nodiscard]] inline Summary summarize(std::span<const Rank> ranks) {
  Summary summary;
  if (ranks.empty()) return summary;
  const Rank& first = ranks[0];
  summary.world = first.world;
  summary.strategy = first.strategy;
  summary.backend = first.backend;
  summary.processors = first.processors;
  summary.overlap = first.overlap;
  summary.prefetch = first.prefetch;
  summary.bucket_bytes = first.bucket_bytes;
  summary.steps = first.steps;
  summary.timed_steps = first.timed_steps;
  summary.loss = first.sum.loss;
  const auto count = static_cast<double>(ranks.size());
  double run_ms = 0;
  for (const Rank& rank : ranks) {
    RankSummary one;
    one.rank = rank.rank;
    one.step_ms = detail::ms_per_step(rank.sum.total_ns(), rank);
    one.compute_ms = detail::ms_per_step(rank.sum.compute_ns(), rank);
    one.exposed_ms = detail::ms_per_step(rank.sum.exposed_ns, rank);
    one.optimizer_ms = detail::ms_per_step(rank.sum.update_ns, rank);
    one.peak = rank.peak.held;
    summary.step_ms += one.step_ms / count;
    summary.compute_ms += one.compute_ms / count;
    summary.exposed_ms += one.exposed_ms / count;
    summary.optimizer_ms += one.optimizer_ms / count;
    summary.ranks.push_back(one);
    const double least = static_cast<double>(rank.least_run_ns) / 1e6;
    if (least > 0 && (summary.least_ms == 0 || least < summary.least_ms)) summary.least_ms = least;
    if (rank.peak.held.total() > summary.peak.held.total()) {
      summary.peak = rank.peak;
      summary.peak_rank = rank.rank;
      summary.peak_cause = detail::name_of_subject(rank, rank.peak.subject);
    }
  }
  const auto steps = static_cast<double>(std::max<std::uint64_t>(1, first.timed_steps));
  if (first.sum.end_ns > 0) {
    summary.tokens_per_s =
        static_cast<double>(first.sum.tokens) / (static_cast<double>(first.sum.end_ns) / 1e9);
  }

  for (std::size_t s = 0; s < first.subjects.size(); ++s) {
    if (first.subjects[s].is_parameter) {
      summary.parameter_bytes += static_cast<double>(first.subjects[s].bytes);
    }
    for (const Activity activity : activities) {
      Row row{first.subjects[s].name, first.subjects[s].is_parameter, activity};
      for (const Rank& rank : ranks) {
        if (s >= rank.subjects.size()) continue;
        const Counter& counter = rank.subjects[s][activity];
        row.wire_bytes += static_cast<double>(counter.wire_bytes) / steps / count;
        row.calls += static_cast<double>(counter.calls) / steps / count;
        row.run_ms += detail::ms_per_step(counter.run_ns, rank) / count;
        row.exposed_ms += detail::ms_per_step(counter.exposed_ns, rank) / count;
      }
      if (activity != Activity::scalar && activity != Activity::update) run_ms += row.run_ms;
      if (row.calls > 0 || row.exposed_ms > 0) summary.rows.push_back(std::move(row));
    }
  }
  std::stable_sort(summary.rows.begin(), summary.rows.end(), [](const Row& a, const Row& b) {
    return a.exposed_ms != b.exposed_ms ? a.exposed_ms > b.exposed_ms : a.run_ms > b.run_ms;
  });
  summary.collectives = static_cast<double>(first.collectives) / steps;
  if (first.collectives > 0) {
    summary.payload_bytes =
        static_cast<double>(first.payload) / static_cast<double>(first.collectives);
    summary.collective_ms = run_ms / summary.collectives;
  }

  std::vector<double> work;
  for (const Rank& rank : ranks) work.push_back(detail::median_work(rank));
  const auto slow = std::max_element(work.begin(), work.end());
  const auto fast = std::min_element(work.begin(), work.end());
  summary.slowest = ranks[static_cast<std::size_t>(slow - work.begin())].rank;
  summary.fastest = ranks[static_cast<std::size_t>(fast - work.begin())].rank;
  if (ranks.size() < 2) return summary;
  const auto slow_index = static_cast<std::size_t>(slow - work.begin());
  summary.straggler.rank = summary.slowest;
  summary.straggler.work_ms = *slow;
  work.erase(slow);
  summary.straggler.others_ms = detail::median(std::move(work));
  detail::find_surplus(ranks, slow_index, summary.straggler);
  return summary;
}

}  // namespace shardwise::inline v0_1::monitor
