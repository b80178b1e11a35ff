// What a plan reads from a live context is what its host registered: from any run it says what
// every other one holds.
#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cstddef>
#include <memory>
#include <shardwise/plan/registered_model.hpp>
#include <string>
#include <utility>
#include <vector>

#include "support/device.hpp"
#include "support/ranks.hpp"

using namespace shardwise;
using namespace shardwise::test;

namespace {

struct Run {
  Strategy strategy;
  int world;
  RegisteredModel model;
  Bytes held;
  Bytes planned;  // by the live context's own rank
};

// Tied, frozen, empty, small and large ones; one with a strategy of its own; one for buffers of the
// host; one that comes after the first gather.
Run train(Communicator& comm, const Strategy& strategy) {
  Context<Device> context(comm, strategy, {.open_parameters = 2});
  std::vector<Parameter<float>> parameters;
  std::vector<Gradient<bf16>> gradients;
  std::vector<State<AdamW>> states;
  const auto add = [&](std::vector<TensorSpec> tensors, ParameterOptions options = {},
                       bool frozen = false) {
    const auto residency = options.residency.value_or(Residency::slots);
    parameters.emplace_back(context, std::move(tensors), std::move(options));
    if (frozen) return;
    gradients.emplace_back(parameters.back(), residency);
    states.emplace_back(parameters.back());
  };
  add({{"a", {31, 7}}, {"a.bias", {7}}}, {.name = "first", .tied = true});
  add({{"b", {100, 9}}});
  add({{"empty", {0}}});
  add({{"frozen", {64, 10}}}, {}, true);
  Strategy own = Strategy::zero2();
  own.lease = strategy.lease;
  add({{"own", {50, 3}}}, {.strategy = own});
  add({{"buffers", {333}}}, {.residency = Residency::host_buffer});
  context.prepare();
  add({{"late", {700}}});
  context.prepare();
  return {strategy, context.world(), registered_model(context), context.held(),
          plan_memory(context, strategy).bytes};
}

// Two parameters in one arena and one in another, with gaps, gradients in arenas of their own.
Run train_in_place(Communicator& comm, const Strategy& strategy) {
  Context<Device> context(comm, strategy);
  constexpr std::size_t elements = 400000;
  std::vector<std::unique_ptr<DeviceArena<Device>>> arenas;
  std::vector<Parameter<float>> parameters;
  std::vector<Gradient<float>> gradients;
  std::vector<State<AdamW>> states;
  for (const int which : {0, 1}) {
    arenas.push_back(
        std::make_unique<DeviceArena<Device>>(context, elements * sizeof(float), "weights"));
    auto* const at = arenas.back()->as<float>();
    arenas.push_back(
        std::make_unique<DeviceArena<Device>>(context, elements * sizeof(float), "gradients"));
    const auto add = [&](const std::vector<HostTensor>& tensors) {
      parameters.emplace_back(context, tensors);
      gradients.emplace_back(parameters.back(), *arenas.back());
      states.emplace_back(parameters.back());
    };
    const std::string name = std::to_string(which);
    add({{"x" + name, at + 4097, {100, 1000}},
         {"none" + name, at, {0}},
         {"y" + name, at + 7, {9}}});
    add({{"z" + name, at + 110000, {250000}}});
  }
  context.prepare();
  return {strategy, context.world(), registered_model(context), context.held(),
          plan_memory(context, strategy).bytes};
}

using Train = Run (*)(Communicator&, const Strategy&);

void compare(Train of, const std::vector<const char*>& names) {
  std::vector<Run> runs;
  for (const char* name : names) {
    for (const int world : {1, 2, 3, 4, 7}) {
      Strategy strategy = Strategy::parse(name);
      if (world % std::max(1, strategy.shard_group) != 0) continue;
      strategy.bucket_bytes = 4096;
      strategy.persistence_threshold = 100;
      if (of == train) strategy.lease = DType::bf16;
      auto all = on_ranks(world, [&](Communicator& comm) { return of(comm, strategy); });
      for (const Run& run : all) {
        INFO(name << " world " << world);
        CHECK(run.held == all[0].held);
        CHECK(run.planned == run.held);
      }
      runs.push_back(std::move(all[0]));
    }
  }
  for (const Run& from : runs) {
    for (const Run& to : runs) {
      PlanOptions options = from.model.options;
      options.world = to.world;
      options.backend.like = nullptr;  // it has gone with its run
      if (!on_host) options.backend.nccl = NcclOrder::canonical;
      const Bytes plan = plan_memory(from.model.parameters, to.strategy, options).bytes;
      if (plan == to.held) continue;
      INFO("from " << from.strategy.name() << " world " << from.world << " to "
                   << to.strategy.name() << " world " << to.world);
      CHECK(plan == to.held);
    }
  }
}

}  // namespace

TEST_CASE("from a live context a plan knows what any strategy and world would hold") {
  compare(train, {"ddp", "zero1", "zero2", "zero3", "zero3-no-reshard", "hybrid-2"});
}

TEST_CASE("from a live context with arenas a plan knows it, too") {
  compare(train_in_place, {"ddp", "zero2", "zero3", "zero3-no-reshard"});
}

TEST_CASE("a plan of a live context has the landing buffers of its backend, in any world") {
  for (const int world : {1, 3}) {
    const auto landing = on_ranks(world, [&](Communicator& comm) {
      Context<Device> context(comm, Strategy::zero3());
      Parameter<float> parameter(context, {{"a", {1000}}});
      const Gradient<float> gradient(parameter);
      return plan_memory(context, Strategy::ddp(), 5).landing;
    });
    for (const std::size_t bytes : landing) CHECK((bytes > 0) == !on_host);
  }
}
