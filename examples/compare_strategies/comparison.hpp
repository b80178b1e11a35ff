#pragma once

#include <cstddef>
#include <shardwise/plan/planner.hpp>
#include <string>
#include <vector>

#include "../train_gpt/options.hpp"
#include "../train_gpt/report.hpp"

namespace compare_strategies {

/// One strategy, trained for some steps, next to what the planner said of it.
struct Trial {
  std::string name;
  shardwise::Strategy strategy;
  train_gpt::Report report;     ///< of the round whose step is the median
  std::vector<double> step_ms;  ///< of each round
  shardwise::StepPrediction prediction;

  [[nodiscard]] double measured_ms() const noexcept { return report.step_ms; }
  [[nodiscard]] double predicted_ms() const noexcept { return 1e3 * prediction.seconds; }
  /// Between the fastest round and the slowest.
  [[nodiscard]] double spread_ms() const;
  [[nodiscard]] std::size_t sent() const noexcept;
  /// What is planned is what was held, kind by kind.
  [[nodiscard]] bool planned_right() const noexcept;
};

/// What trying one value of one setting gave.
struct TunedValue {
  std::string setting;
  std::string value;
  double measured_ms = 0;
  double predicted_ms = 0;
  bool taken = false;
};

struct Comparison {
  train_gpt::Options options;
  shardwise::Hardware hardware;
  std::vector<Trial> trials;
  std::size_t chosen = 0;
  std::string reason;
  shardwise::Strategy strategy;  ///< the chosen one, tuned where that was asked for
  double noise_ms = 0;           ///< between rounds of the same; less than that is worth nothing
  double untuned_ms = 0;         ///< 0: not tuned
  double tuned_ms = 0;
  std::vector<TunedValue> tuning;  ///< in the order of trying

  /// Of all that claim them: groups that are no power of two do not.
  [[nodiscard]] bool same_bits() const;
  [[nodiscard]] bool planned_right() const;
};

/// Trains `rounds` times with `strategy`.
[[nodiscard]] Trial try_strategy(train_gpt::Options options, const shardwise::Strategy& strategy,
                                 const shardwise::Hardware& hardware, std::size_t rounds);

/// Every strategy in turn, round by round, so that a machine that others use, too, is the same for
/// all; then the choice.
[[nodiscard]] Comparison compare(const train_gpt::Options& options,
                                 const shardwise::Hardware& hardware, std::size_t rounds);

/// The smallest of the strategies that are not clearly slower than the fastest, and why.
void choose(Comparison& comparison);

/// Tries values of prefetch, bucket, persistence and overlap on the chosen strategy, one setting
/// after the other, each in at least three rounds; what is faster by more than rounds of the same
/// differ stays.
void tune(Comparison& comparison, std::size_t rounds);

}  // namespace compare_strategies
