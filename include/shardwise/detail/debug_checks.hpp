#pragma once

#include <string>

#include "engine.hpp"
#include "in_place.hpp"
#include "slot_pool.hpp"

namespace shardwise::inline v0_1::detail {

/// Debug mode: the first crumb that was written while it was not lent, as a sentence; the host
/// waits.
template <class Device>
[[nodiscard]] std::string find_written_crumb(Engine<Device>& engine, const RangeOf<Device>& arena,
                                             const Placed& placed) {
  if constexpr (MapsMemory<Device>) {
    for (const auto& crumb : placed.crumbs()) {
      if (Device::is_poisoned(engine.compute, crumb.data(), crumb.size())) continue;
      return arena.describe_write(crumb.data(), engine.rank());
    }
    return {};
  } else {
    return arena.find_written_crumb(placed, engine.rank());
  }
}

/// Debug mode: whether a released slot holds what it was poisoned with; the host waits.
template <class Device>
[[nodiscard]] bool is_poisoned(Engine<Device>& engine, const Slot<Device>& slot) {
  if constexpr (MapsMemory<Device>) {
    for (const PageRange& range : slot.pages.ranges()) {
      if (range.begin == nullptr) continue;
      if (!Device::is_poisoned(engine.compute, range.begin, range.bytes)) return false;
    }
  }
  return slot.buffer.size() == 0 ||
         Device::is_poisoned(engine.compute, slot.buffer.data(), slot.buffer.size());
}

}  // namespace shardwise::inline v0_1::detail
