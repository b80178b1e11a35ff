#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <iterator>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "debug_checks.hpp"
#include "engine.hpp"
#include "flat_gradient.hpp"
#include "reduction_queue.hpp"
#include "slot_plan.hpp"
#include "slot_pool.hpp"
#include "unit_ranges.hpp"

namespace shardwise::inline v0_1::detail {

/// A task in a stream: takes a slot's pages from below the host's addresses.
template <class Device>
struct TakePagesBack {
  Slot<Device>* slot;
  Access after;
  std::atomic<bool>* lost;
  void operator()() const noexcept {
    if (!slot->pages.take_back(after)) lost->store(true);
  }
};

/// All gradients of a Context: lends slots to write them, reduces them into what each rank stores.
template <class Device>
class GradientStore {
 public:
  using Gradient = FlatGradient<Device>;
  using Unit = GradientUnit<Device>;

  explicit GradientStore(Engine<Device>& engine)
      : engine_(engine),
        buffers_(engine.ledger, SlotKind::buffer, engine.options.slot_memory),
        pages_(engine.ledger, SlotKind::pages),
        queue_(engine) {}

  /// Also in the middle of a step, by all ranks; slots are then found at the next lease.
  void add(Gradient& gradient) {
    gradient.parameter.gradient_late = prepared_;
    complete_ = false;
    // Units and norms follow the order of the parameters, as the plan does. Most come in it, so the
    // search begins at the end.
    auto later = gradients_.end();
    while (later != gradients_.begin() &&
           (*std::prev(later))->parameter.index > gradient.parameter.index) {
      --later;
    }
    gradients_.insert(later, &gradient);
  }
  void remove(Gradient& gradient) noexcept {
    std::erase(gradients_, &gradient);
    if (gradient.unit == nullptr) return;
    Unit& unit = *gradient.unit;
    unit.erase(gradient);
    if (gradient.leases > 0) --unit.open;
    if (gradient.ready) --unit.ready;
    // What this rank issued has run, or never will: nothing is enqueued here.
    if (unit.slot != nullptr) unit.slot->pages.abandon(gradient.parameter.gradient_placed.pages());
    if (unit.open + unit.ready == 0 && unit.slot != nullptr) {
      if (!unit.slot->pages.take_back(engine_.released())) engine_.lost_pages = true;
      clear_crumbs(unit, engine_.compute);
      pool_of(unit).mark(*unit.slot, State::empty);
    }
    if (!unit.empty()) return;
    if (unit.slot != nullptr) pool_of(unit).give_up(unit.slot);
    std::erase_if(units_, [&](const auto& candidate) { return candidate.get() == &unit; });
  }
  [[nodiscard]] std::span<Gradient* const> gradients() const noexcept { return gradients_; }

  /// Forms units and allocates slots, landing buffers and room for the norm; at the first lease.
  void prepare() {
    if (complete_ && prepared_) return;
    form_units();
    gradients_.shrink_to_fit();
    units_.shrink_to_fit();
    allocate_slots();
    std::size_t largest = 0;  // members that are reduced together
    for (const auto& unit : units_) largest = std::max(largest, unit->size());
    queue_.reserve(largest);
    engine_.reserve_scalars(gradients_.size());
    prepared_ = true;
    complete_ = true;
  }

  /// Lends the whole gradient, zeroed; a tied gradient that is open already as it is.
  void open(Gradient& gradient) {
    engine_.check();
    engine_.ledger.about(gradient.parameter.subject);
    prepare();
    Unit& unit = *gradient.unit;
    if (gradient.leases > 0) {
      ++gradient.leases;
      return;
    }
    const Registration& registration = gradient.parameter;
    check_one_reduction(gradient);
    if (gradient.ready) flush(unit);
    if (registration.gradient_residency == Residency::host_buffer) {
      raise(
          "the gradient of '{}' is in buffers of the host: contribute it with reduce_from(buffer), "
          "not by a lease",
          registration.name());
    }
    if (registration.lends_stored_gradient()) {
      engine_.wait(gradient.reduced, registration.subject, reduction_kind_of(registration));
    } else {
      // While others of its bucket are under way, the slot has not been anybody else's.
      if (unit.open + unit.ready > 0)
        engine_.wait(gradient.reduced, registration.subject, reduction_kind_of(registration));
      borrow(unit, registration);
    }
    const std::size_t size = size_of(registration.gradient_lease);
    if (gradient.in_pieces()) {
      for (const Piece& piece : gradient.pieces()) {
        Device::zero(engine_.compute, piece.data, piece.count * size);
      }
    } else {
      Device::zero(engine_.compute, gradient.whole(), registration.layout.padded_size() * size);
    }
    gradient.leases = 1;
    ++unit.open;
    engine_.mark(Mark::gradient_open, registration.subject);
  }

  /// Reduces a contribution out of the host's own buffers, one for each tensor, null where it has
  /// no elements. The buffers are the host's again when this returns.
  template <class T>
  void reduce_from(Gradient& gradient, std::span<T* const> buffers,
                   std::optional<ReductionWeight> weight) {
    engine_.check();
    prepare();
    const Registration& registration = gradient.parameter;
    if (registration.gradient_residency != Residency::host_buffer) {
      raise(
          "reduce_from() of the gradient of '{}', which has a place of its own ({}): use lease(), "
          "or "
          "make it as ShardedGradient(parameter, Residency::host_buffer)",
          registration.name(), name_of(registration.gradient_residency));
    }
    check_buffers("the gradient of", registration, buffers);
    check_one_reduction(gradient);
    for (std::size_t i = 0; i < buffers.size(); ++i) {
      gradient.pieces()[i].data = as_bytes(buffers[i]);
    }
    ++gradient.unit->open;
    gradient.leases = 1;
    reduce(gradient, weight);
    engine_.wait(gradient.reduced, registration.subject, reduction_kind_of(registration));
  }

  /// UsageError where reduce() may not be called now; nothing has changed then.
  void check_reduction(const Gradient& gradient, std::optional<ReductionWeight> weight) {
    engine_.check();
    if (gradient.leases == 0) {
      raise("reduce() of the gradient of '{}' without an open lease", gradient.parameter.name());
    }
    if (!gradient.contributed || gradient.weight == weight) return;
    raise(
        "the leases of the gradient of '{}' that are open together must be reduced with one weight",
        gradient.parameter.name());
  }

  /// This lease's contribution is complete. With the last one of its unit the reduction is issued.
  void reduce(Gradient& gradient, std::optional<ReductionWeight> weight) {
    gradient.weight = weight;
    gradient.contributed = true;
    if (close(gradient) && gradient.unit->ready == gradient.unit->size()) {
      flush(*gradient.unit);
    }
  }

  /// Ends the plain calls' lease with a reduction, where there is one.
  void reduce_held(Gradient& gradient, std::optional<ReductionWeight> weight) {
    if (!gradient.held) return;
    check_reduction(gradient, weight);
    gradient.held = false;
    reduce(gradient, weight);
  }

  /// Gives a lease back without a contribution. What nested leases of the same gradient contributed
  /// stays, and is reduced when it is needed.
  void discard(Gradient& gradient) noexcept {
    if (close(gradient)) give_back(*gradient.unit);
  }

  /// Issues what waits for its unit to fill up.
  void flush(Gradient& gradient) {
    if (gradient.ready) flush(*gradient.unit);
  }

  /// The compute stream may read the stored gradient after this; zeros where nothing was reduced.
  void settle(Gradient& gradient, const char* what) {
    engine_.check();
    if (gradient.leases > 0) {
      raise("{} with the gradient lease of '{}' open: reduce or discard it first", what,
            gradient.parameter.name());
    }
    flush(gradient);
    engine_.wait(gradient.reduced, gradient.parameter.subject,
                 reduction_kind_of(gradient.parameter));
    engine_.order.meet(gradient.reduced_behind);
    if (gradient.fresh) {
      Device::zero(engine_.compute, gradient.value.data(), gradient.value.size());
    }
  }

  /// The stored gradient was used: the next reduction overwrites it.
  void consume(Gradient& gradient) noexcept {
    gradient.fresh = true;
    gradient.coefficient = 1;
    buffers_.restart();
    behind_ = false;
  }

 private:
  using State = typename Slot<Device>::State;

  [[nodiscard]] SlotPool<Device>& pool_of(const Unit& unit) noexcept {
    return unit.residency == Residency::in_place ? pages_ : buffers_;
  }
  static void check_one_reduction(const Gradient& gradient) {
    const Registration& registration = gradient.parameter;
    if (registration.strategy.accumulation != Accumulation::hold) return;
    if (gradient.fresh && !gradient.ready) return;
    raise(
        "the gradient of '{}' was reduced already in this step, and Strategy::accumulation = hold "
        "allows one reduction a step: keep its lease open over the micro-batches, or use "
        "Accumulation::reduce",
        registration.name());
  }

  // One lease less; true where it was the last.
  bool close(Gradient& gradient) noexcept {
    if (--gradient.leases > 0) return false;
    engine_.mark(Mark::gradient_close, gradient.parameter.subject);
    --gradient.unit->open;
    if (std::exchange(gradient.contributed, false)) {
      gradient.ready = true;
      ++gradient.unit->ready;
    }
    return true;
  }

  [[nodiscard]] std::vector<const Registration*> entries() const {
    std::vector<const Registration*> result;
    for (const Gradient* gradient : gradients_) result.push_back(&gradient->parameter);
    return result;
  }

  void form_units() {
    const std::vector<const Registration*> all = entries();
    const auto unit_of = group_gradients(all);
    for (std::size_t i = 0; i < gradients_.size(); ++i) {
      Gradient& gradient = *gradients_[i];
      if (gradient.unit != nullptr) continue;
      const bool joins = i > 0 && unit_of[i] == unit_of[i - 1];
      if (!joins) units_.push_back(std::make_unique<Unit>());
      Unit& unit = *units_.back();
      unit.residency = gradient.parameter.gradient_residency;
      gradient.unit = &unit;
      gradient.unit_offset = unit.bytes;
      unit.push_back(gradient);
      unit.bytes += gradient.parameter.gradient_slot_bytes();
      unit.reduced_bytes += gradient.parameter.gradient_bytes();
      ranges_.reserve(unit);
    }
  }

  void allocate_slots() {
    GradientSlots plan =
        plan_gradient_slots(entries(), engine_.groups, engine_.strategy, engine_.options);
    Slots own;  // units whose members have gone may be others than the plan's
    for (const auto& unit : units_) {
      const Registration& first = unit->front().parameter;
      if (!first.gradient_needs_slot()) continue;
      own.of(unit->residency)
          .add(unit->bytes, UnitRanges::count(*unit), first.gradient_slot_stays());
    }
    SlotNeeds& buffers = plan.slots.buffers;
    SlotNeeds& pages = plan.slots.pages;
    const std::size_t open = engine_.options.open_gradients + (engine_.strategy.overlap ? 1 : 0);
    buffers.cover(own.buffers, open);
    pages.cover(own.pages, open);
    engine_.quiesce();  // tasks in the stream use the pools and the landing buffer
    buffers_.share(buffers.count, buffers.largest, 0, engine_.recycling());
    pages_.share(pages.count, pages.largest, pages.ranges, engine_.recycling());
    for (const auto& unit : units_) {
      if (unit->slot != nullptr) continue;
      const Registration& first = unit->front().parameter;
      if (!first.gradient_needs_slot() || !first.gradient_slot_stays()) continue;
      pool_of(*unit).dedicate(unit->slot, unit->bytes, UnitRanges::count(*unit),
                              engine_.recycling());
    }
    queue_.make_room(plan);
  }

  void borrow(Unit& unit, const Registration& registration) {
    const std::string& name = registration.name();
    if (unit.slot == nullptr && !acquire(unit)) {
      std::string holders;
      for (const auto& other : units_) {
        if (other->slot == nullptr || other->slot->state != State::open) continue;
        for (const Gradient* member : *other) {
          holders +=
              detail::format("{}'{}'{}", holders.empty() ? "" : ", ", member->parameter.name(),
                             member->ready ? " (waits for the rest of its bucket)" : "");
        }
      }
      raise(
          "the gradient lease of '{}' needs a slot, but all {} are lent: to {}. Reduce one of "
          "them, or set ContextOptions::open_gradients to the number that you hold open at once, "
          "or mark a parameter whose lease stays open for long ParameterOptions::tied",
          name, pool_of(unit).shared_count(), holders);
    }
    Slot<Device>& slot = *unit.slot;
    engine_.wait(slot.last_use, slot.user, slot.use);
    if (pool_of(unit).is_small(slot)) {
      engine_.await(slot.last_use, slot.user, slot.use);
      engine_.ledger.about(registration.subject);
      pool_of(unit).grow(slot);
    }
    if (engine_.options.debug) check_untouched(unit);
    if (unit.residency == Residency::in_place) put_below(unit);
    pool_of(unit).mark(slot, State::open);
  }

  void put_below(Unit& unit) {
    Slot<Device>& slot = *unit.slot;
    if constexpr (MapsMemory<Device>) {
      // Released gradients keep the memory until it is needed here.
      const auto ranges = ranges_.of(unit);
      if (slot.pages.is_lent_below(ranges)) return;
      engine_.await(slot.last_use, slot.user, slot.use);
      slot.pages.lend(ranges);
    } else {
      if (!slot.pages.lent()) slot.pages.lend(ranges_.of(unit));
    }
  }

  // Debug mode: nobody wrote to what was reduced or discarded.
  void check_untouched(Unit& unit) {
    Slot<Device>& slot = *unit.slot;
    if (unit.open + unit.ready == 0 && unit.residency == Residency::in_place) {
      for (const Gradient* member : unit) {
        if (member->arena() == nullptr) continue;
        const std::string found =
            find_written_crumb(engine_, *member->arena(), member->parameter.gradient_placed);
        if (!found.empty()) raise("{}", found);
      }
    }
    const std::string owner = std::exchange(slot.hidden_from, {});
    if (owner.empty() || is_poisoned(engine_, slot)) return;
    raise(
        "rank {} wrote to the gradient of '{}' after its lease had ended: add to it between "
        "lease() "
        "(ensure_open()) and reduce()",
        engine_.rank(), owner);
  }

  // Where every slot is lent, buckets that only wait for their other members go first.
  bool acquire(Unit& unit) {
    // What is reduced in the caller has left its slot, and the slot in the caches. Not behind a
    // reduction that may be under way, for which the slot that was used last waits; and not where
    // others read slots by their place in the memory of all ranks.
    const bool warm = !behind_ && engine_.is_for_caller(unit.reduced_bytes) &&
                      engine_.options.slot_memory == nullptr;
    if (pool_of(unit).acquire(unit.slot, true, warm)) return true;
    for (const auto& other : units_) {
      if (other->ready > 0 && other->open == 0) flush(*other);
    }
    return pool_of(unit).acquire(unit.slot, true, warm);
  }

  // Where nobody uses the slot any more: it, or the pages below the host's addresses, are free once
  // what reads them has run.
  void give_back(Unit& unit) noexcept {
    if (unit.slot == nullptr || unit.open > 0 || unit.ready > 0) return;
    Slot<Device>& slot = *unit.slot;
    auto& stream = engine_.communication;
    try {
      stream.wait(engine_.compute.record());
      if (unit.residency == Residency::in_place) {
        clear_crumbs(unit, stream);
        if constexpr (MapsMemory<Device>) {
          clear_pages(slot, stream);
          if (engine_.options.debug) slot.hidden_from = unit.front().parameter.name();
        } else {
          stream.enqueue(TakePagesBack<Device>{&slot, engine_.released(), &engine_.lost_pages});
        }
      } else if (engine_.options.debug) {
        Device::poison(stream, slot.buffer.data(), slot.buffer.size());
        slot.hidden_from = unit.front().parameter.name();
      }
    } catch (const BackendError&) {  // the device has failed, as the next call says
      engine_.quiesce();
    }
    slot.last_use = stream.record();
    slot.user = unit.front().parameter.subject;
    slot.use = reduction_kind_of(unit.front().parameter);
    pool_of(unit).mark(slot, State::empty);
  }

  // A released gradient reads as zero, or, in debug mode, as NaN.
  void clear_crumbs(Unit& unit, typename Device::Stream& stream) noexcept {
    for (const Gradient* member : unit) {
      for (const auto& crumb : member->parameter.gradient_placed.crumbs()) {
        if (engine_.options.debug) {
          Device::poison(stream, crumb.data(), crumb.size());
        } else {
          Device::zero(stream, crumb.data(), crumb.size());
        }
      }
    }
  }

  // The same for what stays below the host's addresses, until it goes elsewhere.
  void clear_pages(Slot<Device>& slot, typename Device::Stream& stream) {
    for (const PageRange& range : slot.pages.ranges()) {
      if (range.begin == nullptr) continue;
      if (engine_.options.debug) {
        Device::poison(stream, range.begin, range.bytes);
      } else {
        Device::zero(stream, range.begin, range.bytes);
      }
    }
  }

  void flush(Unit& unit) {
    const typename Engine<Device>::Placing placing(engine_, unit.reduced_bytes);
    auto& stream = engine_.communication;
    stream.wait(engine_.compute.record());
    for (Gradient* member : unit) {
      if (!member->ready) continue;
      const Registration& registration = member->parameter;
      if (registration.wire != registration.gradient_lease) {
        Device::convert(stream, member->whole(), registration.wire, member->whole(),
                        registration.gradient_lease, registration.layout.padded_size());
      }
      queue_.add(*member);
      member->ready = false;
      member->fresh = false;
    }
    unit.ready = 0;
    if (!engine_.is_for_caller(unit.reduced_bytes)) behind_ = true;
    queue_.flush(unit.front().parameter);
    give_back(unit);
    const auto done = stream.record();  // the host's addresses are free again, too
    for (Gradient* member : unit) {
      member->reduced = done;
      member->reduced_behind = engine_.order.issued();
    }
  }

  Engine<Device>& engine_;
  SlotPool<Device> buffers_;
  SlotPool<Device> pages_;
  std::vector<Gradient*> gradients_;
  std::vector<std::unique_ptr<Unit>> units_;
  UnitRanges ranges_;
  ReductionQueue<Device> queue_;
  bool prepared_ = false;
  bool complete_ = false;  // all gradients have units and slots
  bool behind_ = false;    // a reduction of this step was issued beside the caller
};

}  // namespace shardwise::inline v0_1::detail
