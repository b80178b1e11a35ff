#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <shardwise/monitor/monitor.hpp>
#include <shardwise/shardwise.hpp>
#include <string>
#include <vector>

#include "support/ranks.hpp"

namespace shardwise::test {

/// How a watched run goes: layers of weights, forwards and backwards, and an optimizer.
struct WatchedRun {
  Strategy strategy = Strategy::zero3();
  std::size_t layers = 4;
  std::size_t elements = 1000;
  int steps = 4;
  int micro_batches = 2;
  std::function<void(int rank, std::size_t layer)> compute = {};  ///< in each layer's backward pass
};

/// What the context itself counted.
struct Counted {
  Traffic traffic;
  Traffic step;  ///< of the last step
  Bytes held;
  std::size_t peak = 0;
  std::uint64_t collectives = 0;
};

/// Trains `run` on a rank with `observer`, which may be null.
inline Counted train_watched(Communicator& communicator, Observer* observer,
                             const WatchedRun& run) {
  Context<> context(communicator, run.strategy, {.observer = observer, .overlap_from = 0});
  std::vector<ShardedParameter<float>> parameters;
  std::vector<ShardedGradient<float>> gradients;
  std::vector<ShardedOptimizerState<AdamW>> states;
  ShardedSequence<float> sequence;
  for (std::size_t i = 0; i < run.layers; ++i) {
    const TensorSpec weight{"weight", {run.elements + i}};
    parameters.emplace_back(context, std::vector<TensorSpec>{weight, {"bias", {3}}},
                            ParameterOptions{.name = "h." + std::to_string(i)});
    parameters.back().initialize([](const auto&, std::size_t k) { return static_cast<float>(k); });
  }
  for (auto& parameter : parameters) {
    gradients.emplace_back(parameter);
    states.emplace_back(parameter);
  }
  for (std::size_t i = 0; i < run.layers; ++i) sequence.add(parameters[i], gradients[i]);
  const bool hold = run.strategy.accumulation == Accumulation::hold;
  Counted counted;
  for (int step = 0; step < run.steps; ++step) {
    const Traffic before = context.statistics().traffic;
    for (int micro = 0; micro < run.micro_batches; ++micro) {
      context.begin_micro_batch();
      for (std::size_t i = 0; i < run.layers; ++i) sequence.forward(i).finish();
      for (std::size_t i = run.layers; i-- > 0;) {
        auto visit = sequence.backward(i);
        for (float& value : visit.gradient[0]) value += 1;
        if (run.compute) run.compute(communicator.rank(), i);
        visit.finish(!hold || micro + 1 == run.micro_batches);
      }
    }
    clip_gradient_norm(context, 1);
    for (std::size_t i = 0; i < run.layers; ++i) states[i].step(parameters[i], gradients[i]);
    context.end_step({.loss = 3.0 / (step + 1), .tokens = 100});
    counted.step = context.statistics().traffic;
    counted.step.all_gather -= before.all_gather;
    counted.step.reduce_scatter -= before.reduce_scatter;
    counted.step.all_reduce -= before.all_reduce;
  }
  context.barrier();
  counted.traffic = context.statistics().traffic;
  counted.held = context.held();
  counted.peak = context.peak_held();
  return counted;
}

/// Strategies of every kind, and buckets, prefetch and types that change what travels.
inline std::vector<Strategy> watched_strategies() {
  std::vector<Strategy> result = {Strategy::ddp(), Strategy::zero1(), Strategy::zero2(),
                                  Strategy::zero3(), Strategy::zero3_no_reshard()};
  Strategy variant = Strategy::zero3();
  variant.bucket_bytes = 9000;
  variant.prefetch = 2;
  result.push_back(variant);
  variant.wire = DType::bf16;
  variant.accumulation = Accumulation::hold;
  result.push_back(variant);
  variant = Strategy::ddp();
  variant.bucket_bytes = 9000;
  result.push_back(variant);
  variant = Strategy::zero3();
  variant.persistence_threshold = 1005;
  variant.overlap = false;
  result.push_back(variant);
  return result;
}

/// The monitors of a run's ranks, by rank, each with what it saw.
template <class Look>
auto watch(int world, const WatchedRun& run, const MonitorOptions& options, Look&& look) {
  return on_threads(world, [&](Communicator& communicator) {
    Monitor monitor(options);
    const Counted counted = train_watched(communicator, &monitor, run);
    return look(communicator, monitor, counted);
  });
}

}  // namespace shardwise::test
