#include "comparison.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <shardwise/comm/collectives.hpp>
#include <utility>

#include "../plan/options.hpp"
#include "../plan/planned_gpt.hpp"
#include "../train_gpt/sharding.hpp"
#include "../train_gpt/train.hpp"

namespace compare_strategies {
namespace {

using train_gpt::Report;

// Times of one run on a shared machine differ by so much without a cause.
constexpr double noise = 0.15;

bool speaks(const train_gpt::Options& options) { return !options.quiet && options.process == 0; }

double kib(std::size_t bytes) { return static_cast<double>(bytes) / 1024; }

// Where ranks are processes each has its own times; what follows from them is decided by rank 0's.
void agree(const train_gpt::Options& options, Report& report) {
  if (options.communicator == nullptr) return;
  std::array times{report.step_ms, report.compute_ms, report.wait_ms};
  shardwise::broadcast(*options.communicator, times, 0, {"times"});
  report.step_ms = times[0];
  report.compute_ms = times[1];
  report.wait_ms = times[2];
}

void train_once(Trial& trial, train_gpt::Options options) {
  options.strategy = trial.name;
  options.strategy_of_file = trial.strategy;
  options.quiet = true;
  Report report = train_gpt::sharded::train(options);
  agree(options, report);
  trial.step_ms.push_back(report.step_ms);
  std::vector<double> sorted = trial.step_ms;
  std::sort(sorted.begin(), sorted.end());
  const double median = sorted[sorted.size() / 2];
  if (trial.step_ms.size() == 1 || report.step_ms == median) {
    trial.report = std::move(report);
  }
  trial.report.step_ms = median;
}

Trial start(const train_gpt::Options& options, const shardwise::Strategy& strategy,
            const shardwise::Hardware& hardware) {
  Trial trial;
  trial.name = strategy.name();
  trial.strategy = strategy;
  trial.prediction = plan::predict_step(plan::planned_gpt(options), strategy, hardware,
                                        plan::planned_steps(options));
  return trial;
}

// Lease bytes of all units of the model.
std::size_t lease_bytes(const train_gpt::Options& options, bool largest_alone) {
  std::size_t sum = 0;
  std::size_t largest = 0;
  for (const auto& parameter : plan::planned_gpt(options).parameters) {
    const std::size_t bytes =
        shardwise::Layout(parameter.tensors, static_cast<int>(options.ranks)).padded_size() *
        shardwise::size_of(plan::type_of(options.lease));
    sum += bytes;
    largest = std::max(largest, bytes);
  }
  return largest_alone ? largest : sum;
}

}  // namespace

void choose(Comparison& comparison) {
  const auto& trials = comparison.trials;
  std::size_t fastest = 0;
  for (std::size_t i = 0; i < trials.size(); ++i) {
    if (trials[i].measured_ms() < trials[fastest].measured_ms()) fastest = i;
  }
  std::size_t best = fastest;
  for (std::size_t i = 0; i < trials.size(); ++i) {
    if (trials[i].measured_ms() > trials[fastest].measured_ms() * (1 + noise)) continue;
    if (trials[i].report.bytes_per_rank.peak < trials[best].report.bytes_per_rank.peak) best = i;
  }
  comparison.chosen = best;
  comparison.strategy = trials[best].strategy;
  const std::size_t least = trials[best].report.bytes_per_rank.peak;
  if (best == fastest) {
    comparison.reason = fmt::format(
        "it is the fastest, {:.1f} ms per step, and none within {:.0f} % of it needs less memory "
        "({:.0f} KiB per rank)",
        trials[best].measured_ms(), 100 * noise, kib(least));
    return;
  }
  comparison.reason = fmt::format(
      "of the strategies whose step is within {:.0f} % of the fastest ({}, {:.1f} ms) it needs the "
      "least memory, {:.0f} KiB per rank against {:.0f} ({:.1f} ms per step)",
      100 * noise, trials[fastest].name, trials[fastest].measured_ms(), kib(least),
      kib(trials[fastest].report.bytes_per_rank.peak), trials[best].measured_ms());
}

double Trial::spread_ms() const {
  const auto [least, most] = std::minmax_element(step_ms.begin(), step_ms.end());
  return *most - *least;
}

std::size_t Trial::sent() const noexcept {
  const auto& traffic = report.traffic_per_step;
  return traffic.all_gather.bytes + traffic.reduce_scatter.bytes + traffic.all_reduce.bytes;
}

bool Trial::planned_right() const noexcept {
  const auto& held = report.bytes_per_rank;
  const auto& planned = prediction.bytes;
  return held.parameters == planned.parameters && held.gradients == planned.gradients &&
         held.optimizer_state == planned.optimizer_state && held.slots == planned.slots &&
         held.peak == planned.total();
}

bool Comparison::same_bits() const {
  return std::all_of(trials.begin(), trials.end(), [&](const Trial& trial) {
    return !trial.report.same_bits ||
           trial.report.parameters_hash == trials[0].report.parameters_hash;
  });
}

bool Comparison::planned_right() const {
  return std::all_of(trials.begin(), trials.end(),
                     [](const Trial& trial) { return trial.planned_right(); });
}

Trial try_strategy(train_gpt::Options options, const shardwise::Strategy& strategy,
                   const shardwise::Hardware& hardware, std::size_t rounds) {
  Trial trial = start(options, strategy, hardware);
  for (std::size_t round = 0; round < rounds; ++round) train_once(trial, options);
  return trial;
}

Comparison compare(const train_gpt::Options& options, const shardwise::Hardware& hardware,
                   std::size_t rounds) {
  Comparison comparison;
  comparison.options = options;
  comparison.hardware = hardware;
  const shardwise::Strategy settings = train_gpt::strategy_of(options);
  for (const auto name : shardwise::planned_strategies) {
    comparison.trials.push_back(
        start(options, shardwise::with_placements_of(name, settings), hardware));
  }
  if (options.shard_group > 0) {
    shardwise::Strategy hybrid = shardwise::with_placements_of("zero3", settings);
    hybrid.shard_group = static_cast<int>(options.shard_group);
    comparison.trials.push_back(start(options, hybrid, hardware));
  }
  for (std::size_t round = 0; round < rounds; ++round) {
    for (Trial& trial : comparison.trials) {
      if (speaks(options)) fmt::print(stderr, "training with {} ...\n", trial.name);
      train_once(trial, options);
    }
  }
  choose(comparison);
  return comparison;
}

void tune(Comparison& comparison, std::size_t rounds) {
  const train_gpt::Options& options = comparison.options;
  rounds = std::max<std::size_t>(rounds, 3);
  shardwise::Strategy best = comparison.strategy;
  const Trial before_all = try_strategy(options, best, comparison.hardware, rounds);
  double best_ms = before_all.measured_ms();
  comparison.untuned_ms = best_ms;
  comparison.noise_ms = before_all.spread_ms();
  const auto sweep = [&](const char* setting, const auto& values, const auto& set,
                         const auto& text) {
    const shardwise::Strategy before = best;
    const std::size_t first = comparison.tuning.size();
    std::size_t taken = first;
    for (const auto& value : values) {
      shardwise::Strategy candidate = before;
      set(candidate, value);
      if (candidate == before) continue;
      if (speaks(options)) fmt::print(stderr, "trying {} = {} ...\n", setting, text(value));
      const Trial trial = try_strategy(options, candidate, comparison.hardware, rounds);
      comparison.tuning.push_back(
          {setting, text(value), trial.measured_ms(), trial.predicted_ms(), false});
      if (trial.measured_ms() < best_ms - comparison.noise_ms) {
        best_ms = trial.measured_ms();
        best = candidate;
        taken = comparison.tuning.size();
      }
    }
    if (taken > first) comparison.tuning[taken - 1].taken = true;
  };
  const auto number = [](auto value) { return fmt::format("{}", value); };
  const bool gathers = best.parameters == shardwise::Placement::sharded;
  sweep(
      "overlap", std::initializer_list<bool>{true, false},
      [](shardwise::Strategy& s, bool value) { s.overlap = value; },
      [](bool value) { return std::string(value ? "true" : "false"); });
  sweep(
      "prefetch", std::initializer_list<int>{0, 1, 2, 4},
      [](shardwise::Strategy& s, int value) { s.prefetch = value; }, number);
  sweep(
      "bucket_bytes",
      std::initializer_list<std::size_t>{0, 2 * lease_bytes(options, true),
                                         lease_bytes(options, false)},
      [](shardwise::Strategy& s, std::size_t value) { s.bucket_bytes = value; }, number);
  if (gathers) {
    sweep(
        "persistence_threshold", std::initializer_list<std::size_t>{0, 10 * options.width},
        [](shardwise::Strategy& s, std::size_t value) { s.persistence_threshold = value; }, number);
  }
  comparison.strategy = best;
  comparison.tuned_ms = best_ms;
}

}  // namespace compare_strategies
