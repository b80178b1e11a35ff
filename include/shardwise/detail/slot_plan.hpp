#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <span>
#include <vector>

#include "../comm/communicator.hpp"
#include "../strategy.hpp"
#include "engine.hpp"
#include "registration.hpp"
#include "shard_groups.hpp"

namespace shardwise::inline v0_1::detail {

/// The slots of one kind: `units` units share `count` of them, others have one of their own.
struct SlotNeeds {
  std::size_t units = 0;
  std::size_t largest = 0;    ///< bytes of each shared slot
  std::size_t ranges = 0;     ///< most page ranges of a unit that shares
  std::size_t dedicated = 0;  ///< bytes of all slots of their own
  std::size_t count = 0;

  void add(std::size_t bytes, std::size_t unit_ranges, bool own) noexcept {
    if (own) {
      dedicated += bytes;
      return;
    }
    largest = std::max(largest, bytes);
    ranges = std::max(ranges, unit_ranges);
    ++units;
  }
  /// At least what a rank needs whose units are no longer those of a plan.
  void cover(const SlotNeeds& other, std::size_t open) noexcept {
    largest = std::max(largest, other.largest);
    ranges = std::max(ranges, other.ranges);
    count = std::max(count, std::min(other.units, open));
  }
  [[nodiscard]] std::size_t shared_bytes() const noexcept { return count * largest; }
  [[nodiscard]] std::size_t bytes() const noexcept { return shared_bytes() + dedicated; }
};

/// Slots in the library's memory, slots that ranks share, and pages for arenas.
struct Slots {
  SlotNeeds buffers;
  SlotNeeds shared;
  SlotNeeds pages;
  std::size_t sharers = 1;  ///< ranks that share those

  [[nodiscard]] SlotNeeds& of(Residency residency) noexcept {
    return residency == Residency::in_place ? pages
           : residency == Residency::shared ? shared
                                            : buffers;
  }
  [[nodiscard]] std::array<SlotNeeds*, 3> kinds() noexcept { return {&buffers, &shared, &pages}; }
  /// Of one rank.
  [[nodiscard]] std::size_t bytes() const noexcept {
    return buffers.bytes() + shared.bytes() / sharers + pages.bytes();
  }
};

/// visit(members) for each unit, in order; entry i belongs to unit unit_of[i].
template <class Visit>
void for_each_unit(std::span<const Registration* const> entries,
                   std::span<const std::size_t> unit_of, Visit visit) {
  for (std::size_t i = 0; i < entries.size();) {
    std::size_t end = i;
    while (end < entries.size() && unit_of[end] == unit_of[i]) ++end;
    visit(entries.subspan(i, end - i));
    i = end;
  }
}

/// Which units of parameters in place keep their memory: see Strategy::keep_resident_bytes.
class Keeper {
 public:
  static constexpr std::size_t limit = std::size_t{4} << 20;

  explicit Keeper(std::size_t bytes) noexcept : keeps_any_(bytes > 0), left_(bytes) {}
  /// Asked for each unit once, in order.
  [[nodiscard]] bool keeps(const Registration& first, std::size_t bytes) noexcept {
    const bool may = first.shares_slots() && first.residency == Residency::in_place;
    if (!may || !keeps_any_ || bytes >= limit || bytes > left_) return false;
    left_ -= bytes;
    return true;
  }
  /// A unit that was kept has gone.
  void forget(std::size_t bytes) noexcept { left_ += bytes; }

 private:
  bool keeps_any_;
  std::size_t left_;
};

/// Which slots a rank needs that registers these parameters. UsageError where max_live_bytes has no
/// room for what must be open at once.
[[nodiscard]] inline Slots plan_parameter_slots(std::span<const Registration* const> entries,
                                                const Strategy& strategy,
                                                const ContextOptions& options) {
  Slots slots;
  Keeper keeper(strategy.keep_resident_bytes);
  for_each_unit(entries, group_parameters(entries), [&](std::span<const Registration* const> unit) {
    if (!unit[0]->needs_slot()) return;
    std::size_t bytes = 0;
    std::size_t ranges = 0;
    std::size_t kept = 0;
    for (const Registration* entry : unit) {
      kept += entry->lease_bytes();
      bytes += entry->slot_bytes();
      ranges += entry->placed.pages().size();
    }
    if (unit[0]->residency == Residency::shared) {
      slots.sharers = static_cast<std::size_t>(unit[0]->group_size());
    }
    const bool own = !unit[0]->shares_slots() || keeper.keeps(*unit[0], kept);
    slots.of(unit[0]->residency).add(bytes, ranges, own);
  });
  const std::size_t open = options.open_parameters;
  std::size_t dedicated = 0;
  std::size_t least = 0;
  std::size_t largest = 0;
  for (SlotNeeds* kind : slots.kinds()) {
    kind->count = std::min(kind->units, open);
    dedicated += kind->dedicated;
    least += kind->bytes();
    largest = std::max(largest, kind->largest);
  }
  const std::size_t cap = strategy.max_live_bytes;
  if (cap > 0 && least > cap) {
    raise(
        "max_live_bytes = {} has no room for {} open parameter(s) of {} bytes beside {} bytes that "
        "stay gathered (reshard_after_forward = false, keep_resident_bytes); raise it to {}",
        cap, open, largest, dedicated, least);
  }
  const auto ahead = static_cast<std::size_t>(strategy.prefetch);
  for (SlotNeeds* kind : slots.kinds()) {
    std::size_t more = std::min(kind->units, open + ahead) - kind->count;
    if (cap > 0 && kind->largest > 0) more = std::min(more, (cap - least) / kind->largest);
    kind->count += more;
    least += more * kind->largest;
  }
  return slots;
}

/// The reduction of a gradient, without its buffers: the only one, or that within a group.
[[nodiscard]] inline ReduceItem reduction_of(const Registration& registration) noexcept {
  ReduceItem item{};
  item.count =
      registration.updates_shard() ? registration.shard_size() : registration.layout.padded_size();
  item.dtype = registration.wire;
  if (registration.partial() == Registration::Partial::none) {
    item.spec.output = *registration.gradient;
    item.spec.accumulate = registration.strategy.accumulation == Accumulation::reduce;
  } else {
    item.spec.output = registration.partial_type();
  }
  return item;
}
/// What follows across groups.
[[nodiscard]] inline ReduceItem reduction_across(const Registration& registration) noexcept {
  ReduceItem item{};
  item.count = registration.shard_size();
  item.dtype = registration.partial_type();
  item.spec.output = *registration.gradient;
  item.spec.accumulate = registration.strategy.accumulation == Accumulation::reduce;
  return item;
}

/// The same for gradients.
struct GradientSlots {
  Slots slots;
  std::size_t landing = 0;   ///< bytes of scratch that the largest reduction wants
  std::size_t partials = 0;  ///< bytes of a group's sums, where they lie nowhere else, likewise
};

[[nodiscard]] inline GradientSlots plan_gradient_slots(std::span<const Registration* const> trained,
                                                       const ShardGroups& groups,
                                                       const Strategy& strategy,
                                                       const ContextOptions& options) {
  GradientSlots plan;
  for_each_unit(trained, group_gradients(trained), [&](std::span<const Registration* const> unit) {
    std::size_t bytes = 0;
    std::size_t ranges = 0;
    std::size_t landing = 0;
    std::size_t landing_across = 0;
    std::size_t partials = 0;
    const ShardGroup& group = groups.of(unit[0]->group_size());
    for (const Registration* entry : unit) {
      bytes += entry->gradient_slot_bytes();
      ranges += entry->gradient_placed.pages().size();
      landing += group.within->landing_bytes(reduction_of(*entry), entry->updates_shard());
      if (entry->partial() == Registration::Partial::none) continue;
      landing_across += group.across->landing_bytes(reduction_across(*entry), false);
      if (entry->partial() == Registration::Partial::in_scratch) {
        partials += entry->shard_size() * size_of(entry->partial_type());
      }
    }
    plan.landing = std::max({plan.landing, landing, landing_across});
    plan.partials = std::max(plan.partials, partials);
    if (!unit[0]->gradient_needs_slot()) return;
    plan.slots.of(unit[0]->gradient_residency).add(bytes, ranges, unit[0]->gradient_slot_stays());
  });
  for (SlotNeeds* kind : plan.slots.kinds()) {
    kind->count = std::min(kind->units, options.open_gradients + (strategy.overlap ? 1u : 0u));
  }
  return plan;
}

}  // namespace shardwise::inline v0_1::detail
