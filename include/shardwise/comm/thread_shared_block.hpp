#pragma once

#include <atomic>
#include <cstddef>
#include <new>

#include "../core/dtype.hpp"
#include "../device/host.hpp"
#include "communicator.hpp"
#include "shared_block.hpp"

namespace shardwise::inline v0_1 {

/// Of ranks in one address space: one allocation, at one address.
class ThreadSharedBlock final : public SharedBlock {
 public:
  /// All ranks of `comm` call together.
  ThreadSharedBlock(Communicator& comm, std::size_t bytes, const CallInfo& info) {
    if (comm.rank() == 0) {
      try {
        common_ = new Common(bytes, comm.size());
      } catch (const std::bad_alloc&) {
        comm.abort("there is no memory for what the ranks share");
        throw;
      }
    }
    const BroadcastItem item{&common_, sizeof common_, DType::u8};
    try {
      comm.broadcast({&item, 1}, 0, info, {});
    } catch (...) {
      if (comm.rank() == 0) delete common_;  // a collective runs on all ranks or on none
      throw;
    }
  }
  ~ThreadSharedBlock() override {
    if (common_->owners.fetch_sub(1, std::memory_order_acq_rel) == 1) delete common_;
  }

  [[nodiscard]] std::byte* data() const noexcept override {
    return static_cast<std::byte*>(common_->data);
  }

 private:
  struct Common {
    Common(std::size_t size, int ranks)
        : data(HostDevice::allocate(size)), bytes(size), owners(ranks) {}
    Common(const Common&) = delete;
    Common& operator=(const Common&) = delete;
    ~Common() { HostDevice::deallocate(data, bytes); }

    void* data;
    std::size_t bytes;
    std::atomic<int> owners;
  };

  Common* common_ = nullptr;
};

}  // namespace shardwise::inline v0_1
