#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "../memory.hpp"

namespace shardwise::inline v0_1::detail {

/// A full-size buffer that leases borrow. Its owner is told by a null pointer when another one took
/// it.
template <class Device>
struct Slot {
  enum class State : std::uint8_t {
    empty,     ///< holds nothing of value
    released,  ///< holds what its owner may ask for again, until somebody else needs the slot
    fetched,   ///< filled ahead of use
    open       ///< lent
  };

  Buffer<Device> buffer;
  typename Device::Event last_use = {};  ///< the next writer's stream waits for it
  Slot** owner = nullptr;
  State state = State::empty;
  std::uint64_t order = 0;  ///< program order of the last change of state
};

/// The slots of one kind. Which slot is taken depends on program order alone, so that all ranks
/// choose alike.
template <class Device>
class SlotPool {
 public:
  using SlotType = Slot<Device>;
  using State = typename SlotType::State;

  explicit SlotPool(Ledger& ledger) : ledger_(ledger) {}

  /// `count` slots of `bytes` that everybody shares.
  void share(std::size_t count, std::size_t bytes) {
    for (std::size_t i = 0; i < count; ++i) shared_.push_back(make(bytes));
  }

  /// A slot that belongs to `place` alone and always.
  void dedicate(SlotType*& place, std::size_t bytes) {
    dedicated_.push_back(make(bytes));
    place = dedicated_.back().get();
    place->owner = &place;
  }

  /// Finds `place` a slot: an empty one, else the one released first, else (`insist`) the one
  /// fetched first. False where every slot is open, or may not be taken.
  bool acquire(SlotType*& place, bool insist) {
    SlotType* best = nullptr;
    for (const auto& candidate : shared_) {
      if (candidate->state == State::open) continue;
      if (candidate->state == State::fetched && !insist) continue;
      if (best == nullptr || candidate->state < best->state ||
          (candidate->state == best->state && candidate->order < best->order)) {
        best = candidate.get();
      }
    }
    if (best == nullptr) return false;
    if (best->owner != nullptr) *best->owner = nullptr;
    best->owner = &place;
    place = best;
    return true;
  }

  void mark(SlotType& slot, State state) noexcept {
    slot.state = state;
    slot.order = ++order_;
  }

  [[nodiscard]] std::size_t shared_count() const noexcept { return shared_.size(); }

 private:
  std::unique_ptr<SlotType> make(std::size_t bytes) {
    auto slot = std::make_unique<SlotType>();
    slot->buffer = Buffer<Device>(ledger_, StateKind::slots, bytes);
    return slot;
  }

  Ledger& ledger_;
  std::vector<std::unique_ptr<SlotType>> shared_;
  std::vector<std::unique_ptr<SlotType>> dedicated_;
  std::uint64_t order_ = 0;
};

}  // namespace shardwise::inline v0_1::detail
