#pragma once

#include <functional>
#include <shardwise/plan/registered_model.hpp>
#include <shardwise/shardwise.hpp>
#include <vector>

#include "model.hpp"
#include "options.hpp"
#include "report.hpp"

namespace train_gpt {

/// The library's strategy for these options; shardwise::ConfigError where a name is unknown.
[[nodiscard]] shardwise::Strategy strategy_of(const Options& options);

/// The library's tensors for a unit's; matrices decay.
[[nodiscard]] std::vector<shardwise::TensorSpec> specs_of(const Unit& unit);

/// A tied unit's gradient stays open while those of others come and go.
[[nodiscard]] shardwise::ParameterOptions options_of(const Unit& unit);

[[nodiscard]] shardwise::AdamW adamw_of(const Options& options);

/// What a context counted in its last step.
void account(const shardwise::Statistics& statistics, const shardwise::Strategy& strategy,
             Report& report);
/// What it holds and planned.
void account(const shardwise::Bytes& held, std::size_t peak_held, const shardwise::MemoryPlan& plan,
             Report& report);
/// All of that, for a context of any device.
template <class Device>
void account(shardwise::Context<Device>& context, Report& report) {
  account(context.statistics(), context.strategy(), report);
  report.same_bits = context.strategy().keeps_bits(context.world());
  account(context.held(), context.peak_held(), plan_memory(context, context.strategy()), report);
}

/// The larger bytes of both reports.
void take_largest(Report& report, const Report& other);
/// The largest bytes of all ranks' reports.
void take_largest(Report& report, shardwise::Communicator& comm);

/// Runs `train` on every rank that the options name and that this process has, with a context of
/// its own; rank 0's report (or this process's), with the bytes of the largest rank.
[[nodiscard]] Report on_ranks(const Options& options,
                              const std::function<Report(shardwise::Context<>&)>& train);

}  // namespace train_gpt
