#include "sharding.hpp"

#include <algorithm>
#include <shardwise/comm/collectives.hpp>
#include <shardwise/comm/self.hpp>
#include <shardwise/comm/thread.hpp>
#include <stdexcept>

#include "monitoring.hpp"

namespace train_gpt {
namespace {

shardwise::DType type_of(const std::string& name) {
  if (name == "bf16") return shardwise::DType::bf16;
  if (name == "f16") return shardwise::DType::f16;
  return shardwise::DType::f32;
}

void take_largest(Bytes& bytes, const Bytes& other) {
  bytes.parameters = std::max(bytes.parameters, other.parameters);
  bytes.gradients = std::max(bytes.gradients, other.gradients);
  bytes.optimizer_state = std::max(bytes.optimizer_state, other.optimizer_state);
  bytes.slots = std::max(bytes.slots, other.slots);
  bytes.peak = std::max(bytes.peak, other.peak);
}

Bytes to_bytes(const shardwise::Bytes& bytes, std::size_t peak) {
  return {bytes.parameters, bytes.gradients, bytes.optimizer_state, bytes.slots, peak};
}

}  // namespace

shardwise::Strategy strategy_of(const Options& options) {
  if (options.strategy_of_file) return *options.strategy_of_file;
  shardwise::Strategy strategy = shardwise::Strategy::parse(options.strategy);
  if (options.shard_group > 0) strategy.shard_group = static_cast<int>(options.shard_group);
  if (options.residency == "shared") strategy.residency = shardwise::Residency::shared;
  strategy.lease = type_of(options.lease);
  strategy.prefetch = static_cast<int>(options.prefetch);
  strategy.accumulation = options.accumulate == Accumulate::hold ? shardwise::Accumulation::hold
                                                                 : shardwise::Accumulation::reduce;
  return strategy;
}

std::vector<shardwise::TensorSpec> specs_of(const Unit& unit) {
  std::vector<shardwise::TensorSpec> specs;
  for (const Tensor& tensor : unit) {
    shardwise::TensorSpec spec{tensor.name, {tensor.shape.begin(), tensor.shape.end()}};
    spec.options.weight_decay = tensor.decays() ? 1 : 0;
    specs.push_back(std::move(spec));
  }
  return specs;
}

shardwise::ParameterOptions options_of(const Unit& unit) { return {.tied = unit.tied}; }

shardwise::AdamW adamw_of(const Options& options) {
  return {.learning_rate = options.learning_rate,
          .beta1 = options.beta1,
          .beta2 = options.beta2,
          .epsilon = options.epsilon,
          .weight_decay = options.weight_decay};
}

void account(const shardwise::Statistics& statistics, const shardwise::Strategy& strategy,
             Report& report) {
  const shardwise::Traffic& traffic = statistics.traffic;
  report.traffic_per_step = {{traffic.all_gather, traffic.all_gather_calls},
                             {traffic.reduce_scatter, traffic.reduce_scatter_calls},
                             {traffic.all_reduce, traffic.all_reduce_calls}};
  report.bytes_moved_per_step = statistics.bytes_moved();
  report.strategy = strategy.name();
  report.residency = name_of(strategy.residency);
  report.scalars_per_step = traffic.scalar_calls;
}

void account(const shardwise::Bytes& held, std::size_t peak_held, const shardwise::MemoryPlan& plan,
             Report& report) {
  report.bytes_per_rank = to_bytes(held, peak_held);
  report.planned_bytes_per_rank = to_bytes(plan.bytes, plan.peak());
}

void take_largest(Report& report, const Report& other) {
  take_largest(report.bytes_per_rank, other.bytes_per_rank);
  take_largest(report.planned_bytes_per_rank, other.planned_bytes_per_rank);
}

void take_largest(Report& report, shardwise::Communicator& comm) {
  for (Bytes* bytes : {&report.bytes_per_rank, &report.planned_bytes_per_rank}) {
    for (std::size_t* number : {&bytes->parameters, &bytes->gradients, &bytes->optimizer_state,
                                &bytes->slots, &bytes->peak}) {
      *number = shardwise::max(comm, *number, {"largest"});
    }
  }
}

Report on_ranks(const Options& options, const std::function<Report(shardwise::Context<>&)>& train) {
  const auto on_rank = [&](shardwise::Communicator& comm) {
    // The head reads the embedding beside the final norm: two parameters open at once.
    const auto monitor = make_monitor(options);
    shardwise::Context<> context(comm, strategy_of(options),
                                 {.open_parameters = 2,
                                  .observer = monitor.get(),
                                  .overlap_from = options.overlap_from,
                                  .slot_memory = options.slot_memory});
    Report report = train(context);
    finish_monitor(options, comm, monitor.get());
    return report;
  };
  if (options.communicator != nullptr) {
    Report report = on_rank(*options.communicator);
    take_largest(report, *options.communicator);
    return report;
  }
  if (options.backend == "self") {
    if (options.ranks != 1)
      throw std::invalid_argument("--backend self is one rank: add --ranks 1");
    shardwise::SelfCommunicator self;
    return on_rank(self);
  }
  std::vector<Report> reports(options.ranks);
  shardwise::run_ranks(static_cast<int>(options.ranks), [&](shardwise::Communicator& comm) {
    reports[static_cast<std::size_t>(comm.rank())] = on_rank(comm);
  });
  for (const Report& other : reports) take_largest(reports[0], other);
  return reports[0];
}

}  // namespace train_gpt
