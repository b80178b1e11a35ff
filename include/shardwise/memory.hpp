#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "core/error.hpp"
#include "core/observer.hpp"
#include "core/state_kind.hpp"

namespace shardwise::inline v0_1 {

/// Bytes on one rank, by kind; capacities, padding included.
struct Bytes {
  std::size_t parameters = 0;
  std::size_t gradients = 0;
  std::size_t optimizer_state = 0;
  std::size_t slots = 0;
  std::size_t crumbs = 0;

  [[nodiscard]] constexpr std::size_t total() const noexcept {
    return parameters + gradients + optimizer_state + slots + crumbs;
  }
  [[nodiscard]] constexpr std::size_t& operator[](StateKind kind) noexcept {
    switch (kind) {
      case StateKind::parameters:
        return parameters;
      case StateKind::gradients:
        return gradients;
      case StateKind::optimizer_state:
        return optimizer_state;
      case StateKind::slots:
        return slots;
      case StateKind::crumbs:
        break;
    }
    return crumbs;
  }
  [[nodiscard]] bool operator==(const Bytes&) const = default;
};

/// What a Context really holds, counted at each allocation.
class Ledger {
 public:
  Ledger() = default;
  /// `observer` is told of every change; may be null, must outlive the ledger.
  explicit Ledger(Observer* observer) noexcept : observer_(observer) {}

  [[nodiscard]] const Bytes& held() const noexcept { return held_; }
  /// The highest total so far.
  [[nodiscard]] std::size_t peak() const noexcept { return peak_; }

  void add(StateKind kind, std::size_t bytes) noexcept {
    held_[kind] += bytes;
    peak_ = std::max(peak_, held_.total());
    tell(kind, static_cast<std::int64_t>(bytes));
  }
  void remove(StateKind kind, std::size_t bytes) noexcept {
    held_[kind] -= bytes;
    tell(kind, -static_cast<std::int64_t>(bytes));
  }

  /// What comes next is for this parameter: for the observer.
  void about(SubjectId subject) noexcept { subject_ = subject; }

 private:
  void tell(StateKind kind, std::int64_t change) const noexcept {
    if (observer_ != nullptr && change != 0) observer_->hold({kind, change, subject_});
  }

  Bytes held_;
  std::size_t peak_ = 0;
  Observer* observer_ = nullptr;
  SubjectId subject_ = no_subject;
};

/// So many bytes in a ledger, wherever they lie, for as long as it lives. Move-only; the ledger
/// must outlive it.
class Account {
 public:
  Account() = default;
  Account(Ledger& ledger, StateKind kind, std::size_t bytes) noexcept
      : ledger_(&ledger), kind_(kind), bytes_(bytes) {
    ledger.add(kind, bytes);
  }
  Account(Account&& other) noexcept
      : ledger_(other.ledger_), kind_(other.kind_), bytes_(std::exchange(other.bytes_, 0)) {}
  Account& operator=(Account&& other) noexcept {
    Account taken(std::move(other));
    std::swap(ledger_, taken.ledger_);
    std::swap(kind_, taken.kind_);
    std::swap(bytes_, taken.bytes_);
    return *this;
  }
  ~Account() {
    if (bytes_ > 0) ledger_->remove(kind_, bytes_);
  }

 private:
  Ledger* ledger_ = nullptr;
  StateKind kind_ = StateKind::slots;
  std::size_t bytes_ = 0;
};

/// Memory for the buffers that collectives work on (slots, landing buffers), where it is not the
/// device's own: memory that a communicator has registered (comm/nccl_arena.hpp). Of the device of
/// the Context that uses it.
class SlotMemory {
 public:
  virtual ~SlotMemory() = default;
  /// Aligned as the device's own is. Ranks ask for the same in the same order. UsageError, on all
  /// ranks, where there is not so much.
  [[nodiscard]] virtual void* allocate(std::size_t bytes) = 0;
  virtual void deallocate(void* memory, std::size_t bytes) noexcept = 0;
  /// How many of them this rank accounts for: fewer where ranks share the memory. Always the same
  /// of so many.
  [[nodiscard]] virtual std::size_t share_of(std::size_t bytes) const noexcept { return bytes; }

 protected:
  SlotMemory() = default;
  SlotMemory(const SlotMemory&) = default;
  SlotMemory& operator=(const SlotMemory&) = default;
};

/// Memory of a device that a ledger knows of. Move-only; the ledger must outlive it.
template <class Device>
class Buffer {
 public:
  Buffer() = default;
  /// `memory`: where it comes from, if not from the device.
  Buffer(Ledger& ledger, StateKind kind, std::size_t bytes, SlotMemory* memory = nullptr)
      : bytes_(bytes), memory_(memory), ledger_(&ledger), kind_(kind) {
    if (bytes == 0) return;
    data_ = memory != nullptr ? memory->allocate(bytes) : Device::allocate(bytes);
    ledger.add(kind, accounted());
  }
  /// A part of memory that is somebody else's: the caller keeps it alive.
  [[nodiscard]] static Buffer within(Ledger& ledger, StateKind kind, void* data,
                                     std::size_t bytes) noexcept {
    Buffer part;
    part.data_ = data;
    part.bytes_ = bytes;
    part.ledger_ = &ledger;
    part.kind_ = kind;
    part.owned_ = false;
    ledger.add(kind, bytes);
    return part;
  }
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        bytes_(std::exchange(other.bytes_, 0)),
        memory_(other.memory_),
        ledger_(other.ledger_),
        kind_(other.kind_),
        owned_(other.owned_) {}
  Buffer& operator=(Buffer&& other) noexcept {
    Buffer taken(std::move(other));
    std::swap(data_, taken.data_);
    std::swap(bytes_, taken.bytes_);
    std::swap(memory_, taken.memory_);
    std::swap(ledger_, taken.ledger_);
    std::swap(kind_, taken.kind_);
    std::swap(owned_, taken.owned_);
    return *this;
  }
  ~Buffer() {
    if (data_ == nullptr) return;
    ledger_->remove(kind_, accounted());
    if (!owned_) return;
    if (memory_ != nullptr) {
      memory_->deallocate(data_, bytes_);
    } else {
      Device::deallocate(data_, bytes_);
    }
  }

  [[nodiscard]] std::byte* data() const noexcept { return static_cast<std::byte*>(data_); }
  [[nodiscard]] std::size_t size() const noexcept { return bytes_; }

 private:
  [[nodiscard]] std::size_t accounted() const noexcept {
    return memory_ != nullptr ? memory_->share_of(bytes_) : bytes_;
  }

  void* data_ = nullptr;
  std::size_t bytes_ = 0;
  SlotMemory* memory_ = nullptr;  // null: the device's own
  Ledger* ledger_ = nullptr;      // null: there is nothing
  StateKind kind_ = StateKind::slots;
  bool owned_ = true;
};

}  // namespace shardwise::inline v0_1
