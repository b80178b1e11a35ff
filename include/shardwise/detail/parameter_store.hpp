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

#include "../core/hash.hpp"
#include "debug_checks.hpp"
#include "engine.hpp"
#include "flat_parameter.hpp"
#include "gather_queue.hpp"
#include "registration.hpp"
#include "shared_gathers.hpp"
#include "slot_plan.hpp"
#include "slot_pool.hpp"
#include "unit_ranges.hpp"

namespace shardwise::inline v0_1::detail {

/// All parameters of a Context: gathers them into slots, below the host's addresses or into its
/// buffers, and takes them back. What is open, fetched or stale is a function of program order
/// alone.
template <class Device>
class ParameterStore {
 public:
  using Parameter = FlatParameter<Device>;
  using Unit = ParameterUnit<Device>;

  explicit ParameterStore(Engine<Device>& engine)
      : engine_(engine),
        buffers_(engine.ledger, SlotKind::buffer, engine.options.slot_memory),
        pages_(engine.ledger, SlotKind::pages),
        shared_(engine),
        shared_slots_(engine.ledger, SlotKind::shared, &shared_.memory()),
        keeper_(engine.strategy.keep_resident_bytes),
        queue_(engine) {}

  /// Also in the middle of a step, by all ranks; slots are then found at the next gather.
  void add(Parameter& parameter) {
    settle_recycling(parameter);
    parameter.late = prepared_;
    engine_.meet(registration_of(parameter));
    parameter.group = &engine_.groups.make(parameter.group_size(), engine_.options.timeout);
    if (parameter.keeps_secondary()) {
      parameter.beside->ranks =
          &engine_.groups.consecutive(parameter.strategy.reshard_group, engine_.options.timeout);
    }
    if (is_shared(parameter)) shared_.join(parameter);
    parameter.index = registered_++;
    parameters_.push_back(&parameter);
    complete_ = false;
  }

  void remove(Parameter& parameter) noexcept {
    while (parameter.leases > 0) close(parameter);
    std::erase(parameters_, &parameter);
    if (parameter.unit == nullptr) return;
    Unit& unit = *parameter.unit;
    unit.erase(parameter);
    if (unit.slot != nullptr) unit.slot->pages.abandon(parameter.placed.pages());
    unit.changed = true;
    if (unit.leases == 0) forget(unit);
    if (unit.empty()) dissolve(unit);
  }

  [[nodiscard]] std::span<Parameter* const> parameters() const noexcept { return parameters_; }

  /// Forms units and allocates their slots; at the first gather, and at the next one after a
  /// parameter came late.
  void prepare() {
    if (complete_ && prepared_) return;
    form_units();
    parameters_.shrink_to_fit();
    units_.shrink_to_fit();
    allocate_slots();
    const std::size_t together = most_together();
    queue_.reserve(together);
    shared_.reserve(together);
    fetched_.reserve(together);
    wanted_.reserve(together);
    prepared_ = true;
    complete_ = true;
    if (everything_ > 0) add_extra_slots();
  }

  /// Gathers several parameters in one grouped operation and lends them: the compute stream waits.
  void open(std::span<Parameter* const> wanted) {
    engine_.check();
    if (!wanted.empty()) engine_.ledger.about(wanted.front()->subject);
    prepare();
    for (const Parameter* parameter : wanted) {
      if (parameter->residency != Residency::host_buffer || parameter->leases > 0) continue;
      raise(
          "parameter '{}' lives in buffers of the host, so only gather_into(buffer) and "
          "ensure_gathered_into(buffer) gather it, on every rank; full_parameters() cannot",
          parameter->name());
    }
    check_room(wanted);
    lend_all(wanted);
  }

  /// The same for one parameter that lives in the host's memory: `buffers` has an address for each
  /// tensor, null where it has no elements.
  template <class T>
  void open_into(Parameter& parameter, std::span<T* const> buffers) {
    engine_.check();
    engine_.ledger.about(parameter.subject);
    prepare();
    place(parameter, buffers);
    if (parameter.sharded() && parameter.leases == 0) parameter.gathered_version = 0;
    // Until now the buffers were the host's, in the order of its stream.
    engine_.communication.wait(engine_.compute.record());
    Parameter* const wanted[] = {&parameter};
    lend_all(wanted);
    if (parameter.sharded() || parameter.leases > 1) return;
    for (const Piece& piece : parameter.pieces()) {
      const std::size_t size = size_of(parameter.lease);
      Device::copy(engine_.compute, piece.data, parameter.whole() + piece.offset * size,
                   piece.count * size);
    }
  }

  /// Residency host_buffer: where the parameter lies from now on. UsageError where `buffers` are
  /// not one for each tensor, or not those into which it is gathered already.
  template <class T>
  void place(Parameter& parameter, std::span<T* const> buffers) {
    if (parameter.residency != Residency::host_buffer) {
      raise("parameter '{}' is {}, so it has its own place: call gather()", parameter.name(),
            name_of(parameter.residency));
    }
    check_buffers("parameter", parameter, buffers);
    for (std::size_t i = 0; i < buffers.size(); ++i) {
      if (parameter.leases > 0 && parameter.pieces()[i].data != as_bytes(buffers[i])) {
        raise(
            "parameter '{}' is gathered into another buffer already (tensor '{}'): release it "
            "first, or give the same buffers",
            parameter.name(), parameter.layout.tensors()[i].name);
      }
    }
    for (std::size_t i = 0; i < buffers.size(); ++i) {
      parameter.pieces()[i].data = as_bytes(buffers[i]);
    }
  }

  /// Starts to gather a parameter that is wanted soon, where a slot is free for it.
  void prefetch(Parameter& parameter) {
    engine_.check();
    engine_.ledger.about(parameter.subject);
    prepare();
    if (parameter.residency == Residency::host_buffer) {
      raise("parameter '{}' cannot be prefetched: the host gives its buffer with the gather",
            parameter.name());
    }
    // Where others of its bucket are lent the slot must not change below them.
    if (parameter.unit->leases > 0) return;
    const typename Engine<Device>::Placing placing(engine_, parameter.unit->lease_bytes);
    if (fetch(*parameter.unit, false)) flush(parameter, false);
  }

  /// Whether its gathers are the caller's to run; false before the first one.
  [[nodiscard]] bool gathers_in_caller(const Parameter& parameter) const noexcept {
    return parameter.unit != nullptr && engine_.is_for_caller(parameter.unit->lease_bytes);
  }

  /// Takes a loan back: the slot's next writer waits for what the compute stream has been given.
  void close(Parameter& parameter) noexcept {
    Unit& unit = *parameter.unit;
    if (--parameter.leases == 0) {
      engine_.mark(Mark::parameter_close, parameter.subject);
      if (is_shared(parameter)) shared_.closed(parameter);
    }
    if (--unit.leases > 0 || unit.slot == nullptr) return;
    Slot<Device>& slot = *unit.slot;
    slot.last_use = engine_.compute.record();
    if (engine_.options.debug) {
      hide(unit);
    } else if (is_eager(unit)) {
      take_back(slot, unit);
    } else {
      lazy_ = lazy_ || unit.residency == Residency::in_place;
    }
    if (unit.changed) forget(unit);
    pool_of(unit).mark(slot, State::released);
    if (unit.extra_slot && everything_ == 0) drop_extra_slot(unit);
  }

  /// Gathers everything, with more slots than steps need, until close_all().
  void open_all() {
    engine_.check();
    prepare();
    ++everything_;
    try {
      add_extra_slots();
      if (!parameters_.empty()) open(parameters_);
    } catch (...) {
      if (--everything_ == 0) drop_extra_slots();
      throw;
    }
    for (Parameter* parameter : parameters_) ++parameter->scopes;
  }
  /// What came later is in fewer scopes, and what has gone in none. Leases that were made within
  /// the scope keep their memory.
  void close_all() noexcept {
    for (Parameter* parameter : parameters_) {
      if (parameter->scopes < everything_) continue;
      --parameter->scopes;
      close(*parameter);
    }
    if (--everything_ == 0) drop_extra_slots();
  }

  /// The caller writes the owned range of the storage on the compute stream between these two.
  void begin_write(Parameter& parameter, const char* what) {
    engine_.check();
    if (std::exchange(lazy_, false)) take_released_back();
    if (parameter.leases > 0) {
      raise("{} of parameter '{}' while {} lease(s) of it are open: release them first", what,
            parameter.name(), parameter.leases);
    }
    engine_.wait(parameter.gathered, parameter.subject, Activity::all_gather);
    if (is_shared(parameter)) shared_.begin_write(parameter);
  }
  /// `everything`: the whole storage was written, on all ranks alike, not the owned range alone.
  void end_write(Parameter& parameter, bool everything) noexcept {
    ++parameter.version;
    parameter.written = engine_.compute.record();
    if (is_shared(parameter)) shared_.wrote(parameter);
    const bool is_whole = everything || !parameter.updates_shard();
    if (parameter.storage_is_whole() && !parameter.has_copy() && is_whole) {
      parameter.gathered_version = parameter.version;
    }
  }

 private:
  using State = typename Slot<Device>::State;

  // So many parameters are gathered by one call without an allocation. More, all of them at once
  // say, make one.
  [[nodiscard]] std::size_t most_together() const noexcept {
    constexpr std::size_t usual = 64;
    std::size_t largest = 1;
    for (const auto& unit : units_) largest = std::max(largest, unit->size());
    return std::min(parameters_.size(), std::max(usual, largest * engine_.options.open_parameters));
  }

  void lend_all(std::span<Parameter* const> wanted) {
    std::size_t bytes = 0;  // members of one bucket count it each: seldom, and not for long
    for (const Parameter* parameter : wanted) bytes += parameter->unit->lease_bytes;
    const typename Engine<Device>::Placing placing(engine_, bytes);
    std::size_t lent = 0;
    try {
      for (; lent < wanted.size(); ++lent) lend(*wanted[lent]);
      settle(wanted);
    } catch (...) {
      abort(wanted.first(lent));
      throw;
    }
  }

  // A gather has failed: nothing of it is open, or on its way.
  void abort(std::span<Parameter* const> lent) noexcept {
    queue_.clear();
    shared_.clear();
    for (Parameter* parameter : fetched_) parameter->gathered_version = 0;
    fetched_.clear();
    for (Parameter* parameter : lent) close(*parameter);
  }

  [[nodiscard]] SlotPool<Device>& pool_of(const Unit& unit) noexcept {
    return unit.residency == Residency::in_place ? pages_
           : unit.residency == Residency::shared ? shared_slots_
                                                 : buffers_;
  }
  [[nodiscard]] static bool is_shared(const Parameter& parameter) noexcept {
    return parameter.residency == Residency::shared;
  }

  // The call by which ranks compare what a parameter is registered with.
  [[nodiscard]] CallInfo registration_of(const Parameter& parameter) const noexcept {
    CallInfo info = engine_.info(parameter.name());
    RegistrationPrint& print = info.registration;
    print.registers = true;
    Hash all;
    const auto add = [&](std::uint16_t& thing, auto value) {
      const auto bits = static_cast<std::uint64_t>(value);
      all.add(bits);
      Hash its;
      its.add(thing);
      its.add(bits);
      thing = static_cast<std::uint16_t>(its.value());
    };
    add(print.tensors, parameter.layout.hash());
    add(print.storage, parameter.storage);
    add(print.strategy, parameter.strategy.hash());
    add(print.placement, parameter.tied);
    add(print.placement, parameter.residency);
    add(print.position, parameters_.size());
    add(print.context_strategy, engine_.strategy.hash());
    add(print.context_options, engine_.options.open_parameters);
    add(print.context_options, engine_.options.open_gradients);
    add(print.context_options, engine_.options.debug);
    add(print.overlap_from, engine_.overlap_from);
    // Whether a gather is free depends on it.
    for (const RangeOf<Device>* arena : engine_.arenas) {
      add(print.arenas, arena->recycling());
      add(print.arenas, arena->release());
    }
    info.detail = all.value();
    return info;
  }

  [[nodiscard]] std::vector<const Registration*> entries() const {
    return {parameters_.begin(), parameters_.end()};
  }

  void form_units() {
    if (!prepared_) {  // also after an attempt that found no room for slots
      units_.clear();
      keeper_ = Keeper(engine_.strategy.keep_resident_bytes);
      for (Parameter* parameter : parameters_) parameter->unit = nullptr;
    }
    const std::vector<const Registration*> all = entries();
    const auto unit_of = group_parameters(all);
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      Parameter& parameter = *parameters_[i];
      if (parameter.unit != nullptr) continue;
      const bool joins = i > 0 && unit_of[i] == unit_of[i - 1];
      if (!joins) units_.push_back(std::make_unique<Unit>());
      Unit& unit = *units_.back();
      unit.needs_slot = parameter.needs_slot();
      unit.shares_slots = parameter.shares_slots();
      unit.residency = parameter.residency;
      unit.hidden = engine_.options.debug;
      parameter.unit = &unit;
      parameter.unit_offset = unit.slot_bytes();
      unit.push_back(parameter);
      unit.lease_bytes += parameter.lease_bytes();
      ranges_.reserve(unit);
    }
  }

  void allocate_slots() {
    Slots slots = plan_parameter_slots(entries(), engine_.strategy, engine_.options);
    Slots own;  // units whose members have gone may be others than the plan's
    for (const auto& unit : units_) {
      if (!unit->settled && keeper_.keeps(unit->front(), unit->lease_bytes)) {
        unit->shares_slots = false;
        unit->kept = true;
      }
      unit->settled = true;
      if (unit->needs_slot)
        own.of(unit->residency)
            .add(unit->slot_bytes(), UnitRanges::count(*unit), !unit->shares_slots);
    }
    slots.buffers.cover(own.buffers, engine_.options.open_parameters);
    slots.shared.cover(own.shared, engine_.options.open_parameters);
    slots.pages.cover(own.pages, engine_.options.open_parameters);
    buffers_.share(slots.buffers.count, slots.buffers.largest, 0, engine_.recycling());
    shared_slots_.share(slots.shared.count, slots.shared.largest, 0, engine_.recycling());
    pages_.share(slots.pages.count, slots.pages.largest, slots.pages.ranges, recycling());
    for (const auto& unit : units_) {
      if (!unit->needs_slot || unit->shares_slots || unit->slot != nullptr) continue;
      pool_of(*unit).dedicate(unit->slot, unit->slot_bytes(), UnitRanges::count(*unit),
                              recycling());
    }
  }

  // An exhausted pool is found before anything changes.
  void check_room(std::span<Parameter* const> wanted) {
    wanted_.clear();
    for (Parameter* parameter : wanted) {
      Unit* unit = parameter->unit;
      if (!borrows(*unit) || unit->leases > 0) continue;
      if (std::find(wanted_.begin(), wanted_.end(), unit) == wanted_.end()) {
        wanted_.push_back(unit);
      }
    }
    for (SlotPool<Device>* pool : {&buffers_, &shared_slots_, &pages_}) {
      std::size_t needed = pool->open_shared();
      for (const Unit* unit : wanted_) {
        if (&pool_of(*unit) == pool) ++needed;
      }
      if (needed > pool->shared_count())
        raise_no_room(wanted.front()->name(), pool->shared_count());
    }
  }

  // Takes one of the slots that are shared.
  [[nodiscard]] static bool borrows(const Unit& unit) noexcept {
    return unit.shares_slots && !unit.extra_slot;
  }

  [[noreturn]] void raise_no_room(const std::string& name, std::size_t slots) const {
    std::string holders;
    for (const auto& unit : units_) {
      for (const Parameter* member : *unit) {
        if (member->leases == 0 || !unit->shares_slots) continue;
        holders += detail::format("{}'{}'", holders.empty() ? "" : ", ", member->name());
      }
    }
    raise(
        "gathering '{}' needs a slot, but all {} are lent: to {}. Release one of them, or set "
        "ContextOptions::open_parameters to the number of parameters that you hold open at once",
        name, slots, holders.empty() ? "this call" : holders);
  }

  void lend(Parameter& parameter) {
    Unit& unit = *parameter.unit;
    fetch(unit, true);
    ++parameter.leases;
    ++unit.leases;
    if (unit.slot != nullptr) pool_of(unit).mark(*unit.slot, State::open);
  }

  // Issues what was queued; the compute stream waits for it.
  void settle(std::span<Parameter* const> opened) {
    const std::string& name = opened.front()->name();
    const bool moved = flush(*opened.front(), true);
    for (Parameter* parameter : opened) {
      engine_.wait(parameter->gathered, parameter->subject, Activity::all_gather);
      if (is_shared(*parameter)) shared_.opened(*parameter);
      // Others of its bucket may be on their way into the same slot.
      const Slot<Device>* const slot = parameter->unit->slot;
      if (slot != nullptr) engine_.wait(slot->filled, parameter->subject, Activity::all_gather);
    }
    for (const Parameter* parameter : opened) {
      if (parameter->leases == 1) engine_.mark(Mark::parameter_open, parameter->subject);
    }
    if (!engine_.options.debug || everything_ > 0) return;
    if (!moved) {  // ranks agree on free gathers, too
      engine_.meet(engine_.info(name));
    }
    for (const Parameter* parameter : opened) {
      if (parameter->unit->slot != nullptr) parameter->unit->slot->pages.protect(Access::read);
    }
  }

  // Queues what the unit lacks; false where it needs a slot and may not have one.
  bool fetch(Unit& unit, bool insist) {
    if (unit.needs_slot && unit.slot == nullptr && !take_slot(unit, insist)) return false;
    if (unit.needs_slot && unit.leases == 0) {
      if (engine_.options.debug && unit.slot->state != State::fetched) check_untouched(unit);
      if (unit.residency == Residency::in_place) put_below(unit);
      pool_of(unit).mark(*unit.slot, State::fetched);
    }
    bool waited = !unit.needs_slot;
    for (Parameter* member : unit) {
      if (member->gathered_version == member->version) continue;
      if (!waited) {
        engine_.communication.wait(unit.slot->last_use);
        if (engine_.options.debug) unit.slot->pages.protect(Access::write);
      }
      waited = true;
      if (is_shared(*member)) {
        shared_.add(*member);
      } else {
        queue_.add(*member);
      }
      fetched_.push_back(member);
    }
    return true;
  }

  bool take_slot(Unit& unit, bool insist) {
    if (!pool_of(unit).acquire(unit.slot, insist)) return false;
    Slot<Device>& slot = *unit.slot;
    if (pool_of(unit).is_small(slot)) {
      try {
        wait_for_users(slot);
        give_pages_back(slot);
        for (const auto& other : units_) {
          if (other->home == &slot) clear_home(*other);
        }
        pool_of(unit).grow(slot);
      } catch (...) {
        pool_of(unit).give_up(unit.slot);
        throw;
      }
    }
    pool_of(unit).mark(slot, State::empty);
    for (Parameter* member : unit) member->gathered_version = 0;
    return true;
  }

  // The slot may lie below another unit's addresses still: one that was released, or fetched and
  // never opened.
  void put_below(Unit& unit) {
    Slot<Device>& slot = *unit.slot;
    const auto ranges = ranges_.of(unit);
    if constexpr (MapsMemory<Device>) {
      if (slot.pages.is_lent_below(ranges)) return;  // and nobody need be waited for
      engine_.await(slot.filled, slot.user, slot.use);
      engine_.await(slot.last_use, slot.user, slot.use);
      slot.pages.lend(ranges);
    } else {
      const bool is_home = unit.home == &slot;
      if (slot.pages.is_lent_below(ranges) && (is_home || !slot.pages.stays_below())) return;
      wait_for_users(slot);
      if (engine_.options.debug) give_pages_back(slot);  // so that nothing is readable behind them
      if (is_home) {
        slot.pages.lend_again(ranges);
        return;
      }
      unit.home = nullptr;
      slot.pages.lend(ranges);
      if (slot.pages.stays_below()) unit.home = &slot;
    }
  }

  // Nothing of a slot stays below the unit's addresses: the slot's memory is about to go.
  void clear_home(Unit& unit) noexcept {
    if (std::exchange(unit.home, nullptr) == nullptr) return;
    for (const PageRange& range : ranges_.of(unit)) {
      if (!empty_pages(range, Access::write)) engine_.lost_pages = true;
    }
  }

  // The slots of pages are of one kind, that of the first parameter which took one.
  [[nodiscard]] Recycling recycling() const noexcept {
    return aliases_.value_or(false) ? Recycling::alias : engine_.recycling();
  }
  void settle_recycling(const Parameter& parameter) {
    if (parameter.arena() == nullptr || !parameter.needs_slot()) return;
    if (parameter.residency != Residency::in_place) return;
    const bool aliases = parameter.arena()->recycling() == Recycling::alias;
    if (aliases_.value_or(aliases) == aliases) {
      aliases_ = aliases;
      return;
    }
    raise(
        "parameter '{}' lies in arena '{}' with pages that {}, but parameters of this context have "
        "been in arenas with pages that {}, and all take turns with the same memory: give their "
        "arenas the same ArenaOptions::recycling",
        parameter.name(), parameter.arena()->name(), aliases ? "stay" : "move",
        aliases ? "move" : "stay");
  }

  void wait_for_users(const Slot<Device>& slot) {
    engine_.wait(slot.filled, slot.user, slot.use);
    engine_.wait(slot.last_use, slot.user, slot.use);
  }

  // False where nothing had to travel, and no rank to wait. `wanted`: at once.
  bool flush(const Parameter& first, bool wanted) {
    const bool moves = queue_.flush(first);
    const bool met = shared_.flush(first, wanted);
    if (fetched_.empty()) return moves || met;
    const auto done = engine_.communication.record();
    for (Parameter* parameter : fetched_) {
      if (is_shared(*parameter)) continue;
      parameter->gathered = done;
      Slot<Device>* const slot = parameter->unit->slot;
      if (slot == nullptr) continue;
      slot->filled = done;
      slot->user = parameter->subject;
    }
    fetched_.clear();
    return moves || met;
  }

  void give_pages_back(Slot<Device>& slot) noexcept {
    if constexpr (MapsMemory<Device>) {
      if (slot.pages.lent()) engine_.quiesce();
    }
    if (!slot.pages.take_back(engine_.released())) engine_.lost_pages = true;
  }

  // Whether the pages go at the release; where they stay in a slot that is shared, the next unit
  // takes them from there.
  [[nodiscard]] static bool is_eager(const Unit& unit) noexcept {
    return unit.shares_slots && std::any_of(unit.begin(), unit.end(), [](const Parameter* member) {
             return member->arena() != nullptr && member->arena()->release() == Release::eager;
           });
  }

  // The host's addresses are without memory again; the pool keeps what was gathered, if it can.
  void take_back(Slot<Device>& slot, Unit& unit) noexcept {
    give_pages_back(slot);
    if (slot.pages.keeps_contents()) return;
    for (Parameter* member : unit) member->gathered_version = 0;
  }

  // Where gathers are over for now, what they left below the host's addresses goes; not where the
  // host would have to wait for it.
  void take_released_back() noexcept {
    if constexpr (MapsMemory<Device>) return;
    for (const auto& unit : units_) {
      const bool rests = unit->slot != nullptr && unit->slot->state == State::released;
      if (rests && unit->shares_slots && unit->slot->pages.lent()) take_back(*unit->slot, *unit);
    }
  }

  // Debug mode: nobody can read what is released.
  void hide(Unit& unit) noexcept {
    Slot<Device>& slot = *unit.slot;
    for (Parameter* member : unit) {
      member->gathered_version = 0;
      if constexpr (!MapsMemory<Device>) {
        if (unit.residency == Residency::in_place) AddressRange::poison_crumbs(member->placed);
      }
    }
    unit.hidden = true;
    if (unit.residency == Residency::shared) return;  // other ranks may still read it
    if (unit.residency == Residency::in_place && !MapsMemory<Device>) {
      give_pages_back(slot);
    } else {
      try {
        poison(unit);
        slot.hidden_from = unit.front().name();
      } catch (const BackendError&) {  // the device has failed, as the next call says
        slot.hidden_from.clear();
      }
      slot.last_use = engine_.compute.record();
    }
  }

  // What lies in the slot, or in place on a device, which takes nothing away at a release.
  void poison(Unit& unit) {
    Slot<Device>& slot = *unit.slot;
    if (unit.residency != Residency::in_place) {
      Device::poison(engine_.compute, slot.buffer.data(), slot.buffer.size());
      return;
    }
    for (const Parameter* member : unit) {
      for (const PageRange& range : member->placed.pages()) {
        Device::poison(engine_.compute, range.begin, range.bytes);
      }
      for (const auto& crumb : member->placed.crumbs()) {
        Device::poison(engine_.compute, crumb.data(), crumb.size());
      }
    }
  }

  // Debug mode: nobody wrote to what was released.
  void check_untouched(Unit& unit) {
    for (const Parameter* member : unit) {
      if (!unit.hidden || member->arena() == nullptr) continue;
      const std::string found = find_written_crumb(engine_, *member->arena(), member->placed);
      if (!found.empty()) raise("{}", found);
    }
    unit.hidden = false;
    Slot<Device>& slot = *unit.slot;
    const std::string owner = std::exchange(slot.hidden_from, {});
    if (owner.empty() || is_poisoned(engine_, slot)) return;
    raise(
        "rank {} wrote to parameter '{}' after it was released: parameters are written by step() "
        "and update() alone",
        engine_.rank(), owner);
  }

  // A member has gone: what was gathered for the unit is of no use.
  void forget(Unit& unit) noexcept {
    unit.changed = false;
    if (unit.slot != nullptr) give_pages_back(*unit.slot);
    for (Parameter* member : unit) member->gathered_version = 0;
  }

  // Nobody is left: its slot is for others, or nobody's.
  void dissolve(Unit& unit) noexcept {
    if (unit.slot != nullptr) pool_of(unit).give_up(unit.slot);
    if (unit.kept) keeper_.forget(unit.lease_bytes);
    std::erase_if(units_, [&](const auto& candidate) { return candidate.get() == &unit; });
  }

  void add_extra_slots() {
    for (const auto& unit : units_) {
      if (!unit->needs_slot || unit->slot != nullptr) continue;
      pool_of(*unit).dedicate(unit->slot, unit->slot_bytes(), UnitRanges::count(*unit), recycling(),
                              true);
      unit->extra_slot = true;
      for (Parameter* member : *unit) member->gathered_version = 0;
    }
  }
  void drop_extra_slots() noexcept {
    for (const auto& unit : units_) {
      if (unit->extra_slot && unit->leases == 0) drop_extra_slot(*unit);
    }
  }
  void drop_extra_slot(Unit& unit) noexcept {
    engine_.quiesce();
    give_pages_back(*unit.slot);
    if (unit.home == unit.slot) clear_home(unit);
    pool_of(unit).give_up(unit.slot);
    unit.extra_slot = false;
  }

  Engine<Device>& engine_;
  SlotPool<Device> buffers_;
  SlotPool<Device> pages_;
  SharedGathers<Device> shared_;  // has the memory of the next
  SlotPool<Device> shared_slots_;
  Keeper keeper_;
  std::vector<Parameter*> parameters_;
  std::vector<std::unique_ptr<Unit>> units_;
  GatherQueue<Device> queue_;
  std::vector<Parameter*> fetched_;
  std::vector<Unit*> wanted_;
  UnitRanges ranges_;
  std::uint32_t registered_ = 0;
  std::size_t everything_ = 0;   // scopes of open_all
  std::optional<bool> aliases_;  // whether pages stay below their ranges; unknown at first
  bool lazy_ = false;            // pages of a released unit may lie below the host's addresses
  bool prepared_ = false;
  bool complete_ = false;  // all parameters have units and slots
};

}  // namespace shardwise::inline v0_1::detail
