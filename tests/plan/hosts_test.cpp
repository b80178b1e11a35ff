// The bytes of a plan against those of the examples that live in their own memory.
#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cstddef>
#include <shardwise/plan/planner.hpp>
#include <string>
#include <vector>

#include "../examples/flat_host/gpt.hpp"
#include "../examples/flat_host/train.hpp"

namespace {

// flat_host's units as a plan has them: tensors at their places in one arena.
std::vector<shardwise::PlannedParameter> planned(const flat_host::Config& config,
                                                 std::size_t& elements) {
  flat_host::TensorInfo table[flat_host::tensor_count];
  elements = flat_host::describe_parameters(&config, table);
  std::size_t begin[flat_host::tensor_count];
  std::size_t next = 0;
  for (std::size_t t = 0; t < flat_host::tensor_count; ++t) {
    begin[t] = next;
    next += table[t].count;
  }
  const auto unit = [&](std::size_t first, std::size_t end, std::size_t layer) {
    shardwise::PlannedParameter parameter;
    for (std::size_t t = first; t < end; ++t) {
      const std::size_t count = table[t].rows * table[t].columns;
      shardwise::TensorSpec spec{table[t].name, {table[t].rows, table[t].columns}};
      spec.options.weight_decay = table[t].decays ? 1 : 0;
      parameter.tensors.push_back(std::move(spec));
      parameter.offsets.push_back(begin[t] + layer * count);
    }
    parameter.state = {shardwise::DType::f32, shardwise::DType::f32};
    parameter.gradient_residency = shardwise::Residency::in_place;
    return parameter;
  };
  std::size_t end = flat_host::first_stacked;
  while (end < flat_host::tensor_count && table[end].layers > 0) ++end;
  std::vector<shardwise::PlannedParameter> result;
  result.push_back(unit(0, flat_host::first_stacked, 0));
  result.back().options.tied = true;
  for (std::size_t layer = 0; layer < config.layers; ++layer) {
    result.push_back(unit(flat_host::first_stacked, end, layer));
  }
  result.push_back(unit(end, flat_host::tensor_count, 0));
  return result;
}

}  // namespace

TEST_CASE("flat_host holds in its arenas what its plan says, with every strategy") {
  for (const auto name : shardwise::planned_strategies) {
    for (const std::size_t ranks : {1u, 2u, 3u, 4u, 7u}) {
      flat_host::Options options;
      options.config = {.layers = 3, .channels = 128, .heads = 4, .sequence = 16};
      options.ranks = ranks;
      options.batch = ranks;
      options.steps = 1;
      options.quiet = true;
      const std::string strategy_name(name);
      options.strategy = strategy_name.c_str();
      const flat_host::Result result = flat_host::sharded::train(options);
      shardwise::PlanOptions where;
      where.world = static_cast<int>(ranks);
      where.context.open_parameters = 2;
      const auto parameters = planned(options.config, where.arena_elements);
      shardwise::Strategy strategy = shardwise::Strategy::parse(name);
      strategy.prefetch = 0;
      const shardwise::Bytes plan = shardwise::plan_memory(parameters, strategy, where).bytes;
      INFO(name << " ranks " << ranks);
      CHECK(plan == result.bytes);
      CHECK(result.planned == result.bytes);  // by the host's own context
    }
  }
}
