#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cmath>
#include <cstddef>
#include <ctime>
#include <shardwise/plan/planner.hpp>
#include <shardwise/plan/transformer.hpp>
#include <string>
#include <vector>

using namespace shardwise;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::WithinRel;

namespace {

TransformerShape small() {
  TransformerShape shape;
  shape.layers = 6;
  shape.width = 256;
  shape.heads = 4;
  shape.vocabulary = 1000;
  shape.sequence = 128;
  return shape;
}

PlannedModel model_of(const TransformerShape& shape, DType gradient = DType::f32) {
  return plan_transformer(shape, {}, gradient, state_of(OptimizerKind::adamw));
}

// A device on which nothing but products and collectives takes time.
Hardware ideal() {
  Hardware hardware;
  hardware.name = "ideal";
  hardware.flops = 1e12;
  hardware.memory = 1'000'000'000;
  hardware.processor.memory_bandwidth = 1e300;
  hardware.topology.devices_per_node = 8;
  hardware.topology.node = {0, 1e300};
  hardware.topology.network = {0, 1e300};
  return hardware;
}

StepOptions four() {
  StepOptions options;
  options.world = 4;
  return options;
}

double flops_of(const PlannedModel& model) {
  double sum = 0;
  for (const PlannedVisit& visit : model.visits) {
    sum += visit.forward.flops + visit.forward.attention_flops + visit.backward.flops +
           visit.backward.attention_flops;
  }
  return sum;
}

std::vector<Strategy> strategies() {
  std::vector<Strategy> result;
  for (const auto name : planned_strategies) result.push_back(Strategy::parse(name));
  return result;
}

}  // namespace

TEST_CASE("where links cost nothing a step is its compute, with every strategy") {
  const PlannedModel model = model_of(small());
  for (const Strategy& strategy : strategies()) {
    const StepPrediction step = predict_step(model, strategy, ideal(), four());
    INFO(strategy.name());
    CHECK_THAT(step.seconds, WithinRel(flops_of(model) / 1e12, 1e-9));
    CHECK_THAT(step.compute, WithinRel(step.seconds, 1e-9));
  }
}

TEST_CASE("a simulated step sends what the formulas say and holds what is planned") {
  const PlannedModel model = model_of(small(), DType::bf16);
  std::size_t padded = 0;
  std::size_t blocks = 0;  // without the embedding and the norm
  for (std::size_t i = 0; i < model.parameters.size(); ++i) {
    const std::size_t size = Layout(model.parameters[i].tensors, 4).padded_size();
    padded += size;
    if (i > 0 && i + 1 < model.parameters.size()) blocks += size;
  }
  const std::size_t unit = padded * 2 / 4 * 3;  // bf16, (N-1)/N
  for (const Strategy& named : strategies()) {
    Strategy strategy = named;
    strategy.lease = DType::bf16;
    const StepPrediction step = predict_step(model, strategy, ideal(), four());
    const Traffic& traffic = step.traffic;
    INFO(strategy.name());
    if (strategy.optimizer_state == Placement::replicated) {
      CHECK(traffic.all_reduce == 2 * unit);
      CHECK(traffic.bytes() == 2 * unit);
    } else {
      CHECK(traffic.reduce_scatter == unit);
      CHECK(traffic.all_reduce == 0);
    }
    if (strategy.optimizer_state == Placement::sharded &&
        (strategy.parameters == Placement::replicated || !strategy.reshard_after_forward)) {
      CHECK(traffic.all_gather == unit);
    }
    if (strategy.parameters == Placement::sharded && strategy.reshard_after_forward) {
      CHECK(traffic.all_gather > unit + blocks);  // blocks twice, less what is still in its slot
      CHECK(traffic.all_gather <= 2 * unit + unit);
    }
    PlanOptions options;
    options.world = 4;
    options.context.open_parameters = 2;
    CHECK(step.bytes == plan_memory(model.parameters, strategy, options).bytes);
  }
}

TEST_CASE(
    "a simulated step of shared parameters gathers without bytes, and waits where ranks wait") {
  const PlannedModel model = model_of(small());
  Hardware hardware = ideal();
  hardware.topology.node.latency = 1e-3;
  const double message = hardware.topology.scalar(4);
  REQUIRE_THAT(hardware.topology.all_gather(0, 4), WithinRel(message));
  for (const char* name : {"zero1", "zero2", "zero3", "zero3-no-reshard"}) {
    Strategy slots = Strategy::parse(name);
    slots.overlap = false;  // nothing is hidden: every wait is seen in the step
    Strategy shared = slots;
    shared.residency = Residency::shared;
    INFO(name);
    const StepPrediction copied = predict_step(model, slots, hardware, four());
    const StepPrediction step = predict_step(model, shared, hardware, four());
    // A norm before the update and a loss after it are all that gathers and writes wait for.
    const auto gathers = static_cast<double>(copied.traffic.all_gather_calls);
    CHECK_THAT(copied.seconds - step.seconds, WithinRel(gathers * message, 1e-9));
    CHECK(step.traffic.reduce_scatter == copied.traffic.reduce_scatter);
    PlanOptions options;
    options.world = 4;
    options.context.open_parameters = 2;
    CHECK(step.bytes == plan_memory(model.parameters, shared, options).bytes);
    CHECK(step.bytes.parameters ==
          copied.bytes.parameters / (shared.parameters == Placement::sharded ? 1 : 4));
    // Without a norm they have met in the reductions: the norm itself is all that is saved.
    StepOptions unclipped = four();
    unclipped.clips = false;
    const StepPrediction free = predict_step(model, shared, hardware, unclipped);
    CHECK_THAT(step.seconds - free.seconds, WithinRel(message, 1e-9));
    // Casts have one more barrier behind each, and one before it where others may still read.
    shared.lease = DType::bf16;
    const StepPrediction cast = predict_step(model, shared, hardware, four());
    CHECK(cast.seconds >
          step.seconds + 0.9 * static_cast<double>(cast.traffic.all_gather_calls) * message);
    CHECK(cast.traffic.all_gather > 0);
  }
}

TEST_CASE("a simulated hybrid step sends within its group and across, by the formula") {
  const PlannedModel model = model_of(small());
  std::size_t padded = 0;
  for (const auto& parameter : model.parameters) {
    padded += 4 * Layout(parameter.tensors, 8).padded_size();
  }
  StepOptions eight;
  eight.world = 8;
  for (const std::size_t size : {2u, 4u}) {
    const Strategy strategy = Strategy::hybrid(static_cast<int>(size));
    const StepPrediction step = predict_step(model, strategy, ideal(), eight);
    CHECK(step.traffic.reduce_scatter == padded / size * (size - 1));
    CHECK(step.traffic.all_reduce == 2 * (padded / size / 8 * (8 - size)));
    CHECK(step.traffic.across_groups == step.traffic.all_reduce);
    PlanOptions options;
    options.world = 8;
    options.context.open_parameters = 2;
    CHECK(step.bytes == plan_memory(model.parameters, strategy, options).bytes);
  }
}

TEST_CASE("groups of a node, and secondary shards, spare a slow network") {
  const PlannedModel model = model_of(small());
  Hardware hardware = ideal();
  hardware.topology.devices_per_node = 4;
  hardware.topology.node = {1e-6, 100e9};
  hardware.topology.network = {10e-6, 50e6};  // nothing else counts
  StepOptions eight;
  eight.world = 8;
  const auto seconds = [&](const Strategy& strategy) {
    return predict_step(model, strategy, hardware, eight).seconds;
  };
  const double zero3 = seconds(Strategy::zero3());
  Strategy secondary = Strategy::zero3();
  secondary.reshard_group = 4;
  // Two of three passes over the network are left, by the formulas, in either case.
  CHECK(seconds(Strategy::hybrid(4)) < 0.8 * zero3);
  CHECK(seconds(secondary) < 0.8 * zero3);
  // A plan over two nodes has the hybrid row, and takes it where all fit.
  PlanRequest request;
  request.step.world = 8;
  const Plan plan = make_plan(model, hardware, request);
  REQUIRE(plan.strategies.size() == planned_strategies.size() + 1);
  CHECK(plan.strategies.back().strategy == Strategy::hybrid(4));
  CHECK(planned_group(hardware, request) == 4);
  request.shard_group = 2;
  CHECK(planned_group(hardware, request) == 2);
  request.step.world = 4;
  request.shard_group = 0;
  CHECK(planned_group(hardware, request) == 0);
}

TEST_CASE("slow links are exposed, prefetch hides them, and overlap off does not") {
  const PlannedModel model = model_of(small());
  Hardware hardware = ideal();
  // A block's gather takes half of its forward pass.
  const double block =
      4.0 * static_cast<double>(Layout(model.parameters[1].tensors, 4).padded_size());
  const PlannedWork& work = model.visits[1].forward;
  const double forward = (work.flops + work.attention_flops) / hardware.flops;
  hardware.topology.node.bandwidth = block * 3 / 4 / (forward / 2);
  const auto exposed = [&](int prefetch, bool overlap) {
    Strategy strategy = Strategy::zero3();
    strategy.prefetch = prefetch;
    strategy.overlap = overlap;
    return predict_step(model, strategy, hardware, four());
  };
  const StepPrediction hidden = exposed(1, true);
  const StepPrediction without = exposed(0, true);
  const StepPrediction serial = exposed(0, false);
  CHECK(hidden.exposed < without.exposed - 5 * forward / 2);
  CHECK(without.exposed < serial.exposed);
  CHECK_THAT(serial.seconds, WithinRel(serial.compute + serial.communication, 1e-9));
}

TEST_CASE("micro-batches that hold their gradient reduce it once") {
  const PlannedModel model = model_of(small());
  StepOptions options = four();
  options.micro_batches = 3;
  Strategy reduce = Strategy::zero2();
  Strategy hold = reduce;
  hold.accumulation = Accumulation::hold;
  const auto each = predict_step(model, reduce, ideal(), options).traffic;
  const auto once = predict_step(model, hold, ideal(), options).traffic;
  CHECK(each.reduce_scatter == 3 * once.reduce_scatter);
  CHECK(each.all_gather == once.all_gather);
}

TEST_CASE("gradients may be leased, sent and stored in types of their own") {
  const PlannedModel model = model_of(small(), DType::bf16);
  Strategy strategy = Strategy::zero3();
  strategy.lease = DType::bf16;
  strategy.gradient_lease = DType::f32;
  const StepPrediction wide = predict_step(model, strategy, ideal(), four());
  strategy.wire = DType::bf16;
  const StepPrediction narrow = predict_step(model, strategy, ideal(), four());
  CHECK(wide.traffic.reduce_scatter == 2 * narrow.traffic.reduce_scatter);
  CHECK(wide.traffic.all_gather == narrow.traffic.all_gather);
  PlanOptions options;
  options.world = 4;
  options.context.open_parameters = 2;
  CHECK(narrow.bytes == plan_memory(model.parameters, strategy, options).bytes);
}

TEST_CASE("update and casts take what their bytes take") {
  const PlannedModel model = model_of(small());
  Hardware hardware = ideal();
  hardware.processor.update_bandwidth = 1e9;
  const double elements = static_cast<double>(model.elements());
  const StepPrediction step = predict_step(model, Strategy::ddp(), hardware, StepOptions{});
  // AdamW: parameter and two moments in and out, the gradient in.
  CHECK_THAT(step.update, WithinRel(elements * 28 / 1e9, 1e-6));
  CHECK_THAT(predict_step(model, Strategy::zero1(), hardware, four()).update,
             WithinRel(elements * 28 / 1e9 / 4, 0.01));  // padding
}

TEST_CASE("a world of 100,000 is planned in less than a second") {
  TransformerShape shape = small();
  shape.layers = 32;
  shape.width = 4096;
  shape.heads = 32;
  const PlannedModel model = model_of(shape, DType::bf16);
  PlanRequest request;
  request.settings.lease = DType::bf16;
  request.step.world = 100'000;
  request.step.backend.nccl = NcclOrder::canonical;
  const std::clock_t begin = std::clock();  // the processor's time: others may use it, too
  const Plan plan = make_plan(model, ideal(), request);
  const std::clock_t taken = std::clock() - begin;
  CHECK(static_cast<double>(taken) / CLOCKS_PER_SEC < 1);
  for (const StrategyPlan& row : plan.strategies) {
    INFO(row.strategy.name());
    REQUIRE(row.step);
    CHECK(row.step->bytes == row.memory.bytes);
  }
}

TEST_CASE("the fastest that fits is recommended, the simplest of equals first") {
  const auto row = [](const char* name, double seconds, bool fits) {
    StrategyPlan plan;
    plan.strategy = Strategy::parse(name);
    plan.step.emplace();
    plan.step->seconds = seconds;
    plan.fits = fits;
    plan.spare = fits ? 1e9 : -3e9;
    return plan;
  };
  Plan plan;
  plan.strategies = {row("ddp", 1.0, false), row("zero1", 1.01, true), row("zero2", 1.0, true),
                     row("zero3", 1.5, true)};
  recommend(plan, 80);
  CHECK(plan.recommended == 1);
  CHECK_THAT(plan.reason, ContainsSubstring("within 2 %") && ContainsSubstring("zero2") &&
                              ContainsSubstring("ddp needs 3.0 GB more"));
  plan.strategies[1].step->seconds = 1.03;
  recommend(plan, 80);
  CHECK(plan.recommended == 2);
  CHECK_THAT(plan.reason, ContainsSubstring("zero2 is the fastest that fits"));
  for (StrategyPlan& each : plan.strategies) {
    each.step.reset();
  }
  recommend(plan, 80);
  CHECK(plan.recommended == 1);
  for (StrategyPlan& each : plan.strategies) {
    each.fits = false;
    each.spare = -1e9;
  }
  recommend(plan, 80'000'000'000);
  CHECK_FALSE(plan.recommended);
  CHECK_THAT(plan.reason, ContainsSubstring("no strategy fits into 80.0 GB") &&
                              ContainsSubstring("offload is not available"));
}

TEST_CASE("advice says what would make it fit") {
  const PlannedModel model = model_of(small());
  Hardware hardware = ideal();
  PlanRequest request;
  request.step.world = 2;
  const auto needed = [&](const char* name, int world) {
    PlanOptions options;
    options.world = world;
    options.context.open_parameters = 2;
    return static_cast<double>(
               plan_memory(model.parameters, Strategy::parse(name), options).peak()) +
           model.activation_bytes;
  };
  // zero2 fits on 8 devices, and not on 4.
  hardware.memory = static_cast<std::size_t>((needed("zero2", 4) + needed("zero2", 8)) / 2);
  const Plan plan = make_plan(model, hardware, request);
  CHECK_FALSE(plan.strategies[2].fits);
  CHECK_THAT(plan.strategies[2].advice, ContainsSubstring("fits on 8 devices"));
  CHECK_THAT(plan.strategies[0].advice, ContainsSubstring("zero1"));
  CHECK(plan.strategies[2].spare < 0);
}

TEST_CASE("advice says which setting would save most of what is waited for") {
  const PlannedModel model = model_of(small());
  Hardware hardware = ideal();
  hardware.memory = 0;
  hardware.topology.node.bandwidth = 2e9;
  PlanRequest request;
  request.step = four();
  request.step.micro_batches = 4;
  const Plan plan = make_plan(model, hardware, request);
  const StrategyPlan& zero2 = plan.strategies[2];
  Strategy holding = zero2.strategy;
  holding.accumulation = Accumulation::hold;
  const double saved =
      1 - predict_step(model, holding, hardware, request.step).seconds / zero2.step->seconds;
  REQUIRE(saved > 0.02);
  CHECK_THAT(zero2.advice, ContainsSubstring("reducing once") &&
                               ContainsSubstring(std::to_string(std::lround(100 * saved)) + " %"));
  request.step.micro_batches = 1;
  CHECK_THAT(make_plan(model, hardware, request).strategies[0].advice,
             ContainsSubstring("larger micro-batches"));
}

TEST_CASE("a step is not predicted from nothing") {
  const PlannedModel model = model_of(small());
  Hardware slow = ideal();
  slow.flops = 0;
  CHECK_THROWS_AS(predict_step(model, Strategy::ddp(), slow, four()), ConfigError);
  PlannedModel unused = model;
  unused.visits.clear();
  CHECK_THROWS_AS(predict_step(unused, Strategy::ddp(), ideal(), four()), ConfigError);
  PlannedModel in_place = model;
  in_place.parameters[1].options.residency = Residency::host_buffer;
  CHECK_THROWS_WITH(predict_step(in_place, Strategy::ddp(), ideal(), four()),
                    ContainsSubstring("in slots"));
  TransformerShape wrong = small();
  wrong.heads = 3;
  CHECK_THROWS_AS(model_of(wrong), UsageError);
}
