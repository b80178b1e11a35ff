#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "detail/engine.hpp"
#include "detail/registration.hpp"
#include "detail/shard_groups.hpp"
#include "detail/slot_plan.hpp"
#include "memory.hpp"

namespace shardwise::inline v0_1 {

/// What one rank will hold, from layouts alone; known before anything is allocated for a step.
/// Every rank holds the same.
struct MemoryPlan {
  Bytes bytes;
  std::size_t parameter_slots = 0;       ///< shared ones
  std::size_t parameter_slot_bytes = 0;  ///< of each
  std::size_t parameter_dedicated = 0;   ///< bytes of slots that stay with their parameter
  std::size_t gradient_slots = 0;
  std::size_t gradient_slot_bytes = 0;
  std::size_t gradient_dedicated = 0;
  std::size_t sharers = 1;            ///< ranks that hold what follows together (residency shared)
  std::size_t shared_storage = 0;     ///< bytes of parameters at rest, of all of them
  std::size_t shared_slots = 0;       ///< slots of leases that are not of the storage type,
  std::size_t shared_slot_bytes = 0;  ///< of each,
  std::size_t shared_dedicated = 0;   ///< and bytes of those that stay with their parameter
  std::size_t parameter_pages = 0;    ///< bytes that arenas' parameters borrow (residency in_place)
  std::size_t gradient_pages = 0;
  std::size_t landing = 0;   ///< landing and staging buffers of the communicator
  std::size_t partials = 0;  ///< sums of a shard group on their way to those of the others
  std::size_t scalars = 0;   ///< norms, flags and group scalars

  /// The highest sum of all kinds: slots stay allocated, so it is their total.
  [[nodiscard]] std::size_t peak() const noexcept { return bytes.total(); }

  /// A table for people, one line a kind.
  [[nodiscard]] std::string describe() const {
    // Few kinds of arguments: each costs whoever includes this compile time.
    const auto kind = [](std::string_view name, std::size_t count) {
      return detail::format("{:<16} {:>12.3f} MiB", name, static_cast<double>(count) / (1 << 20));
    };
    const auto slots_of = [](std::string_view name, std::size_t count, std::size_t each,
                             std::size_t dedicated) {
      return detail::format("{} x {} B + {} B for {}", count, each, dedicated, name);
    };
    return kind("parameters", bytes.parameters) + '\n' + kind("gradients", bytes.gradients) + '\n' +
           kind("optimizer state", bytes.optimizer_state) + '\n' + kind("slots", bytes.slots) +
           " = " +
           slots_of("parameters", parameter_slots, parameter_slot_bytes, parameter_dedicated) +
           ", " + slots_of("gradients", gradient_slots, gradient_slot_bytes, gradient_dedicated) +
           detail::format(", {} + {} B pages for arenas, {} B landing", parameter_pages,
                          gradient_pages, landing) +
           detail::format(", {} B partial sums, {} B scalars\n", partials, scalars) +
           kind("crumbs", bytes.crumbs) + '\n' + kind("peak", peak()) + '\n' + describe_shared();
  }

 private:
  [[nodiscard]] std::string describe_shared() const {
    if (shared_storage == 0) return {};
    return detail::format("shared by {} ranks, of which each has 1/{} above: {} B of parameters, ",
                          sharers, sharers, shared_storage) +
           detail::format("{} x {} B + {} B of casts\n", shared_slots, shared_slot_bytes,
                          shared_dedicated);
  }
};

namespace detail {

/// The plan of a rank that registers these parameters, their gradients and states.
[[nodiscard]] inline MemoryPlan plan_memory(std::span<const Registration* const> entries,
                                            const ShardGroups& groups, const Strategy& strategy,
                                            const ContextOptions& options) {
  MemoryPlan plan;
  const auto world = static_cast<std::size_t>(groups.world());
  std::vector<const Registration*> trained;
  for (const Registration* entry : entries) {
    const std::size_t whole = entry->layout.padded_size();
    const std::size_t shard = entry->shard_size();
    const bool whole_gradients = entry->strategy.gradients == Placement::replicated;
    const bool whole_state = entry->strategy.optimizer_state == Placement::replicated;
    plan.bytes.parameters +=
        entry->storage_bytes() + entry->copy_bytes() + entry->secondary_bytes();
    if (entry->residency == Residency::shared) {
      plan.shared_storage += whole * size_of(entry->storage);
    }
    if (entry->sharded()) plan.bytes.crumbs += entry->placed.crumb_bytes();
    if (entry->gradient) {
      plan.bytes.gradients += (whole_gradients ? whole : shard) * size_of(*entry->gradient);
      plan.bytes.crumbs += entry->gradient_placed.crumb_bytes();
      trained.push_back(entry);
    }
    plan.bytes.optimizer_state += (whole_state ? whole : shard) * entry->state.bytes();
  }

  const Slots parameters = plan_parameter_slots(entries, strategy, options);
  plan.parameter_slots = parameters.buffers.count;
  plan.parameter_slot_bytes = parameters.buffers.count > 0 ? parameters.buffers.largest : 0;
  plan.parameter_dedicated = parameters.buffers.dedicated;
  plan.sharers = parameters.sharers;
  plan.shared_slots = parameters.shared.largest > 0 ? parameters.shared.count : 0;
  plan.shared_slot_bytes = plan.shared_slots > 0 ? parameters.shared.largest : 0;
  plan.shared_dedicated = parameters.shared.dedicated;
  plan.parameter_pages = parameters.pages.bytes();
  const GradientSlots gradients = plan_gradient_slots(trained, groups, strategy, options);
  plan.gradient_slots = gradients.slots.buffers.count;
  plan.gradient_slot_bytes =
      gradients.slots.buffers.count > 0 ? gradients.slots.buffers.largest : 0;
  plan.gradient_dedicated = gradients.slots.buffers.dedicated;
  plan.gradient_pages = gradients.slots.pages.bytes();
  plan.landing = gradients.landing;
  plan.partials = gradients.partials;
  plan.scalars = std::max<std::size_t>(4, trained.size()) * (world + 1) * sizeof(double);
  plan.bytes.slots =
      parameters.bytes() + gradients.slots.bytes() + plan.landing + plan.partials + plan.scalars;
  return plan;
}

}  // namespace detail
}  // namespace shardwise::inline v0_1
