#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "../comm/communicator.hpp"
#include "../core/dtype.hpp"
#include "engine.hpp"
#include "flat_parameter.hpp"
#include "program_order.hpp"
#include "share_pages.hpp"
#include "shared_slot_memory.hpp"

namespace shardwise::inline v0_1::detail {

/// Residency::shared: one copy of each parameter for all ranks of an address space. Who reads and
/// who writes it when is a matter of ProgramOrder:
///
/// - leases of the storage type show the storage: a gather waits for the other ranks where one of
///   them may not have finished the last write, a write where one may not have ended its leases;
/// - leases of another type show a slot that the ranks share: a gather waits until all ranks have
///   left it, casts this rank's shard into it and waits for the other ranks' casts.
///
/// A rank writes its own shard and nothing else. Where another collective of all ranks came between
/// (a norm, a loss's mean, a reduction of gradients), it has waited already and nothing happens.
template <class Device>
class SharedGathers {
 public:
  using Parameter = FlatParameter<Device>;

  explicit SharedGathers(Engine<Device>& engine) : engine_(engine) {}

  /// Where the slots of casts come from.
  [[nodiscard]] SharedSlotMemory& memory() noexcept { return memory_; }

  /// Allocates the storage where no arena has it; all ranks together. UsageError, on all of them,
  /// where they cannot share it.
  void join(Parameter& parameter) {
    Communicator& ranks = *parameter.group->within;
    if (Device::memory == MemoryKind::cuda) refuse(parameter, ranks);
    if (memory_.ranks() != nullptr && memory_.ranks() != &ranks) {
      raise(
          "parameter '{}' is shared by groups of {} ranks, but others of this context by groups of "
          "{}: set one Strategy::shard_group for all that is shared, or "
          "ParameterOptions::residency = Residency::slots",
          parameter.name(), ranks.size(), memory_.ranks()->size());
    }
    const std::size_t bytes = parameter.layout.padded_size() * size_of(parameter.storage);
    const std::size_t begin = parameter.shard_begin * size_of(parameter.storage);
    if (parameter.in_shared_arena) {
      check_arena(parameter, ranks);
    } else if (bytes > 0) {
      parameter.shared->block = ranks.share_block(bytes, info(parameter, Waits::to_allocate));
      if (parameter.shared->block == nullptr) refuse(parameter, ranks);
      parameter.value = Buffer<Device>::within(engine_.ledger, StateKind::parameters,
                                               parameter.shared->block->data() + begin,
                                               parameter.storage_bytes());
    }
    if (memory_.ranks() == nullptr) memory_.join(ranks, engine_.options.timeout);
    wrote(parameter);
  }

  /// So many are queued without an allocation.
  void reserve(std::size_t count) {
    queued_.reserve(count);
    parts_.reserve(count);
  }
  void clear() noexcept { queued_.clear(); }

  /// Wanted whole, in the lease type.
  void add(Parameter& parameter) {
    parameter.gathered_version = parameter.version;
    if (parameter.shard_size() > 0) queued_.push_back(&parameter);
  }

  /// Does what those that were added lack; the host waits for it in opened(). `wanted`: it does so
  /// at once. False where no rank had to wait for another. Named after `first`.
  bool flush(const Parameter& first, bool wanted) {
    if (queued_.empty()) return false;
    const Emptied<std::vector<Parameter*>> emptied{queued_};
    const Emptied<std::vector<ActivityPart>> no_parts{parts_};
    const auto others = static_cast<std::size_t>(memory_.ranks()->size() - 1);
    ProgramOrder& order = engine_.order;
    std::size_t bytes = 0;
    std::size_t sent = 0;
    std::size_t cast = 0;
    Needs needs;
    for (const Parameter* parameter : queued_) {
      const std::size_t shard = parameter->shard_size() * size_of(parameter->lease);
      parts_.push_back({parameter->subject, shard * others});
      bytes += shard * (others + 1);
      sent += shard * others;
      if (!parameter->lends_storage()) {
        cast += shard;
        needs.casts = true;
        needs.slot = needs.slot || parameter->unit->slot->released_at > order.issued();
      } else if (parameter->shared->written_at > order.met()) {
        needs.values = true;
        needs.barrier = needs.barrier || parameter->shared->written_at > order.issued();
      }
    }
    Statistics& statistics = engine_.statistics;
    statistics.traffic.all_gather += sent;
    ++statistics.traffic.all_gather_calls;
    statistics.shared += sent;
    statistics.cast += cast;
    const bool in_stream = needs.casts || (needs.barrier && !wanted);
    engine_.issue(
        Activity::all_gather, queued_.front()->subject, bytes, sent, parts_,
        [&] {
          if (in_stream) {
            meet_in_stream(first, needs);
          } else if (needs.barrier) {
            meet(first, Waits::to_read);
          }
        },
        !in_stream);
    if (!in_stream && !needs.values) return false;
    const auto done = engine_.communication.record();
    for (Parameter* parameter : queued_) {
      parameter->gathered = done;
      parameter->shared->gathered_behind = order.issued();
      Slot<Device>& slot = *parameter->unit->slot;
      slot.filled = done;
      slot.user = parameter->subject;
    }
    return true;
  }

  /// The host has waited for `gathered`.
  void opened(const Parameter& parameter) noexcept {
    engine_.order.meet(parameter.shared->gathered_behind);
  }

  /// The last lease of the parameter has ended.
  void closed(Parameter& parameter) noexcept {
    std::uint64_t& at = parameter.lends_storage() ? parameter.shared->released_at
                                                  : parameter.unit->slot->released_at;
    at = engine_.order.next();
  }

  /// The host has waited for `gathered` and has no lease. Afterwards no rank reads the storage.
  void begin_write(Parameter& parameter) {
    opened(parameter);
    if (parameter.shared->released_at <= engine_.order.met()) return;
    const auto begin = Engine<Device>::Clock::now();
    meet(parameter, Waits::to_write);
    engine_.statistics.waited += Engine<Device>::Clock::now() - begin;
  }
  void wrote(Parameter& parameter) noexcept { parameter.shared->written_at = engine_.order.next(); }

 private:
  /// What ranks wait for each other for, in fingerprints.
  enum class Waits : std::uint8_t { to_allocate = 1, to_read, to_write, to_cast, for_casts };

  struct Needs {
    bool casts = false;    // there are leases of another type
    bool slot = false;     // other ranks may still read a slot of theirs
    bool values = false;   // another rank's write may not be over as far as the host knows,
    bool barrier = false;  // or the communication stream
  };

  [[noreturn]] static void refuse(const Parameter& parameter, const Communicator& ranks) {
    refuse_sharing("parameter", parameter.name(), ranks);
  }

  static void check_arena(const Parameter& parameter, const Communicator& ranks) {
    if (parameter.lease != parameter.storage) {
      raise(
          "parameter '{}' is {} in a shared arena, but its leases are {}: what ranks share in "
          "place "
          "is the storage itself. Leave Strategy::lease out, or take an arena of each rank's own",
          parameter.name(), name_of(parameter.storage), name_of(parameter.lease));
    }
    if (parameter.arena() == nullptr || parameter.arena()->ranks() == &ranks) return;
    raise(
        "parameter '{}' is shared by groups of {} ranks, but arena '{}' by others: an arena is of "
        "the groups of the context's own strategy (Strategy::shard_group)",
        parameter.name(), ranks.size(), parameter.arena()->name());
  }

  [[nodiscard]] CallInfo info(const Parameter& parameter, Waits waits) const noexcept {
    return engine_.info(parameter.name(), static_cast<std::uint64_t>(waits));
  }

  // The host waits, on no stream: no worker has to wake up.
  void meet(const Parameter& parameter, Waits waits) {
    const std::uint64_t number = engine_.order.issue();
    memory_.ranks()->barrier(info(parameter, waits), {});
    engine_.order.meet(number);
  }

  void meet_in_stream(const Parameter& first, const Needs& needs) {
    auto& stream = engine_.communication;
    const auto barrier = [&](Waits waits) {
      engine_.order.issue();
      memory_.ranks()->barrier(info(first, waits), stream.ref());
    };
    if (needs.slot) barrier(Waits::to_cast);
    for (const Parameter* parameter : queued_) {
      if (parameter->lends_storage()) continue;
      stream.wait(parameter->written);
      Device::convert(
          stream, parameter->whole() + parameter->shard_begin * size_of(parameter->lease),
          parameter->lease, parameter->value.data(), parameter->storage, parameter->shard_size());
    }
    barrier(needs.casts ? Waits::for_casts : Waits::to_read);
  }

  Engine<Device>& engine_;
  SharedSlotMemory memory_;
  std::vector<Parameter*> queued_;
  std::vector<ActivityPart> parts_;  // of queued_
};

}  // namespace shardwise::inline v0_1::detail
