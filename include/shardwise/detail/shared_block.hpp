#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "../comm/communicator.hpp"
#include "../core/dtype.hpp"
#include "../memory.hpp"

namespace shardwise::inline v0_1::detail {

/// Where what ranks share comes from.
struct BlockMemory {
  void* (*allocate)(std::size_t bytes);
  void (*deallocate)(void* memory, std::size_t bytes) noexcept;
  bool alone;  ///< one simulated rank stands for all: there is one object

  template <class Device>
  [[nodiscard]] static constexpr BlockMemory of() noexcept {
    return {&Device::allocate, &Device::deallocate, Device::memory == MemoryKind::simulated};
  }
};

/// One allocation that all ranks of a communicator see at one address; freed when the last rank's
/// object goes, so that a rank that fails takes nothing from those that still read. Move-only.
class SharedBlock {
 public:
  SharedBlock() = default;
  /// `bytes` of uninitialised memory. All ranks call together; they share addresses.
  SharedBlock(Communicator& comm, std::size_t bytes, const BlockMemory& memory,
              const CallInfo& info) {
    Common* made = nullptr;
    if (comm.rank() == 0) {
      try {
        made = new Common(memory, bytes, memory.alone ? 1 : comm.size());
      } catch (const std::bad_alloc&) {
        comm.abort("there is no memory for what the ranks share");
        throw;
      }
    }
    Common* common = made;
    const BroadcastItem item{&common, sizeof common, DType::u8};
    try {
      comm.broadcast({&item, 1}, 0, info, {});
    } catch (...) {
      delete made;  // no rank has heard of it: a collective runs on all ranks or on none
      throw;
    }
    common_ = common;
  }
  SharedBlock(SharedBlock&& other) noexcept : common_(std::exchange(other.common_, nullptr)) {}
  SharedBlock& operator=(SharedBlock&& other) noexcept {
    SharedBlock taken(std::move(other));
    std::swap(common_, taken.common_);
    return *this;
  }
  ~SharedBlock() {
    if (common_ != nullptr && common_->owners.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      delete common_;
    }
  }

  [[nodiscard]] std::byte* data() const noexcept {
    return common_ == nullptr ? nullptr : static_cast<std::byte*>(common_->data);
  }

 private:
  struct Common {
    Common(const BlockMemory& of, std::size_t size, int ranks)
        : memory(of), data(of.allocate(size)), bytes(size), owners(ranks) {}
    Common(const Common&) = delete;
    Common& operator=(const Common&) = delete;
    ~Common() { memory.deallocate(data, bytes); }

    BlockMemory memory;
    void* data;
    std::size_t bytes;
    std::atomic<int> owners;
  };

  Common* common_ = nullptr;
};

/// Slots that the ranks of a communicator share: each rank's ledger has its part of them.
class SharedSlotMemory final : public SlotMemory {
 public:
  explicit SharedSlotMemory(const BlockMemory& memory) noexcept : memory_(memory) {}
  /// Before anything is allocated; `comm` outlives this.
  void join(Communicator& comm, std::chrono::nanoseconds timeout) noexcept {
    comm_ = &comm;
    timeout_ = timeout;
  }
  [[nodiscard]] Communicator* ranks() const noexcept { return comm_; }

  [[nodiscard]] void* allocate(std::size_t bytes) override {
    blocks_.reserve(blocks_.size() + 1);
    SharedBlock block(*comm_, bytes, memory_, {"shared slot", timeout_, std::uint64_t{bytes}});
    blocks_.push_back(std::move(block));
    return blocks_.back().data();
  }
  void deallocate(void* memory, std::size_t /*bytes*/) noexcept override {
    std::erase_if(blocks_, [&](const SharedBlock& block) { return block.data() == memory; });
  }
  [[nodiscard]] std::size_t share_of(std::size_t bytes) const noexcept override {
    return bytes / static_cast<std::size_t>(comm_->size());
  }

 private:
  BlockMemory memory_;
  Communicator* comm_ = nullptr;
  std::chrono::nanoseconds timeout_{};
  std::vector<SharedBlock> blocks_;
};

}  // namespace shardwise::inline v0_1::detail
