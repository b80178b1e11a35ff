#pragma once

#include <cstddef>
#include <optional>
#include <shardwise/plan/planner.hpp>
#include <shardwise/plan/transformer.hpp>
#include <string>

namespace plan {

/// What `plan` can be told.
struct Options {
  std::string model;  ///< a preset; empty: by sizes
  double params = 0;  ///< elements; 0: those of the sizes
  shardwise::TransformerShape shape;
  bool has_sizes = false;  ///< layers and width were given
  bool has_vocabulary = false;
  bool has_sequence = false;

  std::string lease = "bf16";
  std::string gradient = "bf16";
  std::string optimizer = "adamw";
  std::string accumulate = "reduce";
  std::size_t micro_batch = 1;    ///< sequences
  std::size_t micro_batches = 1;  ///< of a step
  std::size_t prefetch = 1;
  double bucket = 0;  ///< bytes
  std::size_t persistence = 0;
  std::string residency = "slots";
  bool checkpoints = false;

  std::size_t devices = 8;
  std::size_t nodes = 0;  ///< 0: as many as nodes of 8 make
  std::string device = "a100-80gb";
  std::string network = "ib-hdr";
  std::string hardware_file;
  double device_memory = 0;     ///< bytes; 0: the device's
  double flops = 0;             ///< reached; 0: the device's
  double memory_bandwidth = 0;  ///< reached
  double link = 0;              ///< bytes per second, peak, one direction
  double link_latency = -1;
  double network_bandwidth = 0;
  std::string backend;
  std::string order = "canonical";
  double reserve = 0;

  std::string json;
  std::string write_config;
  bool list = false;

  /// Slots and step times are known: the model's units are.
  [[nodiscard]] bool knows_units() const noexcept { return !model.empty() || has_sizes; }
};

/// Throws by the rules of train_gpt's parse_options: OptionsExit.
[[nodiscard]] Options parse_options(int count, const char* const* arguments);

[[nodiscard]] shardwise::DType type_of(const std::string& name);
[[nodiscard]] shardwise::PlannedModel model_of(const Options& options);
[[nodiscard]] shardwise::Hardware hardware_of(const Options& options);
[[nodiscard]] shardwise::PlanRequest request_of(const Options& options);

/// shardwise::make_plan and predict_step; what they instantiate is compiled once.
[[nodiscard]] shardwise::Plan make_plan(const shardwise::PlannedModel& model,
                                        const shardwise::Hardware& hardware,
                                        const shardwise::PlanRequest& request);
[[nodiscard]] shardwise::StepPrediction predict_step(const shardwise::PlannedModel& model,
                                                     const shardwise::Strategy& strategy,
                                                     const shardwise::Hardware& hardware,
                                                     const shardwise::StepOptions& options);

}  // namespace plan
