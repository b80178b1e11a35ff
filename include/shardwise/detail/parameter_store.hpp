#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine.hpp"
#include "registration.hpp"
#include "slot_pool.hpp"

namespace shardwise::inline v0_1::detail {

template <class Device>
struct ParameterUnit;

/// One flat parameter of any element type: its storage on this rank and where it stands.
template <class Device>
struct FlatParameter : Registration {
  FlatParameter(Engine<Device>& engine, Registration registration)
      : Registration(std::move(registration)),
        shard_begin(layout.shard_begin(engine.rank())),
        value(engine.ledger, StateKind::parameters,
              (storage_is_whole() ? layout.padded_size() : layout.shard_size()) * size_of(storage)),
        copy(engine.ledger, StateKind::parameters, has_copy() ? lease_bytes() : 0) {}

  /// The flat range that this rank's optimizer updates: its shard, or everything.
  [[nodiscard]] std::size_t owned_begin() const noexcept {
    return updates_shard() ? shard_begin : 0;
  }
  [[nodiscard]] std::size_t owned_count() const noexcept {
    return updates_shard() ? layout.shard_size() : layout.padded_size();
  }
  /// The first element of that range in the storage.
  [[nodiscard]] std::byte* owned() const noexcept {
    return value.data() + (storage_is_whole() ? owned_begin() * size_of(storage) : 0);
  }
  /// The whole parameter in the lease type; null while it is not gathered.
  [[nodiscard]] std::byte* whole() const noexcept {
    if (sharded()) return unit->slot == nullptr ? nullptr : unit->slot->buffer.data() + unit_offset;
    return has_copy() ? copy.data() : value.data();
  }

  std::size_t shard_begin;
  Buffer<Device> value;
  Buffer<Device> copy;
  typename Device::Event written = {};   ///< compute stream: the last write
  typename Device::Event gathered = {};  ///< communication stream: the last read by a gather
  std::uint64_t version = 1;             ///< of the storage; every write adds 1
  std::uint64_t gathered_version = 0;    ///< of whole()
  std::size_t index = 0;                 ///< in order of registration
  std::size_t leases = 0;
  bool held = false;  ///< by the plain calls
  ParameterUnit<Device>* unit = nullptr;
  std::size_t unit_offset = 0;  ///< bytes, in the unit's slot
};

/// Empties a list of items at the end of the scope, also where the call that they are for throws.
template <class Item>
struct Emptied {
  std::vector<Item>& items;
  ~Emptied() { items.clear(); }
};

/// What is gathered together: one parameter, or several small ones in registration order.
template <class Device>
struct ParameterUnit {
  std::vector<FlatParameter<Device>*> members;
  bool sharded = false;
  bool shares_slots = false;
  Slot<Device>* slot = nullptr;
  std::size_t leases = 0;
  std::size_t bytes = 0;
};

/// All parameters of a Context: gathers them into slots and takes them back. What is open, fetched
/// or stale is a function of program order alone.
template <class Device>
class ParameterStore {
 public:
  using Parameter = FlatParameter<Device>;
  using Unit = ParameterUnit<Device>;

  explicit ParameterStore(Engine<Device>& engine) : engine_(engine), pool_(engine.ledger) {}

  void add(Parameter& parameter) {
    if (prepared_) {
      raise(
          "parameter '{}' is registered after the slots were allocated, by the first gather or by "
          "prepare(); register all parameters first",
          parameter.name);
    }
    engine_.comm.barrier(engine_.info(parameter.name, fingerprint(parameter)),
                         engine_.communication.ref());
    engine_.communication.synchronize();
    parameter.index = registered_++;
    parameters_.push_back(&parameter);
  }

  void remove(Parameter& parameter) noexcept {
    while (parameter.leases > 0) close(parameter);
    std::erase(parameters_, &parameter);
    if (parameter.unit != nullptr) std::erase(parameter.unit->members, &parameter);
  }

  [[nodiscard]] std::span<Parameter* const> parameters() const noexcept { return parameters_; }

  /// Forms units and allocates their slots; at the first gather.
  void prepare() {
    if (prepared_) return;
    form_units();
    allocate_slots();
    items_.reserve(parameters_.size());
    fetched_.reserve(parameters_.size());
    wanted_.reserve(parameters_.size());
    prepared_ = true;
  }

  /// Gathers several parameters in one grouped operation and lends them: the compute stream waits.
  void open(std::span<Parameter* const> wanted) {
    engine_.check();
    prepare();
    check_room(wanted);
    for (Parameter* parameter : wanted) {
      Unit& unit = *parameter->unit;
      fetch(unit, true);
      ++parameter->leases;
      ++unit.leases;
      if (unit.slot != nullptr) pool_.mark(*unit.slot, State::open);
    }
    flush(wanted.front()->name);
    for (Parameter* parameter : wanted) engine_.wait(parameter->gathered, parameter->name);
  }

  /// Starts to gather a parameter that is wanted soon, where a slot is free for it.
  void prefetch(Parameter& parameter) {
    engine_.check();
    prepare();
    if (fetch(*parameter.unit, false)) flush(parameter.name);
  }

  /// Takes a loan back: the slot's next writer waits for what the compute stream has been given.
  void close(Parameter& parameter) noexcept {
    Unit& unit = *parameter.unit;
    --parameter.leases;
    if (--unit.leases > 0 || unit.slot == nullptr) return;
    unit.slot->last_use = engine_.compute.record();
    pool_.mark(*unit.slot, State::released);
  }

  /// The caller writes the owned range of the storage on the compute stream between these two.
  void begin_write(Parameter& parameter, const char* what) {
    engine_.check();
    if (parameter.leases > 0) {
      raise("{} of parameter '{}' while {} lease(s) of it are open: release them first", what,
            parameter.name, parameter.leases);
    }
    engine_.wait(parameter.gathered, parameter.name);
  }
  /// `everything`: the whole storage was written, on all ranks alike, not the owned range alone.
  void end_write(Parameter& parameter, bool everything) noexcept {
    ++parameter.version;
    parameter.written = engine_.compute.record();
    const bool is_whole = everything || !parameter.updates_shard();
    if (parameter.storage_is_whole() && !parameter.has_copy() && is_whole) {
      parameter.gathered_version = parameter.version;
    }
  }

 private:
  using State = typename Slot<Device>::State;

  [[nodiscard]] std::uint64_t fingerprint(const Parameter& parameter) const noexcept {
    std::uint64_t hash = parameter.layout.hash();
    for (const std::uint64_t part :
         {static_cast<std::uint64_t>(parameter.storage), parameter.strategy.hash(),
          static_cast<std::uint64_t>(parameter.tied), std::uint64_t{parameters_.size()},
          engine_.strategy.hash(), std::uint64_t{engine_.options.open_parameters},
          std::uint64_t{engine_.options.open_gradients}}) {
      hash = (hash ^ part) * 0x100000001b3ull;
    }
    return hash;
  }

  void form_units() {
    units_.clear();  // of an attempt that found no room for slots
    std::vector<const Registration*> entries(parameters_.begin(), parameters_.end());
    const auto unit_of = group_parameters(entries);
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      Parameter& parameter = *parameters_[i];
      if (unit_of[i] == units_.size()) units_.push_back(std::make_unique<Unit>());
      Unit& unit = *units_.back();
      unit.sharded = parameter.sharded();
      unit.shares_slots = parameter.shares_slots();
      parameter.unit = &unit;
      parameter.unit_offset = unit.bytes;
      unit.members.push_back(&parameter);
      unit.bytes += parameter.lease_bytes();
    }
  }

  void allocate_slots() {
    const std::size_t cap = engine_.strategy.max_live_bytes;
    std::size_t largest = 0;
    std::size_t count = 0;
    std::size_t dedicated = 0;
    for (const auto& unit : units_) {
      if (!unit->sharded) continue;
      if (unit->shares_slots) {
        largest = std::max(largest, unit->bytes);
        ++count;
      } else {
        dedicated += unit->bytes;
      }
    }
    const auto ahead = static_cast<std::size_t>(engine_.strategy.prefetch);
    std::size_t slots = std::min(count, engine_.options.open_parameters + ahead);
    if (cap > 0 && largest > 0) {
      const std::size_t room = cap > dedicated ? (cap - dedicated) / largest : 0;
      if (room < std::min(count, engine_.options.open_parameters)) {
        raise(
            "max_live_bytes = {} has no room for {} open parameter(s) of {} bytes beside {} bytes "
            "that stay gathered; raise it to {}",
            cap, engine_.options.open_parameters, largest, dedicated,
            dedicated + largest * std::min(count, engine_.options.open_parameters));
      }
      slots = std::min(slots, room);
    } else if (cap > 0 && dedicated > cap) {
      raise(
          "max_live_bytes = {} is below the {} bytes that reshard_after_forward = false keeps "
          "gathered",
          cap, dedicated);
    }
    for (const auto& unit : units_) {
      if (unit->sharded && !unit->shares_slots) pool_.dedicate(unit->slot, unit->bytes);
    }
    pool_.share(slots, largest);
  }

  // An exhausted pool is found before anything changes.
  void check_room(std::span<Parameter* const> wanted) {
    wanted_.clear();
    for (Parameter* parameter : wanted) {
      Unit* unit = parameter->unit;
      if (!unit->shares_slots) continue;
      if (unit->leases > 0 || std::find(wanted_.begin(), wanted_.end(), unit) != wanted_.end()) {
        continue;
      }
      wanted_.push_back(unit);
    }
    std::size_t open = 0;
    for (const auto& unit : units_) {
      if (unit->leases > 0 && unit->shares_slots) ++open;
    }
    if (open + wanted_.size() <= pool_.shared_count()) return;
    std::string holders;
    for (const auto& unit : units_) {
      for (const Parameter* member : unit->members) {
        if (member->leases == 0 || !unit->shares_slots) continue;
        holders += fmt::format("{}'{}'", holders.empty() ? "" : ", ", member->name);
      }
    }
    raise(
        "gathering '{}' needs a slot, but all {} are lent: to {}. Release one of them, or set "
        "ContextOptions::open_parameters to the number of parameters that you hold open at once",
        wanted.front()->name, pool_.shared_count(), holders.empty() ? "this call" : holders);
  }

  // Queues what the unit lacks; false where it needs a slot and may not have one.
  bool fetch(Unit& unit, bool insist) {
    const bool sharded = unit.sharded;
    if (sharded && unit.slot == nullptr) {
      if (!pool_.acquire(unit.slot, insist)) return false;
      for (Parameter* member : unit.members) member->gathered_version = 0;
    }
    if (sharded && unit.leases == 0) pool_.mark(*unit.slot, State::fetched);
    bool waited = !sharded;
    for (Parameter* member : unit.members) {
      if (member->gathered_version == member->version) continue;
      if (!waited) engine_.communication.wait(unit.slot->last_use);
      waited = true;
      collect(*member);
    }
    return true;
  }

  // The part that this rank contributes is put where the others read it; the collective follows.
  void collect(Parameter& parameter) {
    auto& stream = engine_.communication;
    stream.wait(parameter.written);
    std::byte* whole = parameter.whole();
    std::byte* mine = whole + parameter.shard_begin * size_of(parameter.lease);
    const std::size_t shard = parameter.layout.shard_size();
    if (!parameter.updates_shard()) {
      Device::convert(stream, whole, parameter.lease, parameter.value.data(), parameter.storage,
                      parameter.layout.padded_size());
    } else {
      const void* send = mine;
      if (parameter.lease != parameter.storage) {
        Device::convert(stream, mine, parameter.lease, parameter.owned(), parameter.storage, shard);
      } else if (parameter.sharded()) {
        send = parameter.value.data();
      }
      if (shard > 0) items_.push_back({send, whole, shard, parameter.lease});
    }
    parameter.gathered_version = parameter.version;
    fetched_.push_back(&parameter);
  }

  void flush(const std::string& name) {
    if (!items_.empty()) {
      std::size_t sent = 0;
      for (const GatherItem& item : items_) sent += item.count * size_of(item.dtype);
      const auto world = static_cast<std::size_t>(engine_.world());
      engine_.statistics.traffic.all_gather += sent * (world - 1);
      ++engine_.statistics.traffic.all_gather_calls;
      const Emptied<GatherItem> emptied{items_};
      engine_.issue(Activity::gather, name, sent * world, [&] {
        engine_.comm.all_gather(items_, engine_.info(name), engine_.communication.ref());
      });
    }
    if (fetched_.empty()) return;
    const auto done = engine_.communication.record();
    for (Parameter* parameter : fetched_) parameter->gathered = done;
    fetched_.clear();
  }

  Engine<Device>& engine_;
  SlotPool<Device> pool_;
  std::vector<Parameter*> parameters_;
  std::vector<std::unique_ptr<Unit>> units_;
  std::vector<GatherItem> items_;
  std::vector<Parameter*> fetched_;
  std::vector<Unit*> wanted_;
  std::size_t registered_ = 0;
  bool prepared_ = false;
};

}  // namespace shardwise::inline v0_1::detail
