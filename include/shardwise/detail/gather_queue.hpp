#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "../comm/communicator.hpp"
#include "../core/piece.hpp"
#include "engine.hpp"
#include "flat_parameter.hpp"

namespace shardwise::inline v0_1::detail {

/// Gathers that are about to be issued: one collective for those among the same ranks. With
/// Strategy::reshard_group the first gather of a version leaves a secondary shard for the next
/// ones.
template <class Device>
class GatherQueue {
 public:
  using Parameter = FlatParameter<Device>;

  explicit GatherQueue(Engine<Device>& engine) : engine_(engine) {}

  /// So many are queued without an allocation.
  void reserve(std::size_t count) {
    queued_.reserve(count);
    items_.reserve(count);
    parts_.reserve(count);
  }
  void clear() noexcept { queued_.clear(); }

  /// Brings the whole parameter to where leases see it, in the order of the communication stream.
  void add(Parameter& parameter) {
    auto& stream = engine_.communication;
    stream.wait(parameter.written);
    if (parameter.keeps_secondary() && parameter.beside_is_current()) {
      add_secondary(parameter);
    } else {
      add_shard(parameter);
    }
    parameter.gathered_version = parameter.version;
  }

  /// Issues all of them; false where there are none. The first collective is named after `first`.
  bool flush(const Parameter& first) {
    if (queued_.empty()) return false;
    const Emptied<std::vector<Queued>> emptied{queued_};
    for (std::size_t begin = 0; begin < queued_.size(); ++begin) {
      Communicator* const comm = queued_[begin].comm;
      if (comm == nullptr) continue;
      const Emptied<std::vector<GatherItem>> no_items{items_};
      const Emptied<std::vector<ActivityPart>> no_parts{parts_};
      for (Queued& queued : queued_) {
        if (queued.comm == comm) take(queued);
      }
      issue(begin == 0 ? first : *queued_[begin].parameter, *comm);
    }
    for (const Queued& queued : queued_) keep_secondary(*queued.parameter);
    return true;
  }

 private:
  struct Queued {
    Parameter* parameter;
    Communicator* comm;  // null: issued
    GatherItem item;
  };

  using Pieces = std::span<const Piece>;

  // Where leases see pieces, and not one flat buffer.
  [[nodiscard]] static Pieces pieces_of(const Parameter& parameter) noexcept {
    const bool scattered =
        parameter.sharded() ? parameter.in_pieces() : parameter.replicated_in_place();
    return scattered ? Pieces(parameter.pieces()) : Pieces();
  }

  // The part that this rank contributes is put where the others read it.
  void add_shard(Parameter& parameter) {
    auto& stream = engine_.communication;
    const std::size_t shard = parameter.shard_size();
    const std::size_t begin = parameter.owned_begin();
    const std::size_t size = size_of(parameter.lease);
    const bool casts = parameter.lease != parameter.storage;
    const Pieces pieces = pieces_of(parameter);
    std::byte* const whole = parameter.whole();
    if (casts && !parameter.beside_is_current()) {
      for_each_place(whole, pieces, size, begin, begin + parameter.owned_count(),
                     [&](std::byte* place, std::size_t first, std::size_t count) {
                       Device::convert(
                           stream, place, parameter.lease,
                           parameter.owned() + (first - begin) * size_of(parameter.storage),
                           parameter.storage, count);
                     });
    }
    if (!parameter.updates_shard() || shard == 0) return;
    const bool is_there = casts || !parameter.sharded();
    const void* send = is_there ? nullptr : parameter.value.data();
    if (pieces.empty() && (is_there || engine_.options.slot_memory != nullptr)) {
      std::byte* const own = whole + parameter.shard_begin * size;
      if (!is_there) Device::copy(stream, own, parameter.value.data(), shard * size);
      send = own;
    }
    push(parameter, *parameter.group->within, send, shard, pieces);
  }

  // The same from the secondary shard, among fewer ranks.
  void add_secondary(Parameter& parameter) {
    const std::size_t count = parameter.secondary_size();
    if (count == 0) return;
    const Pieces pieces = pieces_of(parameter);
    const void* send = parameter.beside->buffer.data();
    if (pieces.empty() && engine_.options.slot_memory != nullptr) {
      std::byte* const own =
          parameter.whole() + secondary_begin(parameter) * size_of(parameter.lease);
      Device::copy(engine_.communication, own, send, count * size_of(parameter.lease));
      send = own;
    }
    push(parameter, *parameter.beside->ranks, send, count, pieces);
  }

  // What was gathered within the whole group leaves a part here, for the next gathers.
  void keep_secondary(Parameter& parameter) {
    if (!parameter.keeps_secondary() || parameter.beside_is_current()) return;
    const std::size_t begin = secondary_begin(parameter);
    const std::size_t size = size_of(parameter.lease);
    for_each_place(parameter.whole(), pieces_of(parameter), size, begin,
                   begin + parameter.secondary_size(),
                   [&](const std::byte* place, std::size_t first, std::size_t count) {
                     Device::copy(engine_.communication,
                                  parameter.beside->buffer.data() + (first - begin) * size, place,
                                  count * size);
                   });
    parameter.beside->version = parameter.version;
  }

  [[nodiscard]] static std::size_t secondary_begin(const Parameter& parameter) noexcept {
    return static_cast<std::size_t>(parameter.beside->ranks->rank()) * parameter.secondary_size();
  }

  // In the registered memory of a communicator it all is in place, so that it knows what is sent.
  void push(Parameter& parameter, Communicator& comm, const void* send, std::size_t count,
            Pieces pieces) {
    void* const whole = pieces.empty() ? parameter.whole() : nullptr;
    queued_.push_back({&parameter, &comm, {send, whole, count, parameter.lease, pieces}});
  }

  void take(Queued& queued) {
    const GatherItem& item = queued.item;
    const Parameter& parameter = *queued.parameter;
    const auto others = static_cast<std::size_t>(queued.comm->size() - 1);
    const std::size_t sent = item.count * size_of(item.dtype) * others;
    items_.push_back(item);
    parts_.push_back({parameter.subject, sent});
    if (queued.comm != parameter.group->within) {
      engine_.statistics.traffic.within_secondary += sent;
    }
    queued.comm = nullptr;
  }

  void issue(const Parameter& name, Communicator& comm) {
    const auto ranks = static_cast<std::size_t>(comm.size());
    std::size_t sent = 0;
    std::size_t bytes = 0;
    for (const GatherItem& item : items_) bytes += item.count * size_of(item.dtype) * ranks;
    for (const ActivityPart& part : parts_) sent += part.wire_bytes;
    engine_.statistics.traffic.all_gather += sent;
    ++engine_.statistics.traffic.all_gather_calls;
    engine_.issue(Activity::all_gather, name.subject, bytes, sent, parts_, [&] {
      comm.all_gather(items_, engine_.info(name.name()), engine_.communication.ref());
    });
  }

  Engine<Device>& engine_;
  std::vector<Queued> queued_;
  std::vector<GatherItem> items_;    // of the collective that is being issued
  std::vector<ActivityPart> parts_;  // of items_
};

}  // namespace shardwise::inline v0_1::detail
