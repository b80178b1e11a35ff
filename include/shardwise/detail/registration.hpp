#pragma once

#include <algorithm>
#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "../core/dtype.hpp"
#include "../layout.hpp"
#include "../strategy.hpp"

namespace shardwise::inline v0_1::detail {

/// What a Context and a plan know of one parameter: everything that decides who holds how many
/// bytes of it.
struct Registration {
  Registration(std::vector<TensorSpec> tensors, int world, DType type,
               const Strategy& default_strategy, ParameterOptions options)
      : layout(std::move(tensors), world),
        storage(type),
        strategy(options.strategy.value_or(default_strategy)),
        tied(options.tied),
        name(std::move(options.name)) {
    if (name.empty() && !layout.tensors().empty()) {
      const auto all = layout.tensors();
      name = all.size() == 1 ? all[0].name : fmt::format("{} (+{})", all[0].name, all.size() - 1);
    }
    strategy.validate();
    if (layout.size() < strategy.persistence_threshold) {
      strategy.parameters = Placement::replicated;
    }
    lease = strategy.lease.value_or(storage);
    gradient_lease = strategy.gradient_lease.value_or(lease);
    wire = strategy.wire.value_or(gradient_lease);
  }

  [[nodiscard]] bool sharded() const noexcept { return strategy.parameters == Placement::sharded; }
  [[nodiscard]] bool updates_shard() const noexcept {
    return strategy.optimizer_state == Placement::sharded;
  }
  /// The storage holds every element: the replicated copy is the storage and the shard a part of
  /// it.
  [[nodiscard]] bool storage_is_whole() const noexcept {
    return !sharded() && (!updates_shard() || lease == storage);
  }
  /// Gathered into a slot that it shares with others.
  [[nodiscard]] bool shares_slots() const noexcept {
    return sharded() && strategy.reshard_after_forward;
  }
  /// A replicated copy in the lease type stands beside the storage.
  [[nodiscard]] bool has_copy() const noexcept { return !sharded() && lease != storage; }
  [[nodiscard]] std::size_t lease_bytes() const noexcept {
    return layout.padded_size() * size_of(lease);
  }
  [[nodiscard]] std::size_t gradient_slot_bytes() const noexcept {
    return layout.padded_size() * std::max(size_of(gradient_lease), size_of(wire));
  }
  /// Gradient leases lend the stored gradient itself.
  [[nodiscard]] bool gradient_in_place() const noexcept {
    return strategy.accumulation == Accumulation::hold &&
           strategy.gradients == Placement::replicated && gradient == gradient_lease &&
           wire == gradient_lease;
  }

  Layout layout;
  DType storage;
  DType lease = DType::f32;
  DType gradient_lease = DType::f32;
  DType wire = DType::f32;
  Strategy strategy;  ///< resolved
  bool tied;
  std::string name;
  std::optional<DType> gradient;  ///< type of the stored gradient; none: frozen
  std::vector<DType> state;       ///< types of the optimizer's values, one each element
};

/// Which consecutive entries travel together: entry i belongs to unit result[i]. `bytes(entry)` of
/// a unit add up to at most bucket_bytes, and it has at most 1024 members, so that a stream's queue
/// takes its collective; entries join only where everything that decides their
/// treatment is equal, and `together(entry, entry)` agrees.
template <class Bytes, class Together>
[[nodiscard]] std::vector<std::size_t> group_units(std::span<const Registration* const> entries,
                                                   Bytes bytes, Together together) {
  std::vector<std::size_t> units;
  std::size_t filled = 0;
  std::size_t members = 0;
  const Registration* previous = nullptr;
  for (const Registration* entry : entries) {
    const std::size_t size = bytes(*entry);
    const bool joins = previous != nullptr && previous->strategy == entry->strategy &&
                       previous->storage == entry->storage && !previous->tied && !entry->tied &&
                       filled + size <= entry->strategy.bucket_bytes && members < 1024 &&
                       together(*previous, *entry);
    members = joins ? members + 1 : 1;
    filled = joins ? filled + size : size;
    units.push_back(units.empty() ? 0 : units.back() + (joins ? 0 : 1));
    previous = entry;
  }
  return units;
}

/// Which parameters are gathered together.
[[nodiscard]] inline std::vector<std::size_t> group_parameters(
    std::span<const Registration* const> entries) {
  return group_units(
      entries, [](const Registration& entry) { return entry.lease_bytes(); },
      [](const Registration&, const Registration&) { return true; });
}

/// Which gradients are reduced together; a slot of their own is wanted by all of a unit or by none.
[[nodiscard]] inline std::vector<std::size_t> group_gradients(
    std::span<const Registration* const> entries) {
  return group_units(
      entries, [](const Registration& entry) { return entry.gradient_slot_bytes(); },
      [](const Registration& a, const Registration& b) {
        return a.gradient_in_place() == b.gradient_in_place();
      });
}

}  // namespace shardwise::inline v0_1::detail
