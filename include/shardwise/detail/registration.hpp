#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "../core/dtype.hpp"
#include "../core/observer.hpp"
#include "../layout.hpp"
#include "../strategy.hpp"
#include "address_range.hpp"
#include "strategies.hpp"
#include "type_counts.hpp"

namespace shardwise::inline v0_1::detail {

/// What a Context and a plan know of one parameter: everything that decides who holds how many
/// bytes of it.
struct Registration {
  /// `strategies` has those of all parameters and outlives this.
  Registration(std::vector<TensorSpec> tensors, int world, DType type,
               const Strategy& default_strategy, ParameterOptions options, Strategies& strategies)
      : layout(std::move(tensors), world),
        strategy(strategies.keep(resolved(layout, default_strategy, options))),
        own_strategy(options.strategy ? &strategies.keep(*options.strategy) : nullptr),
        own_name(own_name_of(layout, std::move(options.name))),
        storage(type),
        lease(strategy.lease.value_or(storage)),
        gradient_lease(strategy.gradient_lease.value_or(lease)),
        wire(strategy.wire.value_or(gradient_lease)),
        residency(residency_of(default_strategy, options)),
        tied(options.tied),
        own_residency(options.residency) {}

  /// For messages and reports.
  [[nodiscard]] const std::string& name() const noexcept {
    return own_name == nullptr ? layout.tensors()[0].name : *own_name;
  }

  [[nodiscard]] bool sharded() const noexcept { return strategy.parameters == Placement::sharded; }
  [[nodiscard]] bool updates_shard() const noexcept {
    return strategy.optimizer_state == Placement::sharded;
  }
  /// Ranks that hold one copy of what is sharded together, each a part; consecutive ones.
  [[nodiscard]] int group_size() const noexcept {
    return strategy.shard_group > 0 ? strategy.shard_group : layout.world();
  }
  /// So many groups there are. Each rank holds as many of the layout's shards, next to each other.
  [[nodiscard]] int groups() const noexcept { return layout.world() / group_size(); }
  /// Elements that each rank of a group holds of what is sharded, padding included.
  [[nodiscard]] std::size_t shard_size() const noexcept {
    return layout.shard_size() * static_cast<std::size_t>(groups());
  }
  /// Where they begin in the flat buffer.
  [[nodiscard]] std::size_t shard_begin_of(int rank) const noexcept {
    return static_cast<std::size_t>(rank % group_size()) * shard_size();
  }
  /// One of the layout's shards that this rank holds, another one for each rank: who has to say
  /// something of all of them shares them out so.
  [[nodiscard]] int layout_shard_of(int rank) const noexcept {
    return rank % group_size() * groups() + rank / group_size();
  }
  [[nodiscard]] int rank_of_layout_shard(int shard) const noexcept {
    return shard % groups() * group_size() + shard / groups();
  }

  /// What was gathered stays in part: see Strategy::reshard_group.
  [[nodiscard]] bool keeps_secondary() const noexcept {
    return sharded() && strategy.reshard_group > 0;
  }
  /// Elements of that part.
  [[nodiscard]] std::size_t secondary_size() const noexcept {
    return keeps_secondary()
               ? layout.padded_size() / static_cast<std::size_t>(strategy.reshard_group)
               : 0;
  }
  [[nodiscard]] std::size_t secondary_bytes() const noexcept {
    return secondary_size() * size_of(lease);
  }

  /// Where a group's sums of a gradient wait to be added to those of the other groups. They have
  /// the accumulator's type.
  enum class Partial : std::uint8_t {
    none,       ///< there is one group
    leased,     ///< in the whole gradient that was reduced
    stored,     ///< where the result goes
    in_scratch  ///< in memory of their own
  };
  [[nodiscard]] Partial partial() const noexcept {
    if (!updates_shard() || groups() == 1) return Partial::none;
    if (wire == partial_type() && gradient_residency == Residency::slots) return Partial::leased;
    const bool overwrites = strategy.accumulation == Accumulation::hold;
    return overwrites && gradient == partial_type() ? Partial::stored : Partial::in_scratch;
  }
  [[nodiscard]] DType partial_type() const noexcept {
    return wire == DType::f64 ? DType::f64 : DType::f32;
  }

  /// The storage holds every element: the replicated copy is the storage and the shard a part of
  /// it.
  [[nodiscard]] bool storage_is_whole() const noexcept {
    return !sharded() && (!updates_shard() || lease == storage);
  }
  /// Leases show the storage of all ranks, which is one: see Residency::shared. What they do not
  /// occupy has a slot without memory all the same, so that gathers are the same ones as elsewhere.
  [[nodiscard]] bool lends_storage() const noexcept {
    return residency == Residency::shared && lease == storage;
  }
  /// Gathered into a slot: one of its own, or one that it shares with others.
  [[nodiscard]] bool needs_slot() const noexcept {
    return sharded() && residency != Residency::host_buffer;
  }
  [[nodiscard]] bool shares_slots() const noexcept {
    return needs_slot() && strategy.reshard_after_forward;
  }
  /// A replicated copy in the lease type stands beside the storage.
  [[nodiscard]] bool has_copy() const noexcept { return !sharded() && lease != storage; }
  /// What is replicated lies in the host's arena: the storage itself, or the copy.
  [[nodiscard]] bool replicated_in_place() const noexcept {
    return !sharded() && residency == Residency::in_place;
  }
  [[nodiscard]] bool storage_in_place() const noexcept {
    return in_shared_arena || (replicated_in_place() && storage_is_whole() && !has_copy());
  }
  /// Bytes of the storage, and of the replicated copy, on one rank.
  [[nodiscard]] std::size_t storage_bytes() const noexcept {
    const std::size_t whole = storage_in_place() ? layout.size() : layout.padded_size();
    return (storage_is_whole() ? whole : shard_size()) * size_of(storage);
  }
  [[nodiscard]] std::size_t copy_bytes() const noexcept {
    if (!has_copy()) return 0;
    return (replicated_in_place() ? layout.size() : layout.padded_size()) * size_of(lease);
  }
  /// Bytes of the whole parameter and of the whole gradient in their lease types.
  [[nodiscard]] std::size_t lease_bytes() const noexcept {
    return layout.padded_size() * size_of(lease);
  }
  [[nodiscard]] std::size_t gradient_bytes() const noexcept {
    return layout.padded_size() * std::max(size_of(gradient_lease), size_of(wire));
  }
  /// Bytes of the slot that a gather, or a gradient lease, needs.
  [[nodiscard]] std::size_t slot_bytes() const noexcept {
    if (lends_storage()) return 0;
    return residency == Residency::in_place ? placed.page_bytes() : lease_bytes();
  }
  [[nodiscard]] std::size_t gradient_slot_bytes() const noexcept {
    return gradient_residency == Residency::in_place ? gradient_placed.page_bytes()
                                                     : gradient_bytes();
  }
  /// Gradient leases lend the stored gradient itself.
  [[nodiscard]] bool lends_stored_gradient() const noexcept {
    return strategy.accumulation == Accumulation::hold && gradient_residency == Residency::slots &&
           strategy.gradients == Placement::replicated && gradient == gradient_lease &&
           wire == gradient_lease;
  }
  [[nodiscard]] bool gradient_needs_slot() const noexcept {
    return !lends_stored_gradient() && gradient_residency != Residency::host_buffer;
  }
  /// The gradient has a slot of its own.
  [[nodiscard]] bool gradient_slot_stays() const noexcept {
    return tied || strategy.accumulation == Accumulation::hold;
  }

  Layout layout;
  const Strategy& strategy;                     ///< resolved
  const Strategy* own_strategy;                 ///< as ParameterOptions had it; null: none
  std::unique_ptr<const std::string> own_name;  ///< null: that of the only tensor
  Placed placed;  ///< in_place: what of the whole parameter comes and goes
  Placed gradient_placed;
  DType storage;
  DType lease;
  DType gradient_lease;
  DType wire;
  Residency residency;
  Residency gradient_residency = Residency::slots;
  bool tied;
  bool in_shared_arena = false;  ///< shared: the storage lies where the host wants it
  bool late = false;             ///< registered after slots were allocated: travels by itself
  bool gradient_late = false;
  std::optional<DType> gradient;           ///< type of the stored gradient; none: frozen
  std::optional<Residency> own_residency;  ///< as ParameterOptions had it
  SubjectId subject = no_subject;          ///< for observers
  TypeCounts state;                        ///< the optimizer's values

 private:
  [[nodiscard]] static Residency residency_of(const Strategy& default_strategy,
                                              const ParameterOptions& options) noexcept {
    if (options.residency) return *options.residency;
    return options.strategy ? options.strategy->residency : default_strategy.residency;
  }

  [[nodiscard]] static Strategy resolved(const Layout& layout, const Strategy& default_strategy,
                                         const ParameterOptions& options) {
    Strategy strategy = options.strategy.value_or(default_strategy);
    strategy.validate();
    strategy = strategy.in_world(layout.world());
    if (layout.size() < strategy.persistence_threshold) {
      strategy.parameters = Placement::replicated;
    }
    if (residency_of(default_strategy, options) == Residency::shared) share(strategy);
    return strategy;
  }

  // Ranks that share one copy hold it in parts, whatever the placement of parameters: where that is
  // replicated the copy stays gathered.
  static void share(Strategy& strategy) {
    strategy.check_shares();
    if (strategy.parameters == Placement::replicated) strategy.reshard_after_forward = false;
    strategy.parameters = Placement::sharded;
    strategy.reshard_group = 0;
  }

  [[nodiscard]] static std::unique_ptr<const std::string> own_name_of(const Layout& layout,
                                                                      std::string name) {
    const auto all = layout.tensors();
    if (name.empty() && all.size() == 1) return nullptr;
    if (name.empty() && !all.empty()) {
      name = detail::format("{} (+{})", all[0].name, all.size() - 1);
    }
    return std::make_unique<const std::string>(std::move(name));
  }
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
      [](const Registration& a, const Registration& b) {
        return a.residency == b.residency && a.residency != Residency::host_buffer && !a.late &&
               !b.late;
      });
}

/// Which gradients are reduced together; a slot of their own is wanted by all of a unit or by none.
[[nodiscard]] inline std::vector<std::size_t> group_gradients(
    std::span<const Registration* const> entries) {
  return group_units(
      entries, [](const Registration& entry) { return entry.gradient_bytes(); },
      [](const Registration& a, const Registration& b) {
        return a.lends_stored_gradient() == b.lends_stored_gradient() &&
               a.gradient_residency == b.gradient_residency &&
               a.gradient_residency != Residency::host_buffer && !a.gradient_late &&
               !b.gradient_late;
      });
}

}  // namespace shardwise::inline v0_1::detail
