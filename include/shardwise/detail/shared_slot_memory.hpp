#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "../comm/communicator.hpp"
#include "../comm/shared_block.hpp"
#include "../memory.hpp"

namespace shardwise::inline v0_1::detail {

/// Slots that the ranks of a communicator share: each rank's ledger has its part of them.
class SharedSlotMemory final : public SlotMemory {
 public:
  /// Before anything is allocated; `comm` outlives this.
  void join(Communicator& comm, std::chrono::nanoseconds timeout) noexcept {
    comm_ = &comm;
    timeout_ = timeout;
  }
  [[nodiscard]] Communicator* ranks() const noexcept { return comm_; }

  [[nodiscard]] void* allocate(std::size_t bytes) override {
    blocks_.reserve(blocks_.size() + 1);
    blocks_.push_back(comm_->share_block(bytes, {"shared slot", timeout_, std::uint64_t{bytes}}));
    return blocks_.back()->data();
  }
  void deallocate(void* memory, std::size_t /*bytes*/) noexcept override {
    std::erase_if(blocks_, [&](const auto& block) { return block->data() == memory; });
  }
  [[nodiscard]] std::size_t share_of(std::size_t bytes) const noexcept override {
    return bytes / static_cast<std::size_t>(comm_->size());
  }

 private:
  Communicator* comm_ = nullptr;
  std::chrono::nanoseconds timeout_{};
  std::vector<std::unique_ptr<SharedBlock>> blocks_;
};

}  // namespace shardwise::inline v0_1::detail
