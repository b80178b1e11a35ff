#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "../memory.hpp"
#include "pages.hpp"

namespace shardwise::inline v0_1::detail {

/// How pages come below a range of the host's addresses.
enum class Recycling : std::uint8_t {
  move,   ///< from the pool and back: the memory is touched once and keeps its contents
  refill  ///< fresh ones each time; for systems that cannot move pages
};

/// The memory of one slot of residency in_place: pages that are moved below the ranges where a host
/// expects a parameter, and back. Always the same pages of the pool go below a range, so that what
/// was cut apart fits together again. Not thread-safe.
class PagePool {
 public:
  PagePool() = default;
  /// `bytes`: whole pages, counted as slots; 0: no pool.
  PagePool(Ledger& ledger, std::size_t bytes, Recycling recycling)
      : account_(ledger, StateKind::slots, bytes), recycling_(recycling), pool_{nullptr, bytes} {
    if (bytes > 0 && recycling_ == Recycling::move) pool_.begin = reserve_pages(bytes);
  }
  PagePool(PagePool&& other) noexcept
      : account_(std::move(other.account_)),
        recycling_(other.recycling_),
        pool_(std::exchange(other.pool_, {})),
        lent_(std::move(other.lent_)),
        cuts_(std::move(other.cuts_)) {}
  PagePool& operator=(PagePool&& other) noexcept {
    if (this != &other) {
      free();
      account_ = std::move(other.account_);
      recycling_ = other.recycling_;
      pool_ = std::exchange(other.pool_, {});
      lent_ = std::move(other.lent_);
      cuts_ = std::move(other.cuts_);
    }
    return *this;
  }
  ~PagePool() { free(); }

  [[nodiscard]] std::size_t size() const noexcept { return pool_.bytes; }
  [[nodiscard]] bool lent() const noexcept { return !lent_.empty(); }
  /// Whether what was written is there when the same ranges are lent the next time.
  [[nodiscard]] bool keeps_contents() const noexcept { return recycling_ == Recycling::move; }
  /// Room for so many ranges, so that lend() does not allocate.
  void reserve(std::size_t ranges) {
    lent_.reserve(ranges);
    cuts_.reserve(2 * ranges);
  }

  /// Puts memory below the ranges, readable and writable. Together they are not larger than the
  /// pool, and nothing is lent. BackendError where the system refuses; the pool is whole again
  /// then.
  void lend(std::span<const PageRange> ranges) {
    std::size_t offset = 0;
    for (const PageRange& range : ranges) {
      if (!lend(range, offset)) {
        const int error = errno;
        take_back(Access::write);
        errno = error;
        raise_pages("moving pages below the host's addresses", range.bytes);
      }
      lent_.push_back(range);
      offset += range.bytes;
    }
  }

  /// Takes the memory back and leaves the ranges without any, with `access`: none, or write (and
  /// then they read as zeros). False where the system refuses, which leaves pages where they are.
  bool take_back(Access access) noexcept {
    bool good = true;
    std::size_t offset = 0;
    if (access_ != Access::write) protect(Access::write);
    for (const PageRange& range : lent_) {
      if (recycling_ == Recycling::move) good = move(range.begin, at(offset), range.bytes) && good;
      good = empty_pages(range, access) && good;
      offset += range.bytes;
    }
    lent_.clear();
    return good;
  }

  /// What is lent may be read, or written as well.
  void protect(Access access) noexcept {
    for (const PageRange& range : lent_) static_cast<void>(protect_pages(range, access));
    access_ = access;
  }

  /// For tests: treat every place where the pool was ever cut as one that cannot be moved across,
  /// as Linux before 6.17 does where its mappings did not merge again.
  void assume_cuts_stay() noexcept { cuts_stay_ = true; }

 private:
  [[nodiscard]] std::byte* at(std::size_t offset) const noexcept { return pool_.begin + offset; }

  bool lend(const PageRange& range, std::size_t offset) {
    if (recycling_ == Recycling::refill) return protect_pages(range, Access::write);
    remember_cut(offset);
    remember_cut(offset + range.bytes);
    return move(at(offset), range.begin, range.bytes);
  }

  void remember_cut(std::size_t offset) {
    const auto place = std::lower_bound(cuts_.begin(), cuts_.end(), offset);
    if (place == cuts_.end() || *place != offset) cuts_.insert(place, offset);
  }

  // In one call where the system can, else from cut to cut: a mapping that was cut apart by earlier
  // moves may not have merged again, and the system does not move across its parts.
  bool move(std::byte* from, std::byte* to, std::size_t bytes) noexcept {
    if (!cuts_stay_) {
      if (move_pages({from, bytes}, to)) return true;
      if (errno != EFAULT) return false;
    }
    const bool out = from >= pool_.begin && from < pool_.begin + pool_.bytes;
    const auto begin = static_cast<std::size_t>((out ? from : to) - pool_.begin);
    std::size_t done = 0;
    for (auto cut = std::upper_bound(cuts_.begin(), cuts_.end(), begin); done < bytes; ++cut) {
      const std::size_t end = cut == cuts_.end() ? bytes : std::min(*cut - begin, bytes);
      if (!move_pages({from + done, end - done}, to + done)) return false;
      done = end;
      if (cut == cuts_.end()) break;
    }
    return true;
  }

  void free() noexcept {
    take_back(Access::write);
    if (pool_.begin != nullptr) unmap_pages(pool_);
    pool_ = {};
  }

  Account account_;
  Recycling recycling_ = Recycling::move;
  PageRange pool_;
  Access access_ = Access::write;  // to what is lent
  std::vector<PageRange> lent_;
  std::vector<std::size_t> cuts_;  // ascending offsets in the pool
  bool cuts_stay_ = false;
};

}  // namespace shardwise::inline v0_1::detail
