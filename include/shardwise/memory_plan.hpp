#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "comm/communicator.hpp"
#include "detail/engine.hpp"
#include "detail/registration.hpp"
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
  std::size_t landing = 0;  ///< landing and staging buffers of the communicator
  std::size_t scalars = 0;  ///< norms, flags and group scalars

  /// The highest sum of the four kinds: slots stay allocated, so it is their total.
  [[nodiscard]] std::size_t peak() const noexcept { return bytes.total(); }

  /// A table for people, one line a kind.
  [[nodiscard]] std::string describe() const {
    // Few kinds of arguments: each costs whoever includes this compile time.
    const auto kind = [](std::string_view name, std::size_t count) {
      return fmt::format("{:<16} {:>12.3f} MiB", name, static_cast<double>(count) / (1 << 20));
    };
    const auto slots_of = [](std::string_view name, std::size_t count, std::size_t each,
                             std::size_t dedicated) {
      return fmt::format("{} x {} B + {} B for {}", count, each, dedicated, name);
    };
    return kind("parameters", bytes.parameters) + '\n' + kind("gradients", bytes.gradients) + '\n' +
           kind("optimizer state", bytes.optimizer_state) + '\n' + kind("slots", bytes.slots) +
           " = " +
           slots_of("parameters", parameter_slots, parameter_slot_bytes, parameter_dedicated) +
           ", " + slots_of("gradients", gradient_slots, gradient_slot_bytes, gradient_dedicated) +
           fmt::format(", {} B landing, {} B scalars\n", landing, scalars) + kind("peak", peak()) +
           '\n';
  }
};

namespace detail {

/// Adds up the slots of one kind: `dedicated` units have their own, the rest share.
struct SlotArithmetic {
  std::size_t units = 0;
  std::size_t largest = 0;
  std::size_t dedicated = 0;

  void add(std::size_t bytes, bool own) noexcept {
    if (own) {
      dedicated += bytes;
    } else {
      largest = std::max(largest, bytes);
      ++units;
    }
  }
};

/// add(members, bytes) for each unit, in order.
template <class BytesOf, class Add>
void for_each_unit(std::span<const Registration* const> entries,
                   std::span<const std::size_t> unit_of, BytesOf bytes_of, Add add) {
  for (std::size_t i = 0; i < entries.size();) {
    std::size_t bytes = 0;
    std::size_t end = i;
    for (; end < entries.size() && unit_of[end] == unit_of[i]; ++end)
      bytes += bytes_of(*entries[end]);
    add(entries.subspan(i, end - i), bytes);
    i = end;
  }
}

/// The plan of a rank that registers these parameters, their gradients and states.
[[nodiscard]] inline MemoryPlan plan_memory(std::span<const Registration* const> entries,
                                            const Communicator& comm, const Strategy& strategy,
                                            const ContextOptions& options) {
  MemoryPlan plan;
  const auto world = static_cast<std::size_t>(comm.size());
  std::vector<const Registration*> trained;
  for (const Registration* entry : entries) {
    const std::size_t whole = entry->layout.padded_size();
    const std::size_t shard = entry->layout.shard_size();
    const bool whole_parameters = entry->strategy.parameters == Placement::replicated;
    const bool whole_gradients = entry->strategy.gradients == Placement::replicated;
    const bool whole_state = entry->strategy.optimizer_state == Placement::replicated;
    // The replicated copy is the storage where both have one type, and the shard a part of it.
    if (whole_parameters && entry->lease == entry->storage) {
      plan.bytes.parameters += whole * size_of(entry->storage);
    } else {
      plan.bytes.parameters += (whole_state ? whole : shard) * size_of(entry->storage);
      if (whole_parameters) plan.bytes.parameters += whole * size_of(entry->lease);
    }
    if (entry->gradient) {
      plan.bytes.gradients += (whole_gradients ? whole : shard) * size_of(*entry->gradient);
      trained.push_back(entry);
    }
    for (const DType type : entry->state) {
      plan.bytes.optimizer_state += (whole_state ? whole : shard) * size_of(type);
    }
  }

  SlotArithmetic parameters;
  for_each_unit(
      entries, group_parameters(entries),
      [](const Registration& entry) { return entry.lease_bytes(); },
      [&](std::span<const Registration* const> unit, std::size_t bytes) {
        if (unit[0]->strategy.parameters == Placement::replicated) return;
        parameters.add(bytes, !unit[0]->strategy.reshard_after_forward);
      });
  plan.parameter_slots = std::min(
      parameters.units, options.open_parameters + static_cast<std::size_t>(strategy.prefetch));
  if (strategy.max_live_bytes > 0 && parameters.largest > 0) {
    const std::size_t room =
        strategy.max_live_bytes - std::min(strategy.max_live_bytes, parameters.dedicated);
    plan.parameter_slots = std::min(plan.parameter_slots, room / parameters.largest);
  }
  plan.parameter_slot_bytes = plan.parameter_slots > 0 ? parameters.largest : 0;
  plan.parameter_dedicated = parameters.dedicated;

  SlotArithmetic gradients;
  for_each_unit(
      trained, group_gradients(trained),
      [](const Registration& entry) { return entry.gradient_slot_bytes(); },
      [&](std::span<const Registration* const> unit, std::size_t bytes) {
        std::size_t landing = 0;
        for (const Registration* entry : unit) {
          ReduceItem item{};
          item.count =
              entry->updates_shard() ? entry->layout.shard_size() : entry->layout.padded_size();
          item.dtype = entry->wire;
          item.spec.output = *entry->gradient;
          landing += comm.landing_bytes(item, entry->updates_shard());
        }
        plan.landing = std::max(plan.landing, landing);
        if (unit[0]->gradient_in_place()) return;
        gradients.add(bytes, unit[0]->tied || unit[0]->strategy.accumulation == Accumulation::hold);
      });
  plan.gradient_slots =
      std::min(gradients.units, options.open_gradients + (strategy.overlap ? 1u : 0u));
  plan.gradient_slot_bytes = plan.gradient_slots > 0 ? gradients.largest : 0;
  plan.gradient_dedicated = gradients.dedicated;

  plan.scalars = std::max<std::size_t>(4, trained.size()) * (world + 1) * sizeof(double);
  plan.bytes.slots = plan.parameter_slots * plan.parameter_slot_bytes + plan.parameter_dedicated +
                     plan.gradient_slots * plan.gradient_slot_bytes + plan.gradient_dedicated +
                     plan.landing + plan.scalars;
  return plan;
}

}  // namespace detail
}  // namespace shardwise::inline v0_1
