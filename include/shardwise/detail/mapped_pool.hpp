#pragma once

#include <algorithm>
#include <cstddef>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "../memory.hpp"
#include "page_pool.hpp"
#include "pages.hpp"

namespace shardwise::inline v0_1::detail {

/// PagePool for a device whose memory is mapped below addresses by its driver: granules, each of
/// which goes below any granule of addresses. Mapping and unmapping are calls of the host, in no
/// stream's order: whoever calls lend, take_back or abandon, or ends the pool, has waited for all
/// work that uses what is lent. So nothing is taken back at a release: it stays where it is until
/// the pool is needed elsewhere. Not thread-safe.
template <class Device>
class MappedPool {
  using VirtualMemory = typename Device::VirtualMemory;
  using Handle = typename VirtualMemory::Handle;

 public:
  MappedPool() = default;
  /// `bytes`: whole granules of the host thread's current device, counted as slots; 0: no pool.
  MappedPool(Ledger& ledger, std::size_t bytes, Recycling /*recycling*/) : bytes_(bytes) {
    if (bytes == 0) return;
    memory_.emplace();
    handles_.reserve(bytes / memory_->granule());
    try {
      for (std::size_t made = 0; made < bytes; made += memory_->granule()) {
        handles_.push_back(memory_->create());
      }
    } catch (...) {
      free();
      throw;
    }
    account_ = Account(ledger, StateKind::slots, bytes);
  }
  MappedPool(MappedPool&& other) noexcept { *this = std::move(other); }
  MappedPool& operator=(MappedPool&& other) noexcept {
    if (this != &other) {
      free();
      account_ = std::move(other.account_);
      bytes_ = std::exchange(other.bytes_, 0);
      memory_ = std::exchange(other.memory_, std::nullopt);
      handles_ = std::exchange(other.handles_, {});
      lent_ = std::exchange(other.lent_, {});
    }
    return *this;
  }
  ~MappedPool() { free(); }

  [[nodiscard]] std::size_t size() const noexcept { return bytes_; }
  [[nodiscard]] bool lent() const noexcept { return !lent_.empty(); }
  [[nodiscard]] static constexpr bool keeps_contents() noexcept { return true; }
  /// Room for so many ranges, so that lend() does not allocate.
  void reserve(std::size_t ranges) { lent_.reserve(ranges); }

  /// Where its memory is; a range without an address: nowhere.
  [[nodiscard]] std::span<const PageRange> ranges() const noexcept { return lent_; }
  /// Whether these ranges have the memory now.
  [[nodiscard]] bool is_lent_below(std::span<const PageRange> ranges) const noexcept {
    return std::equal(lent_.begin(), lent_.end(), ranges.begin(), ranges.end(),
                      [](const PageRange& a, const PageRange& b) {
                        return a.begin == b.begin && a.bytes == b.bytes;
                      });
  }

  /// Puts memory below the ranges, with whatever it holds; it is nowhere else then. Together they
  /// are not larger than the pool. BackendError where the driver refuses.
  void lend(std::span<const PageRange> ranges) {
    if (is_lent_below(ranges)) return;
    if (!take_back(Access::write)) {
      raise<BackendError>("the driver did not unmap memory of an arena (cuMemUnmap)");
    }
    std::size_t next = 0;
    for (const PageRange& range : ranges) {
      lent_.push_back({range.begin, 0});
      try {
        for (std::size_t at = 0; at < range.bytes; at += memory_->granule()) {
          memory_->map(range.begin + at, handles_[next++]);
          lent_.back().bytes += memory_->granule();
        }
        memory_->allow(range.begin, range.bytes);
      } catch (...) {
        take_back(Access::write);
        throw;
      }
    }
  }

  /// Takes the memory back: the ranges have none. False where the driver refuses.
  bool take_back(Access /*after*/) noexcept {
    bool good = true;
    for (const PageRange& range : lent_) good = unmap(range) && good;
    lent_.clear();
    return good;
  }

  /// Takes back what is lent below these ranges, whose owner goes, and leaves the rest where it is.
  void abandon(std::span<const PageRange> ranges) noexcept {
    for (PageRange& lent : lent_) {
      const bool goes = std::any_of(ranges.begin(), ranges.end(), [&](const PageRange& range) {
        return lent.begin != nullptr && range.begin == lent.begin;
      });
      if (!goes) continue;
      static_cast<void>(unmap(lent));
      lent.begin = nullptr;
    }
  }

  /// What is lent may be written all the time.
  static constexpr void protect(Access /*access*/) noexcept {}

 private:
  bool unmap(const PageRange& range) noexcept {
    bool good = true;
    if (range.begin == nullptr) return good;
    for (std::size_t at = 0; at < range.bytes; at += memory_->granule()) {
      good = memory_->unmap(range.begin + at) && good;
    }
    return good;
  }

  void free() noexcept {
    take_back(Access::write);
    for (const Handle handle : handles_) memory_->release(handle);
    handles_.clear();
    bytes_ = 0;
  }

  Account account_;
  std::size_t bytes_ = 0;
  std::optional<VirtualMemory> memory_;
  std::vector<Handle> handles_;
  std::vector<PageRange> lent_;
};

}  // namespace shardwise::inline v0_1::detail
