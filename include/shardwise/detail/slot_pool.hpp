#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../memory.hpp"
#include "in_place.hpp"
#include "page_pool.hpp"

namespace shardwise::inline v0_1::detail {

/// What a slot consists of.
enum class SlotKind : std::uint8_t {
  buffer,  ///< a buffer of the library
  shared,  ///< the same, one for all ranks that share it
  pages    ///< pages that are moved below the host's addresses
};

/// A full-size buffer, or as many pages, that leases borrow. Its owner is told by a null pointer
/// when another one took it.
template <class Device>
struct Slot {
  enum class State : std::uint8_t {
    empty,     ///< holds nothing of value
    released,  ///< holds what its owner may ask for again, until somebody else needs the slot
    fetched,   ///< filled ahead of use
    open       ///< lent
  };

  [[nodiscard]] std::size_t size() const noexcept { return buffer.size() + pages.size(); }

  Buffer<Device> buffer;
  PoolOf<Device> pages;
  typename Device::Event last_use = {};  ///< the next writer's stream waits for it
  typename Device::Event filled = {};    ///< communication stream: the last gather into it
  Slot** owner = nullptr;
  State state = State::empty;
  bool shared = false;
  std::uint64_t order = 0;              ///< program order of the last change of state
  std::uint64_t released_at = 0;        ///< shared by ranks: by ProgramOrder, its last release
  SubjectId user = no_subject;          ///< whose collective used it last
  Activity use = Activity::all_gather;  ///< and which
  std::string hidden_from;              ///< debug mode: whose the buffer was before it was poisoned
};

/// The slots of one kind of state. Which slot is taken depends on program order alone, so that all
/// ranks choose alike.
template <class Device>
class SlotPool {
 public:
  using SlotType = Slot<Device>;
  using State = typename SlotType::State;

  /// `memory`: where buffers come from, if not from the device.
  SlotPool(Ledger& ledger, SlotKind kind, SlotMemory* memory = nullptr)
      : ledger_(ledger), kind_(kind), memory_(memory) {}

  /// At least `count` slots of at least `bytes` that everybody shares; `ranges` is the most that a
  /// slot of pages lies below at once. Slots that are too small grow when they are taken next.
  void share(std::size_t count, std::size_t bytes, std::size_t ranges, Recycling recycling) {
    bytes_ = std::max(bytes_, bytes);
    ranges_ = std::max(ranges_, ranges);
    recycling_ = recycling;
    for (const auto& slot : shared_) slot->pages.reserve(ranges_);
    while (shared_.size() < count) {
      shared_.push_back(make(bytes_, ranges_, memory_));
      shared_.back()->shared = true;
    }
  }

  /// A slot that belongs to `place` alone, until it is given up; an `extra` one, which no plan
  /// counts, is the device's own memory, but where ranks share it.
  void dedicate(SlotType*& place, std::size_t bytes, std::size_t ranges, Recycling recycling,
                bool extra = false) {
    recycling_ = recycling;
    const bool own = extra && kind_ != SlotKind::shared;
    dedicated_.push_back(make(bytes, ranges, own ? nullptr : memory_));
    place = dedicated_.back().get();
    place->owner = &place;
  }
  /// `place` needs its slot no more, and nothing uses it: a shared one is empty, one of its own
  /// goes.
  void give_up(SlotType*& place) noexcept {
    if (place->shared) {
      place->owner = nullptr;
      mark(*place, State::empty);
    } else {
      std::erase_if(dedicated_, [&](const auto& slot) { return slot.get() == place; });
    }
    place = nullptr;
  }

  /// A step is over: which empty slot was used when counts no more, so that steps that make the
  /// same calls get the same slots.
  void restart() noexcept { restarted_ = true; }

  /// Finds `place` a slot: an empty one (`warm`: the one used last), else the one released first,
  /// else (`insist`) the one fetched first. False where every slot is open, or may not be taken.
  bool acquire(SlotType*& place, bool insist, bool warm = false) {
    if (std::exchange(restarted_, false)) {
      for (const auto& slot : shared_) {
        if (slot->state == State::empty) slot->order = ++order_;
      }
    }
    SlotType* best = nullptr;
    for (const auto& candidate : shared_) {
      if (candidate->state == State::open) continue;
      if (candidate->state == State::fetched && !insist) continue;
      const bool last = warm && candidate->state == State::empty;
      if (best == nullptr || candidate->state < best->state ||
          (candidate->state == best->state &&
           (last ? candidate->order > best->order : candidate->order < best->order))) {
        best = candidate.get();
      }
    }
    if (best == nullptr) return false;
    if (best->owner != nullptr) *best->owner = nullptr;
    best->owner = &place;
    place = best;
    return true;
  }

  /// Whether this shared slot was made before a larger parameter came.
  [[nodiscard]] bool is_small(const SlotType& slot) const noexcept {
    return slot.shared && slot.size() < bytes_;
  }
  /// Makes it as large as the others; nothing may use it.
  void grow(SlotType& slot) {
    slot.buffer = {};
    slot.pages = {};
    slot.hidden_from.clear();
    fill(slot, bytes_, ranges_, memory_);
  }

  void mark(SlotType& slot, State state) noexcept {
    if (slot.shared) {
      if (slot.state == State::open) --open_shared_;
      if (state == State::open) ++open_shared_;
    }
    slot.state = state;
    slot.order = ++order_;
  }

  [[nodiscard]] std::size_t shared_count() const noexcept { return shared_.size(); }
  /// Of those, how many are lent.
  [[nodiscard]] std::size_t open_shared() const noexcept { return open_shared_; }

 private:
  std::unique_ptr<SlotType> make(std::size_t bytes, std::size_t ranges, SlotMemory* memory) {
    auto slot = std::make_unique<SlotType>();
    fill(*slot, bytes, ranges, memory);
    return slot;
  }

  void fill(SlotType& slot, std::size_t bytes, std::size_t ranges, SlotMemory* memory) {
    if (kind_ != SlotKind::pages) {
      slot.buffer = Buffer<Device>(ledger_, StateKind::slots, bytes, memory);
    } else {
      slot.pages = PoolOf<Device>(ledger_, bytes, recycling_);
      slot.pages.reserve(ranges);
    }
  }

  Ledger& ledger_;
  SlotKind kind_;
  SlotMemory* memory_;
  std::size_t bytes_ = 0;  // of each shared slot
  std::size_t ranges_ = 0;
  Recycling recycling_ = Recycling::move;
  std::vector<std::unique_ptr<SlotType>> shared_;
  std::vector<std::unique_ptr<SlotType>> dedicated_;
  std::size_t open_shared_ = 0;
  std::uint64_t order_ = 0;
  bool restarted_ = true;
};

}  // namespace shardwise::inline v0_1::detail
