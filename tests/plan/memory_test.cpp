#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cstddef>
#include <shardwise/plan/memory.hpp>
#include <string>
#include <vector>

#include "support/device.hpp"
#include "support/ranks.hpp"

using namespace shardwise;
using namespace shardwise::test;

namespace {

std::vector<std::vector<TensorSpec>> layers() {
  return {{{"a", {31, 7}}, {"a.bias", {7}}}, {{"b", {100, 9}}}, {{"c", {0}}},
          {{"d", {3}}, {"d.more", {65}}},    {{"e", {64, 10}}}, {{"f", {500}}}};
}
constexpr std::size_t frozen = 4;

// Gradients are not shared.
constexpr Residency of_gradients(Residency residency) {
  return residency == Residency::shared ? Residency::slots : residency;
}

// The same as a plan has it.
std::vector<PlannedParameter> planned(bool tied, DType gradient, const std::vector<DType>& state,
                                      Residency residency = Residency::slots) {
  std::vector<PlannedParameter> result;
  for (const auto& tensors : layers()) {
    PlannedParameter parameter{tensors};
    parameter.options.tied = tied && result.empty();
    parameter.options.residency = residency;
    parameter.gradient_residency = of_gradients(residency);
    if (result.size() == frozen) {
      parameter.gradient.reset();
    } else {
      parameter.gradient = gradient;
      parameter.state = state;
    }
    result.push_back(std::move(parameter));
  }
  return result;
}

struct Held {
  Bytes bytes;
  std::size_t peak = 0;
};

// What a rank holds after a step, real memory.
template <FloatingElement L, FloatingElement G, class Optimizer>
Held hold(Communicator& communicator, const Strategy& strategy, ContextOptions options, bool tied,
          Residency residency) {
  Context<Device> context(communicator, strategy, options);
  std::vector<Parameter<float>> parameters;
  std::vector<Gradient<G>> gradients;
  std::vector<State<Optimizer>> states;
  for (const auto& tensors : layers()) {
    parameters.emplace_back(
        context, tensors,
        ParameterOptions{.tied = tied && parameters.empty(), .residency = residency});
  }
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    if (i == frozen) continue;
    gradients.emplace_back(parameters[i], of_gradients(residency));
    states.emplace_back(parameters[i]);
  }
  context.prepare();
  return {context.held(), context.peak_held()};
}

template <FloatingElement L, FloatingElement G, class Optimizer>
void compare(Strategy strategy, const ContextOptions& options, bool tied, Residency residency) {
  strategy.lease = dtype_of<L>;
  const auto state = []<class... S>(StateTypes<S...>) {
    return std::vector<DType>{dtype_of<S>...};
  }(typename Optimizer::States());
  for (const int world : {1, 2, 3, 4, 7}) {
    if (strategy.shard_group > 0 && world % strategy.shard_group != 0) continue;
    if (strategy.reshard_group > 0 && world != 4) continue;
    PlanOptions plan;
    plan.world = world;
    plan.context = options;
    if (!on_host) plan.backend.nccl = NcclOrder::canonical;
    const MemoryPlan expected =
        plan_memory(planned(tied, dtype_of<G>, state, residency), strategy, plan);
    for (const Held& held : on_ranks(world, [&](Communicator& communicator) {
           return hold<L, G, Optimizer>(communicator, strategy, options, tied, residency);
         })) {
      INFO(strategy.name() << " world " << world << " tied " << tied << " prefetch "
                           << strategy.prefetch << " bucket " << strategy.bucket_bytes);
      CHECK(expected.bytes == held.bytes);
      CHECK(expected.peak() == held.peak);
    }
  }
}

}  // namespace

TEST_CASE("planned bytes are the held ones, for every strategy, type and setting") {
  for (const char* name : {"ddp", "zero1", "zero2", "zero3", "zero3-no-reshard", "hybrid-1",
                           "hybrid-2", "hybrid-zero1-2"}) {
    for (const bool tied : {false, true}) {
      Strategy strategy = Strategy::parse(name);
      compare<float, float, AdamW>(strategy, {}, tied, Residency::slots);
      strategy.prefetch = 3;
      strategy.overlap = false;
      strategy.accumulation = Accumulation::hold;
      compare<bf16, bf16, Lion>(strategy, {.open_parameters = 2}, tied, Residency::slots);
      strategy.bucket_bytes = 4096;
      strategy.persistence_threshold = 100;
      strategy.accumulation = Accumulation::reduce;
      strategy.gradient_lease = DType::f32;
      compare<bf16, float, Sgd>(strategy, {.open_gradients = 2}, tied, Residency::slots);
    }
    compare<f16, float, AdamW>(Strategy::parse(name), {}, false, Residency::host_buffer);
  }
}

TEST_CASE("planned bytes of shared parameters are the held ones") {
  if (!on_host) SKIP("ranks share the host's memory alone");
  for (const char* name : {"zero1", "zero2", "zero3", "zero3-no-reshard", "hybrid-2"}) {
    Strategy strategy = Strategy::parse(name);
    compare<float, float, AdamW>(strategy, {}, true, Residency::shared);
    strategy.prefetch = 3;
    compare<bf16, bf16, Lion>(strategy, {.open_parameters = 2}, true, Residency::shared);
    strategy.bucket_bytes = 4096;
    strategy.persistence_threshold = 100;
    strategy.gradient_lease = DType::f32;
    compare<bf16, float, Sgd>(strategy, {.open_gradients = 2}, false, Residency::shared);
  }
}

TEST_CASE("planned bytes of secondary shards are the held ones") {
  Strategy strategy = Strategy::zero3();
  strategy.reshard_group = 2;
  compare<float, float, AdamW>(strategy, {}, true, Residency::slots);
  strategy.persistence_threshold = 100;
  compare<bf16, bf16, AdamW>(strategy, {.open_parameters = 2}, false, Residency::slots);
  compare<f16, float, AdamW>(strategy, {}, false, Residency::host_buffer);
}

TEST_CASE("planned bytes of parameters in an arena are the held ones") {
  // Sizes of whole and of parts of pages, far above what is not recycled, and below it.
  const std::vector<std::size_t> counts{40'000, 100, 70'001, 16'384, 300'000, 5};
  std::size_t elements = 0;
  for (const std::size_t count : counts) elements += count;
  for (const char* name : {"ddp", "zero1", "zero2", "zero3", "zero3-no-reshard"}) {
    for (const int world : {1, 3, 4}) {
      const Strategy strategy = Strategy::parse(name);
      const auto held = on_threads(world, [&](Communicator& communicator) {
        Context<> context(communicator, strategy);
        Arena weights(context, elements * sizeof(float), "weights");
        Arena gradients(context, elements * sizeof(float), "gradients");
        std::vector<ShardedParameter<float>> parameters;
        std::vector<ShardedGradient<float>> all;
        std::vector<ShardedOptimizerState<AdamW>> states;
        auto* next = weights.as<float>();
        for (std::size_t i = 0; i < counts.size(); i += 2) {
          const std::vector<HostTensor> tensors{
              {"t" + std::to_string(i), next, {counts[i]}},
              {"t" + std::to_string(i + 1), next + counts[i], {counts[i + 1]}}};
          next += counts[i] + counts[i + 1];
          parameters.emplace_back(context, tensors);
          all.emplace_back(parameters.back(), gradients);
          states.emplace_back(parameters.back());
        }
        context.prepare();
        return context.held();
      });
      std::vector<PlannedParameter> planned;
      std::size_t offset = 0;
      for (std::size_t i = 0; i < counts.size(); i += 2) {
        PlannedParameter parameter{{{"t" + std::to_string(i), {counts[i]}},
                                    {"t" + std::to_string(i + 1), {counts[i + 1]}}}};
        parameter.offsets = {offset, offset + counts[i]};
        parameter.gradient_residency = Residency::in_place;
        parameter.state = {DType::f32, DType::f32};
        offset += counts[i] + counts[i + 1];
        planned.push_back(std::move(parameter));
      }
      PlanOptions options;
      options.world = world;
      options.arena_elements = elements;
      INFO(name << " world " << world);
      CHECK(plan_memory(planned, strategy, options).bytes == held[0]);
    }
  }
}

TEST_CASE("a plan refuses what a registration would refuse") {
  const Strategy zero3 = Strategy::zero3();
  PlannedParameter parameter{{{"a", {8}}}};
  PlanOptions options;
  options.world = 0;
  CHECK_THROWS_AS(plan_memory({&parameter, 1}, zero3, options), UsageError);
  options.world = 2;
  Strategy wrong = Strategy::ddp();
  wrong.gradients = Placement::sharded;
  CHECK_THROWS_AS(plan_memory({&parameter, 1}, wrong, options), UsageError);
  CHECK_THROWS_AS(plan_memory({&parameter, 1}, Strategy::hybrid(3), options), UsageError);
  Strategy capped = zero3;
  capped.max_live_bytes = 16;
  CHECK_THROWS_AS(plan_memory({&parameter, 1}, capped, options), UsageError);
  parameter.offsets = {0, 8};
  options.arena_elements = 16;
  CHECK_THROWS_WITH(plan_memory({&parameter, 1}, zero3, options),
                    Catch::Matchers::ContainsSubstring("one for each"));
  parameter.offsets = {12};
  CHECK_THROWS_WITH(plan_memory({&parameter, 1}, zero3, options),
                    Catch::Matchers::ContainsSubstring("does not lie in the planned arena"));
}
