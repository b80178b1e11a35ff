#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cstddef>
#include <shardwise/comm/nccl.hpp>
#include <shardwise/device/cuda.hpp>
#include <shardwise/shardwise.hpp>
#include <string>
#include <vector>

#include "emulation/control.hpp"
#include "nccl_ranks.hpp"

// Communication beside compute, by the emulation's modelled time: the same numbers in every run.

namespace shardwise::test {
namespace {

constexpr std::size_t layers = 6;
constexpr std::size_t elements = 1 << 16;
constexpr double layer_us = 200;  // of compute, each way

/// A piece of compute of the host on its stream.
void compute(cudaStream_t stream) {
  struct Nothing {};
  cuda_check(emulation_control::launch_body(
                 stream, "layer", 1, Nothing{}, true,
                 [](const void*, std::size_t) { emulation_control::spend(layer_us); }),
             "launch");
}

struct Times {
  double step = 0;    ///< one training step
  double gather = 0;  ///< of one layer's parameter
  double reduce = 0;  ///< of one layer's gradient
};

/// Modelled microseconds on the slowest of `world` ranks, over links of so many GB/s.
Times measure(int world, int prefetch, const char* link) {
  emulation_control::set_option("link_gbps", link);
  std::vector<Times> times(static_cast<std::size_t>(world));
  run_cuda_ranks(world, [&](Communicator& communicator) {
    Strategy strategy = Strategy::zero3();
    strategy.prefetch = prefetch;
    Context<CudaDevice> context(communicator, strategy);
    std::vector<ShardedParameter<float, CudaDevice>> parameters;
    std::vector<ShardedGradient<float, CudaDevice>> gradients;
    std::vector<ShardedOptimizerState<AdamW, CudaDevice>> states;
    for (std::size_t i = 0; i < layers; ++i) {
      parameters.emplace_back(context,
                              std::vector<TensorSpec>{{"w" + std::to_string(i), {elements}}});
      parameters.back().initialize([](const auto&, std::size_t) { return 1.0f; });
    }
    for (auto& parameter : parameters) gradients.emplace_back(parameter);
    for (auto& parameter : parameters) states.emplace_back(parameter);
    ShardedSequence<float, float, float, float, CudaDevice> sequence;
    for (std::size_t i = 0; i < layers; ++i) sequence.add(parameters[i], gradients[i]);
    const auto now = [&] {
      context.stream().synchronize();
      return emulation_control::virtual_time(context.stream().native());
    };
    Times& mine = times[static_cast<std::size_t>(communicator.rank())];
    for (int step = 0; step < 3; ++step) {
      context.barrier();
      // The barrier's time is the compute stream's, too.
      context.stream().wait(context.engine().communication.record());
      const double begin = now();
      for (std::size_t i = 0; i < layers; ++i) {
        auto visit = sequence.forward(i);
        compute(context.stream().native());
        visit.finish();
      }
      for (std::size_t i = layers; i-- > 0;) {
        auto visit = sequence.backward(i);
        compute(context.stream().native());
        visit.finish(true);
      }
      for (std::size_t i = 0; i < layers; ++i) states[i].step(parameters[i], gradients[i]);
      mine.step = now() - begin;  // of the last one: everything is allocated
    }
    {
      const double begin = now();
      const auto weights = parameters[0].gather();
      mine.gather = now() - begin;
    }
    auto lease = gradients[0].lease();
    const double begin = now();
    std::move(lease).reduce();
    static_cast<void>(gradients[0].shard());
    mine.reduce = now() - begin;
  });
  emulation_control::set_option("link_gbps", nullptr);
  Times slowest;
  for (const Times& one : times) {
    slowest = {std::max(slowest.step, one.step), std::max(slowest.gather, one.gather),
               std::max(slowest.reduce, one.reduce)};
  }
  return slowest;
}

}  // namespace

TEST_CASE("with prefetch only the first gather and the last reduction are not hidden") {
  if (!shardwise_emulation_present()) SKIP("modelled time is of the emulation alone");
  for (const int world : {2, 3, 4}) {
    const char* const link = "5";
    const Times ahead = measure(world, 1, link);
    const Times late = measure(world, 0, link);
    const Times free = measure(world, 1, "1e9");  // as if nothing had to travel
    const double exposed = ahead.step - free.step;
    const double exposed_late = late.step - free.step;
    const double gather = ahead.gather - free.gather;
    const double reduce = ahead.reduce - free.reduce;
    INFO("world " << world << ", emulated: step " << ahead.step << " us, without prefetch "
                  << late.step << ", without communication " << free.step << "; one gather "
                  << gather << ", one reduction " << reduce);
    CHECK(gather > 5);
    CHECK(reduce > 5);
    CHECK(gather + reduce < layer_us);  // else it could not be hidden
    CHECK(exposed <= 1.02 * (gather + reduce) + 1);
    CHECK(exposed >= 0.98 * std::max(gather, reduce));
    CHECK(exposed_late >= 0.9 * static_cast<double>(2 * layers - 1) * gather);
  }
}

TEST_CASE("on devices all collectives run beside compute, and nothing is measured") {
  for (const int world : present_worlds()) {
    if (world > 2) break;
    run_cuda_ranks(world, [](Communicator& communicator) {
      Context<CudaDevice> context(communicator);
      ShardedParameter<float, CudaDevice> parameter(context, {{"w", {elements}}});
      const OverlapChoice choice = measure_overlap(context, {.least = 1});
      if (choice.measured() || choice.overlap_from != 0 || context.overlap_from() != 0) {
        throw Error(choice.describe());
      }
    });
  }
}

}  // namespace shardwise::test
