#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "engine.hpp"
#include "flat_parameter.hpp"

namespace shardwise::inline v0_1::detail {

/// Gathers that are about to be issued: one collective for those of one communicator.
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

  /// What this rank contributes to `parameter`, among the ranks of `comm`; in the order of the
  /// communication stream.
  void add(Parameter& parameter, Communicator& comm, const GatherItem& item) {
    queued_.push_back({&parameter, &comm, item});
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
    return true;
  }

 private:
  struct Queued {
    Parameter* parameter;
    Communicator* comm;  // null: issued
    GatherItem item;
  };

  void take(Queued& queued) {
    const GatherItem& item = queued.item;
    const auto others = static_cast<std::size_t>(queued.comm->size() - 1);
    items_.push_back(item);
    parts_.push_back({queued.parameter->subject, item.count * size_of(item.dtype) * others});
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
      comm.all_gather(items_, engine_.info(name.name), engine_.communication.ref());
    });
  }

  Engine<Device>& engine_;
  std::vector<Queued> queued_;
  std::vector<GatherItem> items_;    // of the collective that is being issued
  std::vector<ActivityPart> parts_;  // of items_
};

}  // namespace shardwise::inline v0_1::detail
