#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "../comm/simulated.hpp"
#include "../detail/address_range.hpp"
#include "../detail/engine.hpp"
#include "../detail/registration.hpp"
#include "../detail/shard_groups.hpp"
#include "../device/simulated_clock.hpp"
#include "../host_tensor.hpp"
#include "../layout.hpp"
#include "../memory_plan.hpp"
#include "../strategy.hpp"

namespace shardwise::inline v0_1 {

/// One parameter as a host will register it: ShardedParameter, ShardedGradient and
/// ShardedOptimizerState, without their memory.
struct PlannedParameter {
  std::vector<TensorSpec> tensors;
  ParameterOptions options = {};  ///< name, strategy, tied; slots, shared or host_buffer
  DType storage = DType::f32;
  std::optional<DType> gradient = DType::f32;  ///< type of the stored gradient; none: frozen
  std::vector<DType> state = {};               ///< types of the optimizer's values for each element
  /// Residency in_place: elements (of the lease type) from the beginning of the arena to each
  /// tensor. Empty: not in place. Arenas of the CPU alone: what a device maps is not planned.
  std::vector<std::size_t> offsets = {};
  /// slots, host_buffer, or in_place in an arena of its own with the same offsets.
  Residency gradient_residency = Residency::slots;
};

/// Where parameters will be registered.
struct PlanOptions {
  int world = 1;
  ContextOptions context = {};  ///< open_parameters and open_gradients count
  SimulatedBackend backend = {};
  std::size_t arena_elements = 0;  ///< of the arena of parameters, where they are in place
};

namespace detail {

/// The addresses that parameters in place have, relative to each other; nothing is below them.
struct PlannedArenas {
  std::unique_ptr<AddressRange> parameters;
  std::unique_ptr<AddressRange> gradients;

  [[nodiscard]] static AddressRange& of(std::unique_ptr<AddressRange>& arena, std::size_t bytes) {
    if (arena == nullptr) {
      arena =
          std::make_unique<AddressRange>(bytes, "planned", Recycling::move, Release::lazy, false);
    }
    return *arena;
  }
};

[[nodiscard]] inline Placed plan_place(AddressRange& arena, const Registration& entry,
                                       const std::vector<std::size_t>& offsets, DType type,
                                       bool recycle) {
  std::vector<HostTensor> tensors;
  for (std::size_t i = 0; i < entry.layout.tensors().size(); ++i) {
    const Layout::Tensor& tensor = entry.layout.tensors()[i];
    HostTensor placed(tensor.name, static_cast<float*>(nullptr), {tensor.count});
    placed.dtype = type;
    placed.data = arena.data() + offsets[i] * size_of(type);
    if (!arena.contains(placed.data, placed.bytes())) {
      raise("tensor '{}' does not lie in the planned arena: {} elements from {} on", tensor.name,
            tensor.count, offsets[i]);
    }
    tensors.push_back(std::move(placed));
  }
  return arena.claim(entry.name, tensors, recycle);
}

[[nodiscard]] inline Registration register_planned(const PlannedParameter& parameter,
                                                   const Strategy& strategy,
                                                   const PlanOptions& options,
                                                   PlannedArenas& arenas) {
  ParameterOptions own = parameter.options;
  if (!parameter.offsets.empty()) own.residency = Residency::in_place;
  Registration entry(parameter.tensors, options.world, parameter.storage, strategy, own);
  if (own.residency == Residency::in_place) {
    if (options.backend.nccl) {
      raise(
          "parameter '{}' is planned in place on a device: its driver maps memory in granules that "
          "a plan does not know; plan it in slots, or on the CPU",
          entry.name);
    }
    if (parameter.offsets.size() != entry.layout.tensors().size()) {
      raise("parameter '{}' in place has {} tensors, but {} offsets: one for each", entry.name,
            entry.layout.tensors().size(), parameter.offsets.size());
    }
    AddressRange& arena = PlannedArenas::of(
        arenas.parameters,
        checked_multiply(options.arena_elements, size_of(entry.lease), "bytes of the arena"));
    entry.placed = plan_place(arena, entry, parameter.offsets, entry.lease, entry.sharded());
  }
  entry.gradient = parameter.gradient;
  entry.state = parameter.state;
  if (!parameter.gradient) return entry;
  entry.gradient_residency = parameter.gradient_residency;
  if (entry.gradient_residency == Residency::in_place) {
    AddressRange& arena = PlannedArenas::of(
        arenas.gradients, checked_multiply(options.arena_elements, size_of(entry.gradient_lease),
                                           "bytes of the arena"));
    entry.gradient_placed = plan_place(arena, entry, parameter.offsets, entry.gradient_lease, true);
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
  detail::PlannedArenas arenas;
  std::vector<detail::Registration> entries;
  entries.reserve(parameters.size());
  for (const PlannedParameter& parameter : parameters) {
    entries.push_back(detail::register_planned(parameter, strategy, options, arenas));
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
