#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../comm/simulated.hpp"
#include "../detail/engine.hpp"
#include "../detail/registration.hpp"
#include "../detail/shard_groups.hpp"
#include "../device/simulated_clock.hpp"
#include "../layout.hpp"
#include "../memory_plan.hpp"
#include "../strategy.hpp"
#include "planned_arena.hpp"

namespace shardwise::inline v0_1 {

/// One parameter as a host will register it: ShardedParameter, ShardedGradient and
/// ShardedOptimizerState, without their memory.
struct PlannedParameter {
  std::vector<TensorSpec> tensors;
  ParameterOptions options = {};  ///< name, strategy, tied; slots, shared or host_buffer
  DType storage = DType::f32;
  std::optional<DType> gradient = DType::f32;  ///< type of the stored gradient; none: frozen
  std::vector<DType> state = {};               ///< types of the optimizer's values for each element
  /// Residency in_place, also where ranks share the arena (options.residency = shared): elements
  /// (of the lease type) from the beginning of the arena to each tensor. Empty: in no arena.
  std::vector<std::size_t> offsets = {};
  /// slots, host_buffer, or in_place in an arena of its own with the same offsets.
  Residency gradient_residency = Residency::slots;
  bool late = false;  ///< registered after the first gather: it shares no collective
  bool gradient_late = false;
};

/// Where parameters will be registered.
struct PlanOptions {
  int world = 1;
  ContextOptions context = {};  ///< open_parameters and open_gradients count
  SimulatedBackend backend = {};
  std::size_t arena_elements = 0;  ///< of the arena of parameters, where they are in place
  /// Where they are so on devices: bytes that the driver maps at once. 0: with NCCL 2 MiB, as
  /// CUDA's has them, else pages of the CPU.
  std::size_t granule = 0;
};

/// Both by kind, one line each, and whether they are the same: for people.
[[nodiscard]] inline std::string compare_bytes(const Bytes& planned, const Bytes& held) {
  std::string text = detail::format("{:<16} {:>14} {:>14}\n", "bytes of a rank", "planned", "held");
  const auto line = [&](std::string_view kind, std::size_t of_plan, std::size_t of_rank) {
    text += detail::format("{:<16} {:>14} {:>14}\n", kind, of_plan, of_rank);
  };
  line("parameters", planned.parameters, held.parameters);
  line("gradients", planned.gradients, held.gradients);
  line("optimizer state", planned.optimizer_state, held.optimizer_state);
  line("slots", planned.slots, held.slots);
  line("crumbs", planned.crumbs, held.crumbs);
  line("all", planned.total(), held.total());
  return text +
         (planned == held ? "What is held was planned.\n" : "What is held was NOT planned.\n");
}

namespace detail {

/// Where parameters in place lie, and their gradients.
struct PlannedArenas {
  explicit PlannedArenas(const PlanOptions& options)
      : parameters(options.arena_elements, granule_of(options)),
        gradients(options.arena_elements, granule_of(options)) {}

  PlannedArena parameters;
  PlannedArena gradients;

 private:
  [[nodiscard]] static std::size_t granule_of(const PlanOptions& options) noexcept {
    if (options.granule > 0) return options.granule;
    return options.backend.nccl ? std::size_t{2} << 20 : 0;
  }
};

[[nodiscard]] inline Registration register_planned(const PlannedParameter& parameter,
                                                   const Strategy& strategy,
                                                   const PlanOptions& options,
                                                   Strategies& strategies, PlannedArenas& arenas) {
  ParameterOptions own = parameter.options;
  const bool is_shared = own.residency == Residency::shared;
  if (!parameter.offsets.empty() && !is_shared) own.residency = Residency::in_place;
  Registration entry(parameter.tensors, options.world, parameter.storage, strategy, own,
                     strategies);
  const bool in_arena =
      own.residency == Residency::in_place || parameter.gradient_residency == Residency::in_place;
  if ((in_arena || !parameter.offsets.empty()) &&
      parameter.offsets.size() != entry.layout.tensors().size()) {
    raise("parameter '{}' in place has {} tensors, but {} offsets: one for each", entry.name(),
          entry.layout.tensors().size(), parameter.offsets.size());
  }
  if (is_shared && !parameter.offsets.empty() && entry.lease != entry.storage) {
    raise("parameter '{}' in a shared arena is {}, so its leases are, not {}", entry.name(),
          name_of(entry.storage), name_of(entry.lease));
  }
  if (own.residency == Residency::in_place) {
    entry.placed = arenas.parameters.place(entry, parameter.offsets, entry.lease, entry.sharded());
  }
  entry.late = parameter.late;
  entry.gradient_late = parameter.gradient_late;
  entry.gradient = parameter.gradient;
  entry.state = TypeCounts(parameter.state);
  if (!parameter.gradient) return entry;
  entry.gradient_residency = parameter.gradient_residency;
  if (entry.gradient_residency == Residency::in_place) {
    entry.gradient_placed =
        arenas.gradients.place(entry, parameter.offsets, entry.gradient_lease, true);
  }
  return entry;
}

}  // namespace detail

/// What each rank holds that registers these parameters, in this order, once every slot is
/// allocated: what Context::plan() and Context::held() say there, to the byte. Allocates none of
/// it. UsageError or ConfigError where the registration would be refused.
[[nodiscard]] inline MemoryPlan plan_memory(std::span<const PlannedParameter> parameters,
                                            const Strategy& strategy, const PlanOptions& options) {
  strategy.validate();
  static_cast<void>(strategy.in_world(options.world));
  SimulatedClock clock{Processor{}};
  SimulatedCommunicator comm(clock, options.world, Topology{}, options.backend);
  detail::PlannedArenas arenas(options);
  detail::Strategies strategies;
  std::vector<detail::Registration> entries;
  entries.reserve(parameters.size());
  for (const PlannedParameter& parameter : parameters) {
    entries.push_back(detail::register_planned(parameter, strategy, options, strategies, arenas));
  }
  std::vector<const detail::Registration*> list;
  detail::ShardGroups groups(comm);
  for (const detail::Registration& entry : entries) {
    list.push_back(&entry);
    groups.make(entry.group_size(), options.context.timeout);
  }
  return detail::plan_memory(list, groups, strategy, options.context);
}

}  // namespace shardwise::inline v0_1
