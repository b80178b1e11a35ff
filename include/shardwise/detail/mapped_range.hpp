#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <utility>

#include "../core/checked.hpp"
#include "../core/error.hpp"
#include "../host_tensor.hpp"
#include "address_range.hpp"
#include "claimed_range.hpp"
#include "page_pool.hpp"
#include "pages.hpp"

namespace shardwise::inline v0_1::detail {

/// AddressRange for a device whose memory is mapped below addresses by its driver. Reserved once;
/// nothing is there but what parameters leave resident: a granule that tensors of several
/// parameters share, or that is not all of one parameter's, has memory as long as one of them
/// lives, zero at the beginning.
template <class Device>
class MappedRange final : public ClaimedRange {
 public:
  /// BackendError where the device has no such range.
  MappedRange(std::size_t bytes, std::string name, Recycling recycling, Release release, bool debug,
              const SharedPages& /*refused*/ = {})
      : ClaimedRange(bytes, std::move(name)),
        debug_(debug),
        reserved_(round_up(bytes, memory_.granule())) {
    if (recycling != Recycling::move || release != Release::lazy) {
      raise(
          "arena '{}': ArenaOptions are for arenas of the CPU. A device maps memory, and leaves it "
          "below a released parameter until it is needed elsewhere",
          this->name());
    }
    begin_at(memory_.reserve(reserved_));
  }
  /// What was lent below it has been taken back, and nothing uses what is resident.
  ~MappedRange() {
    for (const auto& [index, resident] : residents_) drop(index, resident);
    memory_.free(data(), reserved_);
  }

  /// Ranks share no such range.
  [[nodiscard]] static constexpr const Communicator* ranks() noexcept { return nullptr; }
  [[nodiscard]] static constexpr Recycling recycling() noexcept { return Recycling::move; }
  [[nodiscard]] static constexpr Recycling recycling_singly() noexcept { return Recycling::move; }
  [[nodiscard]] static constexpr Release release() noexcept { return Release::lazy; }
  /// Bytes of memory that stay below it, in whole granules.
  [[nodiscard]] std::size_t resident_bytes() const noexcept {
    return residents_.size() * memory_.granule();
  }

  /// As AddressRange::claim. The host waits where memory becomes resident.
  [[nodiscard]] Placed claim(const std::string& parameter, std::span<const HostTensor> tensors,
                             bool recycle) {
    Placed placed = claim_inner(parameter, tensors, [&](std::byte* begin, std::size_t bytes) {
      return recycle ? inner_granules(data(), begin, bytes, memory_.granule()) : PageRange{};
    });
    std::size_t done = 0;
    try {
      for (; done < placed.crumbs().size(); ++done) keep(placed.crumbs()[done]);
      if (debug_ && recycle) poison(placed);
    } catch (...) {
      for (std::size_t i = 0; i < done; ++i) give_up(placed.crumbs()[i]);
      disclaim(placed);
      throw;
    }
    return placed;
  }

  /// Nobody's any more: its memory has been taken back, and what was resident for it alone goes.
  void release(const Placed& placed) noexcept {
    for (const auto& crumb : placed.crumbs()) give_up(crumb);
    disclaim(placed);
  }

  /// Debug mode: the first access to what was not lent. What has no memory faults on the device,
  /// and what has is looked at by the stores.
  [[nodiscard]] static std::string take_violation(int /*rank*/) { return {}; }
  [[nodiscard]] std::string describe_write(const std::byte* address, int rank) const {
    return describe(address, true, rank);
  }

 private:
  using VirtualMemory = typename Device::VirtualMemory;

  struct Resident {
    typename VirtualMemory::Handle handle{};
    std::size_t users = 0;  ///< claims that have crumbs there
  };

  // What is not lent reads as NaN.
  static void poison(const Placed& placed) {
    auto stream = Device::compute_stream({});
    for (const auto& crumb : placed.crumbs()) Device::poison(stream, crumb.data(), crumb.size());
    stream.synchronize();
  }

  // f(index) for each granule that has a byte of the crumb.
  template <class F>
  void for_each_granule(std::span<std::byte> crumb, const F& f) const {
    const std::size_t granule = memory_.granule();
    const auto first = static_cast<std::size_t>(crumb.data() - data());
    for (std::size_t index = first / granule; index * granule < first + crumb.size(); ++index) {
      f(index);
    }
  }

  // All of the crumb's granules, or none where it throws.
  void keep(std::span<std::byte> crumb) {
    std::size_t kept = 0;
    try {
      for_each_granule(crumb, [&](std::size_t index) {
        Resident& resident = residents_[index];
        if (resident.users == 0) {
          try {
            resident.handle = make_resident(index);
          } catch (...) {
            residents_.erase(index);
            throw;
          }
        }
        ++resident.users;
        ++kept;
      });
    } catch (...) {
      for_each_granule(crumb, [&](std::size_t index) {
        if (kept == 0) return;
        --kept;
        leave(index);
      });
      throw;
    }
  }

  [[nodiscard]] typename VirtualMemory::Handle make_resident(std::size_t index) {
    std::byte* const at = data() + index * memory_.granule();
    const auto handle = memory_.create();
    bool mapped = false;
    try {
      memory_.map(at, handle);
      mapped = true;
      memory_.allow(at, memory_.granule());
      auto stream = Device::compute_stream({});
      Device::zero(stream, at, memory_.granule());
      stream.synchronize();
    } catch (...) {
      if (mapped) static_cast<void>(memory_.unmap(at));
      memory_.release(handle);
      throw;
    }
    return handle;
  }

  void give_up(std::span<std::byte> crumb) noexcept {
    for_each_granule(crumb, [&](std::size_t index) { leave(index); });
  }
  void leave(std::size_t index) noexcept {
    const auto found = residents_.find(index);
    if (--found->second.users > 0) return;
    drop(index, found->second);
    residents_.erase(found);
  }
  void drop(std::size_t index, const Resident& resident) noexcept {
    static_cast<void>(memory_.unmap(data() + index * memory_.granule()));
    memory_.release(resident.handle);
  }

  VirtualMemory memory_;
  bool debug_;
  std::size_t reserved_;
  std::map<std::size_t, Resident> residents_;  // by granule
};

}  // namespace shardwise::inline v0_1::detail
