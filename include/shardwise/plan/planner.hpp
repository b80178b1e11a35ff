#pragma once

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "hardware.hpp"
#include "memory.hpp"
#include "model.hpp"
#include "step.hpp"

namespace shardwise::inline v0_1 {

/// The strategies that a planner compares, simplest first; where there are several nodes, hybrid
/// sharding within them is one more.
inline constexpr std::array<std::string_view, 5> planned_strategies{"ddp", "zero1", "zero2",
                                                                    "zero3", "zero3-no-reshard"};

/// The strategy of this name with everything else as in `settings`; ConfigError where there is
/// none. What it replicates everywhere is not shared.
[[nodiscard]] inline Strategy with_placements_of(std::string_view name, Strategy settings) {
  const Strategy named = Strategy::parse(name);
  settings.parameters = named.parameters;
  settings.gradients = named.gradients;
  settings.optimizer_state = named.optimizer_state;
  settings.reshard_after_forward = named.reshard_after_forward;
  settings.shard_group = named.shard_group;
  settings.reshard_group = named.reshard_group;
  if (settings.optimizer_state == Placement::replicated) settings.residency = Residency::slots;
  return settings;
}

/// One strategy's row of a plan.
struct StrategyPlan {
  Strategy strategy;
  MemoryPlan memory;
  double activation_bytes = 0;  ///< an estimate; 0: not known
  /// None where the model's use or the hardware is not known.
  std::optional<StepPrediction> step;
  bool fits = true;    ///< what is known of the bytes, beside `reserved`
  double spare = 0;    ///< bytes left, below 0 where it does not fit
  std::string advice;  ///< what would make it fit, or faster; may be empty

  /// Bytes of what is known: the library's, and activations.
  [[nodiscard]] double needed() const noexcept {
    return static_cast<double>(memory.peak()) + activation_bytes;
  }
};

/// All strategies, and the one to take.
struct Plan {
  std::vector<StrategyPlan> strategies;    ///< in the order of planned_strategies, then hybrid
  std::optional<std::size_t> recommended;  ///< index; none fits: none
  std::string reason;
};

/// What a plan is made for.
struct PlanRequest {
  /// What all strategies have in common: types, prefetch, buckets, accumulation, ... Placements and
  /// reshard_after_forward are those of each strategy.
  Strategy settings;
  StepOptions step;
  std::size_t reserved = 0;  ///< bytes of a device that are not to be counted on
  int shard_group = 0;       ///< of the hybrid strategy; 0: the devices of a node
  /// Slots are known: false where the model's parameters are not its real ones, but their sum.
  bool knows_slots = true;
};

namespace detail {

[[nodiscard]] inline std::string decimal_bytes(double bytes) {
  if (bytes >= 1e9) return format("{:.1f} GB", bytes / 1e9);
  if (bytes >= 1e6) return format("{:.1f} MB", bytes / 1e6);
  return format("{:.0f} kB", bytes / 1e3);
}

[[nodiscard]] inline MemoryPlan plan_of(const PlannedModel& model, const Strategy& strategy,
                                        const PlanRequest& request, int world) {
  PlanOptions options;
  options.world = world;
  options.context.open_parameters = model.open_parameters();
  options.backend = request.step.backend;
  MemoryPlan plan = shardwise::plan_memory(model.parameters, strategy, options);
  if (!request.knows_slots) plan.bytes.slots = 0;
  return plan;
}

// The smallest multiple of the world, by doubling, on which the strategy fits; 0: none does.
[[nodiscard]] inline int world_that_fits(const PlannedModel& model, const StrategyPlan& row,
                                         const PlanRequest& request, double room) {
  for (int world = request.step.world; world <= (1 << 20); world *= 2) {
    const MemoryPlan plan = plan_of(model, row.strategy, request, world);
    if (static_cast<double>(plan.peak()) + row.activation_bytes <= room) return world;
  }
  return 0;
}

[[nodiscard]] inline std::string advise(const PlannedModel& model, const StrategyPlan& row,
                                        const PlanRequest& request, double room) {
  if (!row.fits) {
    const Strategy& strategy = row.strategy;
    if (row.activation_bytes > room / 2) {
      return "its activations alone are most of it: smaller micro-batches, or recompute them";
    }
    const int world = strategy.optimizer_state == Placement::sharded
                          ? world_that_fits(model, row, request, room)
                          : 0;
    if (world > 0) return format("fits on {} devices", world);
    if (strategy.optimizer_state == Placement::replicated) return "shard more: zero1 and beyond";
    if (strategy.shard_group > 0) return "shard over larger groups, or over all devices (zero3)";
    if (strategy.parameters == Placement::replicated) {
      return "no number of devices is enough: shard the parameters, too (zero3)";
    }
    if (!strategy.reshard_after_forward) {
      return "no number of devices is enough: it keeps every parameter gathered (zero3 does not)";
    }
    return "no number of devices is enough: slots hold whole units, so use smaller ones";
  }
  return {};
}

/// What a setting would save of a step that waits for much of its time; empty where none does.
template <std::same_as<PlannedModel> Model>
[[nodiscard]] std::string advise_faster(const Model& model, const Hardware& hardware,
                                        const StrategyPlan& row, const PlanRequest& request,
                                        double room) {
  const double exposed = row.step->exposed / row.step->seconds;
  if (exposed < 0.1) return {};
  double best = row.step->seconds * 0.98;
  std::string change;
  const auto consider = [&](const Strategy& strategy, const std::string& what) {
    const MemoryPlan plan = plan_of(model, strategy, request, request.step.world);
    if (hardware.memory > 0 && static_cast<double>(plan.peak()) + row.activation_bytes > room) {
      return;
    }
    const double seconds = predict_step(model, strategy, hardware, request.step).seconds;
    if (seconds >= best) return;
    best = seconds;
    change = format("{} saves {:.0f} %", what, 100 * (1 - seconds / row.step->seconds));
  };
  if (row.strategy.optimizer_state == Placement::sharded) {  // else nothing is gathered
    for (const int prefetch : {2, 4}) {
      Strategy ahead = row.strategy;
      ahead.prefetch = prefetch;
      if (prefetch > row.strategy.prefetch) consider(ahead, format("prefetch {}", prefetch));
    }
  }
  if (request.step.micro_batches > 1 && row.strategy.accumulation == Accumulation::reduce) {
    Strategy holding = row.strategy;
    holding.accumulation = Accumulation::hold;
    consider(holding, "reducing once (accumulation: hold)");
  }
  return format("waits for {:.0f} % of the step; {}", 100 * exposed,
                change.empty() ? "larger micro-batches, or more of them held, hide it" : change);
}

}  // namespace detail

/// The fastest strategy that fits; of those that are within 2 % of it the simplest, in the order of
/// the plan. Where no times are predicted the first that fits.
inline void recommend(Plan& plan, std::size_t device_memory) {
  constexpr double equal = 1.02;
  std::string misses;
  std::optional<std::size_t> fastest;
  for (std::size_t i = 0; i < plan.strategies.size(); ++i) {
    const StrategyPlan& row = plan.strategies[i];
    if (!row.fits) {
      misses += detail::format("{}{} needs {} more", misses.empty() ? "" : ", ",
                               row.strategy.name(), detail::decimal_bytes(-row.spare));
      continue;
    }
    const bool faster =
        !fastest || (row.step && row.step->seconds < plan.strategies[*fastest].step->seconds);
    if (faster) fastest = i;
  }
  plan.recommended.reset();
  if (!fastest) {
    plan.reason = detail::format("no strategy fits into {}: {}; offload is not available",
                                 detail::decimal_bytes(static_cast<double>(device_memory)), misses);
    return;
  }
  std::size_t best = *fastest;
  if (plan.strategies[best].step) {
    for (std::size_t i = 0; i < best; ++i) {
      const StrategyPlan& row = plan.strategies[i];
      if (!row.fits || row.step->seconds > equal * plan.strategies[*fastest].step->seconds) {
        continue;
      }
      best = i;
      break;
    }
  }
  const StrategyPlan& row = plan.strategies[best];
  plan.recommended = best;
  if (!row.step) {
    plan.reason = detail::format("{} is the simplest that fits, by the bytes that are known",
                                 row.strategy.name());
  } else if (best == *fastest) {
    plan.reason = detail::format("{} is the fastest that fits, {:.1f} ms a step",
                                 row.strategy.name(), 1e3 * row.step->seconds);
  } else {
    plan.reason = detail::format(
        "{} is the simplest that fits and within 2 % of the fastest ({}), {:.1f} ms a step",
        row.strategy.name(), plan.strategies[*fastest].strategy.name(), 1e3 * row.step->seconds);
  }
  if (!misses.empty()) plan.reason += "; " + misses;
}

/// The size of the groups that a hybrid strategy shards within, or 0 where that is none: one node
/// has all the devices, or nodes do not divide them.
[[nodiscard]] inline int planned_group(const Hardware& hardware, const PlanRequest& request) {
  const int world = request.step.world;
  const int group =
      request.shard_group > 0 ? request.shard_group : hardware.topology.devices_per_node;
  return group > 1 && group < world && world % group == 0 ? group : 0;
}

/// Every strategy for this model on this hardware, with a recommendation. Errors as plan_memory and
/// predict_step.
template <std::same_as<PlannedModel> Model>
[[nodiscard]] Plan make_plan(const Model& model, const Hardware& hardware,
                             const PlanRequest& request) {
  Plan plan;
  const double room = static_cast<double>(hardware.memory) - static_cast<double>(request.reserved);
  std::vector<std::string> names(planned_strategies.begin(), planned_strategies.end());
  if (const int group = planned_group(hardware, request); group > 0) {
    names.push_back(Strategy::hybrid(group).name());
  }
  for (const std::string& name : names) {
    StrategyPlan row;
    row.strategy = with_placements_of(name, request.settings);
    row.memory = detail::plan_of(model, row.strategy, request, request.step.world);
    row.activation_bytes = model.activation_bytes;
    row.spare = room - row.needed();
    row.fits = hardware.memory == 0 || row.spare >= 0;
    if (!model.visits.empty() && hardware.flops > 0) {
      row.step = predict_step(model, row.strategy, hardware, request.step);
    }
    row.advice = detail::advise(model, row, request, room);
    if (row.fits && row.step) {
      row.advice = detail::advise_faster(model, hardware, row, request, room);
    }
    plan.strategies.push_back(std::move(row));
  }
  recommend(plan, hardware.memory);
  return plan;
}

}  // namespace shardwise::inline v0_1
