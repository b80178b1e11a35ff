#pragma once

#include <bit>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "options.hpp"

namespace train_gpt {

/// Bytes that one rank holds for the training state, padding included; the activations are not in
/// it.
struct Bytes {
  std::size_t parameters = 0;       ///< storage at rest and a replicated copy in the lease type
  std::size_t gradients = 0;        ///< gradient storage at rest
  std::size_t optimizer_state = 0;  ///< per element
  std::size_t slots = 0;            ///< everything else that a step needs
  std::size_t peak = 0;             ///< highest sum of the four
};

/// One step's collectives over parameters and gradients, as one rank sends by the ring formula.
struct Traffic {
  struct Collective {
    std::size_t bytes = 0;
    std::size_t calls = 0;
  };
  Collective all_gather;
  Collective reduce_scatter;
  Collective all_reduce;
};

/// What a training run tells.
struct Report {
  std::size_t world = 1;
  std::string strategy;
  std::string residency = "slots";
  bool same_bits = true;          ///< those of every other strategy that has them, too
  std::size_t parameters = 0;     ///< elements, tied ones once
  std::vector<double> loss;       ///< of each step: mean over the global batch, before the update
  std::vector<double> grad_norm;  ///< of each step: global, before clipping
  double step_ms = 0;             ///< the median after the first step, as the two below
  double compute_ms = 0;          ///< forward and backward, without waiting
  double wait_ms = 0;             ///< waiting for communication
  Bytes bytes_per_rank;           ///< of the largest rank
  Bytes planned_bytes_per_rank;
  Traffic traffic_per_step;
  std::size_t bytes_moved_per_step = 0;  ///< of that, what was really copied
  std::size_t scalars_per_step = 0;
  std::string parameters_hash;
  std::vector<float> values;  ///< of all parameters, if the options say so; not in the JSON
  std::string sample;         ///< generated text; not in the JSON
};

/// The report as JSON, indented, with the names of its members.
[[nodiscard]] std::string to_json(const Report& report);

/// Writes it to a file; throws std::runtime_error.
void write_json(const Report& report, const std::string& file);

/// Two lines for a person: what was trained, and how it went.
[[nodiscard]] std::string summary(const Report& report);

/// Takes the time of the steps and shows a line of progress if standard output is a terminal.
class Recorder {
 public:
  /// Shows nothing unless `speaks`. The options outlive the recorder.
  explicit Recorder(const Options& options, bool speaks = true);

  void begin_step();
  /// After the last backward pass; `waited` for communication since begin_step.
  void end_compute(std::chrono::nanoseconds waited = {});
  /// After the update; `waited` since begin_step, in all.
  void end_step(double loss, double grad_norm, std::chrono::nanoseconds waited = {});

  /// Of the last step.
  [[nodiscard]] double loss() const { return report_.loss.back(); }

  /// Ends the line of progress; a report of losses, norms and times, the rest empty.
  [[nodiscard]] Report finish();

 private:
  using Clock = std::chrono::steady_clock;

  void show_progress() const;

  const Options& options_;
  Report report_;
  bool speaks_;
  Clock::time_point start_;
  Clock::time_point step_start_;
  std::vector<double> step_ms_;
  std::vector<double> compute_ms_;
  std::vector<double> wait_ms_;
};

/// FNV-1a 64 over the bytes of elements in storage, as they lie in memory (little-endian).
class ParametersHash {
 public:
  /// Appends the elements to `kept`, too, if that is not null.
  explicit ParametersHash(std::vector<float>* kept = nullptr) : kept_(kept) {}

  /// Adds the next elements: parameters in order of registration, tensors in order, no padding.
  void add(std::span<const float> elements);
  [[nodiscard]] std::string hex() const;  ///< 16 digits

 private:
  static_assert(std::endian::native == std::endian::little);
  std::uint64_t state_ = 0xcbf29ce484222325u;
  std::vector<float>* kept_;
};

/// Text by the model, `options.sample` bytes drawn one by one. `logits` is given the bytes so far,
/// at most `options.sequence` of them, filled up with zeros, and returns 256 logits per position.
[[nodiscard]] std::string generate(
    const Options& options,
    const std::function<std::span<const float>(std::span<const std::uint8_t>)>& logits);

}  // namespace train_gpt
