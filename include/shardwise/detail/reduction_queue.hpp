#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "../comm/communicator.hpp"
#include "../device/host_caches.hpp"
#include "engine.hpp"
#include "flat_gradient.hpp"
#include "flat_parameter.hpp"
#include "slot_plan.hpp"

namespace shardwise::inline v0_1::detail {

/// The collective whose end is the end of a gradient's reduction.
[[nodiscard]] inline Activity reduction_kind_of(const Registration& registration) noexcept {
  return registration.updates_shard() && registration.partial() == Registration::Partial::none
             ? Activity::reduce_scatter
             : Activity::all_reduce;
}

/// The reductions of one unit that are about to be issued: as one collective or, where gradients
/// are sharded in groups, as one within the group, and one across the groups of what that leaves.
template <class Device>
class ReductionQueue {
 public:
  using Gradient = FlatGradient<Device>;

  explicit ReductionQueue(Engine<Device>& engine) : engine_(engine) {}

  /// So many are queued without an allocation.
  void reserve(std::size_t count) {
    first_.reserve(count);
    across_.reserve(count);
  }
  /// Memory for the reductions of any one unit; nothing may be under way. All that the context
  /// holds is there.
  void make_room(const GradientSlots& plan) {
    grow(landing_, plan.landing);
    grow(partials_, plan.partials);
    cold_ = outgrows_caches();
  }

  /// The whole gradient is there, in the type on the wire and in the order of the communication
  /// stream.
  void add(const Gradient& gradient) {
    const FlatParameter<Device>& parameter = gradient.parameter;
    const std::size_t shard = parameter.shard_size() * size_of(parameter.wire);
    ReduceItem item = reduction_of(parameter);
    item.send = gradient.whole();
    if (gradient.in_pieces()) item.pieces = gradient.pieces();
    item.spec.weighted = gradient.weight.has_value();
    item.spec.weight = gradient.weight ? gradient.weight->share : 1;
    const std::size_t bytes = parameter.layout.padded_size() * size_of(parameter.wire);
    if (parameter.partial() == Registration::Partial::none) {
      finish(item, gradient);
      const std::size_t sent = shard * others(*parameter.group->within);
      first_.add(parameter.subject, item, bytes, parameter.updates_shard() ? sent : 2 * sent);
      return;
    }
    ReduceItem rest = reduction_across(parameter);
    item.recv = partial_of(gradient);
    rest.send = item.recv;
    finish(rest, gradient);
    first_.add(parameter.subject, item, bytes, shard * others(*parameter.group->within));
    const std::size_t part = parameter.layout.shard_size() * size_of(rest.dtype);
    across_.add(parameter.subject, rest, rest.count * size_of(rest.dtype),
                2 * part * others(*parameter.group->across));
  }

  /// Issues all of them, in the name of `first`, one of them.
  void flush(const FlatParameter<Device>& first) {
    const Emptied<ReductionQueue> emptied{*this};
    Traffic& traffic = engine_.statistics.traffic;
    const ShardGroup& group = *first.group;
    if (first.updates_shard()) {
      issue(first_, first, *group.within, Activity::reduce_scatter, traffic.reduce_scatter,
            traffic.reduce_scatter_calls);
    } else {
      issue(first_, first, *group.within, Activity::all_reduce, traffic.all_reduce,
            traffic.all_reduce_calls);
    }
    if (across_.items.empty()) return;
    traffic.across_groups += across_.sent;
    issue(across_, first, *group.across, Activity::all_reduce, traffic.all_reduce,
          traffic.all_reduce_calls);
  }

  void clear() noexcept {
    first_.clear();
    across_.clear();
    partials_used_ = 0;
  }

 private:
  // One collective.
  struct Stage {
    std::vector<ReduceItem> items;
    std::vector<ActivityPart> parts;  // of items
    std::size_t bytes = 0;            // of the whole buffers
    std::size_t sent = 0;             // by this rank, by the formula of Traffic

    void reserve(std::size_t count) {
      items.reserve(count);
      parts.reserve(count);
    }
    void add(SubjectId subject, const ReduceItem& item, std::size_t item_bytes,
             std::size_t item_sent) {
      if (item.count == 0) return;
      items.push_back(item);
      parts.push_back({subject, item_sent});
      bytes += item_bytes;
      sent += item_sent;
    }
    void clear() noexcept {
      items.clear();
      parts.clear();
      bytes = sent = 0;
    }
  };

  [[nodiscard]] static std::size_t others(const Communicator& comm) noexcept {
    return static_cast<std::size_t>(comm.size() - 1);
  }

  // Whether the last cache keeps nothing from a reduction to the step's end. Ranks that are threads
  // share it.
  [[nodiscard]] bool outgrows_caches() const noexcept {
    const int sharers = engine_.comm.shares_addresses() ? engine_.world() : 1;
    const std::size_t held = engine_.ledger.held().total() * static_cast<std::size_t>(sharers);
    return Device::memory == MemoryKind::host && held > HostCaches::of_this_machine().last;
  }

  void grow(Buffer<Device>& buffer, std::size_t bytes) {
    if (buffer.size() >= bytes) return;
    buffer = {};
    buffer = Buffer<Device>(engine_.ledger, StateKind::slots, bytes, engine_.options.slot_memory);
  }

  // The mean of all ranks is stored, or added to what is.
  void finish(ReduceItem& item, const Gradient& gradient) const noexcept {
    item.recv = gradient.owned();
    item.spec.output = gradient.stored;
    item.spec.accumulate = !gradient.fresh;
    item.spec.cold = cold_;
    item.spec.scale = gradient.weight ? 1 : 1.0 / engine_.world();
  }

  [[nodiscard]] std::byte* partial_of(const Gradient& gradient) noexcept {
    const FlatParameter<Device>& parameter = gradient.parameter;
    const std::size_t size = size_of(parameter.partial_type());
    switch (parameter.partial()) {
      case Registration::Partial::leased:
        return gradient.whole() + parameter.shard_begin * size;
      case Registration::Partial::stored:
        return gradient.owned();
      case Registration::Partial::none:
      case Registration::Partial::in_scratch:
        break;
    }
    std::byte* const place = partials_.data() + partials_used_;
    partials_used_ += parameter.shard_size() * size;
    return place;
  }

  void issue(Stage& stage, const FlatParameter<Device>& first, Communicator& comm,
             Activity activity, std::uint64_t& sent, std::uint64_t& calls) {
    if (stage.items.empty()) return;
    const bool scatter = activity == Activity::reduce_scatter;
    // Both stages land in one buffer, one after the other.
    std::byte* landing = landing_.data();
    for (ReduceItem& item : stage.items) {
      item.landing = landing;
      landing += comm.landing_bytes(item, scatter);
    }
    sent += stage.sent;
    ++calls;
    // Of pieces a rank may own none, and then it waits for nobody, between processes.
    const auto is_flat = [](const ReduceItem& item) { return item.pieces.empty(); };
    if (comm.size() == engine_.world() && std::ranges::any_of(stage.items, is_flat)) {
      engine_.order.issue();
    }
    engine_.issue(activity, first.subject, stage.bytes, stage.sent, stage.parts, [&] {
      const CallInfo info = engine_.info(first.name());
      if (scatter) {
        comm.reduce_scatter(stage.items, info, engine_.communication.ref());
      } else {
        comm.all_reduce(stage.items, info, engine_.communication.ref());
      }
    });
  }

  Engine<Device>& engine_;
  Stage first_;
  Stage across_;
  Buffer<Device> landing_;
  Buffer<Device> partials_;
  std::size_t partials_used_ = 0;  // bytes
  bool cold_ = false;              // results are read when the caches have lost them
};

}  // namespace shardwise::inline v0_1::detail
