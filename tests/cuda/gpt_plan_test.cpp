// What cuda_gpt holds on its devices is what two planners say: one that knows the model's
// description alone, and one that asks the live context.
#include <catch2/catch_test_macros.hpp>
#include <cstddef>
#include <shardwise/plan/planner.hpp>
#include <string>

#include "../../examples/cuda_gpt/trainer.hpp"
#include "../../examples/plan/planned_gpt.hpp"
#include "../../examples/train_gpt/sharding.hpp"
#include "gpt_worlds.hpp"

namespace {

void check(const train_gpt::Bytes& planned, const train_gpt::Bytes& held) {
  CHECK(planned.parameters == held.parameters);
  CHECK(planned.gradients == held.gradients);
  CHECK(planned.optimizer_state == held.optimizer_state);
  CHECK(planned.slots == held.slots);
  CHECK(planned.peak == held.peak);
}

shardwise::MemoryPlan plan_of(const cuda_gpt::Options& options) {
  shardwise::PlannedModel model = plan::planned_gpt(options);
  for (auto& parameter : model.parameters) parameter.gradient = shardwise::DType::f32;
  shardwise::PlanOptions where;
  where.world = static_cast<int>(options.ranks);
  where.context.open_parameters = 2;
  where.backend.nccl =
      options.fast_reductions ? shardwise::NcclOrder::fast : shardwise::NcclOrder::canonical;
  return plan_memory(model.parameters, train_gpt::strategy_of(options), where);
}

}  // namespace

TEST_CASE("cuda_gpt holds what its plans say, with every strategy") {
  cuda_gpt::Options options;
  options.layers = 2;
  options.width = 32;
  options.heads = 2;
  options.sequence = 8;
  options.batch = 12;
  options.steps = 1;
  options.quiet = true;
  for (const auto name : shardwise::planned_strategies) {
    for (const std::size_t ranks : shardwise::test::gpt_worlds()) {
      options.strategy = name;
      options.ranks = ranks;
      for (const bool other : {false, true}) {
        options.lease = other ? "bf16" : "fp32";
        options.fast_reductions = other;
        INFO(name << " ranks " << ranks << " lease " << options.lease);
        const train_gpt::Report slots = cuda_gpt::train_in_threads(options);
        check(slots.planned_bytes_per_rank, slots.bytes_per_rank);
        const shardwise::MemoryPlan plan = plan_of(options);
        check({plan.bytes.parameters, plan.bytes.gradients, plan.bytes.optimizer_state,
               plan.bytes.slots, plan.peak()},
              slots.bytes_per_rank);
        options.in_place = true;
        const train_gpt::Report arenas = cuda_gpt::train_in_threads(options);
        options.in_place = false;
        check(arenas.planned_bytes_per_rank, arenas.bytes_per_rank);
        CHECK(arenas.bytes_per_rank.peak != slots.bytes_per_rank.peak);
      }
    }
  }
}
