// Throughputs that others published, predicted from data sheets and published microbenchmarks.
#include <fmt/core.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>
#include <cmath>
#include <string>

#include "../examples/plan/options.hpp"
#include "../examples/plan/presets.hpp"
#include "published_runs.hpp"

namespace {

double predict(const published::Run& run) {
  shardwise::TransformerUse use;
  use.micro_batch = run.micro_batch;
  use.checkpoints = run.checkpoints;
  const shardwise::PlannedModel model = shardwise::plan_transformer(
      run.shape, use, shardwise::DType::bf16, shardwise::state_of(shardwise::OptimizerKind::adamw));
  shardwise::Hardware hardware =
      plan::hardware_of(plan::device_preset(run.device), plan::network_preset(run.network), 8);
  if (run.network_bandwidth > 0) {
    hardware.topology.network.bandwidth = run.network_bandwidth * plan::Reached::link;
  }
  shardwise::Strategy strategy = shardwise::Strategy::zero3();
  strategy.lease = shardwise::DType::bf16;
  shardwise::StepOptions options;
  options.world = run.devices;
  options.micro_batches = run.micro_batches;
  options.backend.nccl = shardwise::NcclOrder::fast;
  const double seconds = plan::predict_step(model, strategy, hardware, options).seconds;
  return static_cast<double>(run.micro_batch * run.micro_batches * run.shape.sequence) / seconds;
}

}  // namespace

TEST_CASE("published throughputs are predicted within 30 %") {
  fmt::print("{:<24}{:>10}{:>11}{:>8}   source\n", "tokens/s of each device", "published",
             "predicted", "error");
  int within = 0;
  for (const published::Run& run : published::runs) {
    const double tokens = predict(run);
    const double error = tokens / run.tokens - 1;
    fmt::print("{:<24}{:>10.0f}{:>11.0f}{:>+7.0f} %   {}{}{}\n", run.name, run.tokens, tokens,
               100 * error, run.source, run.miss.empty() ? "" : "; misses by ", run.miss);
    INFO(run.name << ": published " << run.tokens << ", predicted " << tokens);
    CHECK((std::abs(error) < 0.3) == run.miss.empty());
    if (std::abs(error) < 0.3) ++within;
  }
  CHECK(within >= 3);
}
