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
  move,    ///< from the pool and back: the memory is touched once and keeps its contents
  refill,  ///< fresh ones each time; for systems that cannot move pages
  alias    ///< the pool's memory lies below several ranges at once, of which one is lent
};

/// The memory of one slot of residency in_place: pages that are moved below the ranges where a host
/// expects a parameter, and back. Always the same pages of the pool go below a range, so that what
/// was cut apart fits together again. Recycling::alias: what was lent stays below its range until
/// the owner of the range puts something else there. Not thread-safe.
class PagePool {
 public:
  PagePool() = default;
  /// `bytes`: whole pages, counted as slots; 0: no pool.
  PagePool(Ledger& ledger, std::size_t bytes, Recycling recycling)
      : account_(ledger, StateKind::slots, bytes), recycling_(recycling), pool_{nullptr, bytes} {
    if (bytes == 0) return;
    if (recycling_ == Recycling::move) pool_.begin = reserve_pages(bytes);
    if (recycling_ == Recycling::alias) pool_.begin = reserve_common_pages(bytes);
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
  [[nodiscard]] bool keeps_contents() const noexcept { return recycling_ != Recycling::refill; }
  /// Whether memory that was lent stays below its ranges when it is taken back.
  [[nodiscard]] bool stays_below() const noexcept { return recycling_ == Recycling::alias; }
  /// Room for so many ranges, so that lend() does not allocate.
  void reserve(std::size_t ranges) {
    lent_.reserve(ranges);
    cuts_.reserve(2 * ranges);
  }

  /// Whether these ranges have the memory now.
  [[nodiscard]] bool is_lent_below(std::span<const PageRange> ranges) const noexcept {
    return matches(ranges,
                   [](const PageRange& a, const PageRange& b) { return a.begin == b.begin; });
  }

  /// Puts memory below the ranges, readable and writable, with whatever it holds. Together they are
  /// not larger than the pool. What is lent elsewhere goes there directly where the ranges are of
  /// the same sizes, else by way of the pool. BackendError where the system refuses.
  void lend(std::span<const PageRange> ranges) {
    if (is_lent_below(ranges)) return;
    if (lent() && recycling_ == Recycling::move && access_ == Access::write &&
        matches(ranges,
                [](const PageRange& a, const PageRange& b) { return a.bytes == b.bytes; })) {
      hand_on(ranges);
      return;
    }
    if (!take_back(Access::write))
      raise_pages("moving an arena's pages back to a pool", pool_.bytes);
    std::size_t offset = 0;
    for (const PageRange& range : ranges) {
      if (!lend(range, offset)) {
        const int error = errno;
        if (stays_below()) {  // nothing of it; what failed may be a hole
          lent_.push_back(range);
          for (const PageRange& done : lent_) static_cast<void>(empty_pages(done, Access::write));
        }
        take_back(Access::write);
        errno = error;
        raise_pages("moving pages below the host's addresses", range.bytes);
      }
      lent_.push_back(range);
      offset += range.bytes;
    }
  }

  /// The same where stays_below(), and the memory lies below these ranges since it was lent there.
  void lend_again(std::span<const PageRange> ranges) { lent_.assign(ranges.begin(), ranges.end()); }

  /// Takes the memory back and leaves the ranges without any, with `access`: none, or write (and
  /// then they read as zeros); but see stays_below(). False where the system refuses, which leaves
  /// pages where they are.
  bool take_back(Access access) noexcept {
    bool good = true;
    if (stays_below()) lent_.clear();
    std::size_t offset = 0;
    if (access_ != Access::write) protect(Access::write);
    for (const PageRange& range : lent_) {
      if (range.begin == nullptr) {
        offset += range.bytes;
        continue;
      }
      if (recycling_ == Recycling::move)
        good = move(range.begin, at(offset), range.bytes, offset) && good;
      // What was moved away leaves a range without memory that may be written.
      if (recycling_ == Recycling::refill || access != Access::write) {
        good = empty_pages(range, access) && good;
      }
      offset += range.bytes;
    }
    lent_.clear();
    return good;
  }

  /// Takes back what is lent below these ranges, whose owner goes, and leaves the rest where it is.
  void abandon(std::span<const PageRange> ranges) noexcept {
    std::size_t offset = 0;
    for (PageRange& lent : lent_) {
      const bool goes = std::any_of(ranges.begin(), ranges.end(), [&](const PageRange& range) {
        return lent.begin != nullptr && range.begin == lent.begin;
      });
      if (goes) {
        if (access_ != Access::write) static_cast<void>(protect_pages(lent, Access::write));
        if (recycling_ == Recycling::move) {
          static_cast<void>(move(lent.begin, at(offset), lent.bytes, offset));
        }
        lent.begin = nullptr;
      }
      offset += lent.bytes;
    }
  }

  /// What is lent may be read, or written as well.
  void protect(Access access) noexcept {
    for (const PageRange& range : lent_) {
      if (range.begin != nullptr) static_cast<void>(protect_pages(range, access));
    }
    access_ = access;
  }

  /// For tests: treat every place where the pool was ever cut as one that cannot be moved across,
  /// as Linux before 6.17 does where its mappings did not merge again.
  void assume_cuts_stay() noexcept { cuts_stay_ = true; }

 private:
  [[nodiscard]] std::byte* at(std::size_t offset) const noexcept { return pool_.begin + offset; }

  // The same number of ranges, none of them abandoned.
  template <class Same>
  [[nodiscard]] bool matches(std::span<const PageRange> ranges, const Same& same) const noexcept {
    return std::equal(
        lent_.begin(), lent_.end(), ranges.begin(), ranges.end(),
        [&](const PageRange& a, const PageRange& b) { return a.begin != nullptr && same(a, b); });
  }

  void hand_on(std::span<const PageRange> ranges) {
    std::size_t offset = 0;
    for (std::size_t i = 0; i < ranges.size(); ++i) {
      if (!move(lent_[i].begin, ranges[i].begin, ranges[i].bytes, offset)) {
        const int error = errno;
        take_back(Access::write);
        errno = error;
        raise_pages("moving pages from range to range of an arena", ranges[i].bytes);
      }
      lent_[i] = ranges[i];
      offset += ranges[i].bytes;
    }
  }

  bool lend(const PageRange& range, std::size_t offset) {
    if (recycling_ == Recycling::refill) return protect_pages(range, Access::write);
    if (recycling_ == Recycling::alias) return alias_pages({at(offset), range.bytes}, range.begin);
    remember_cut(offset);
    remember_cut(offset + range.bytes);
    return move(at(offset), range.begin, range.bytes, offset);
  }

  void remember_cut(std::size_t offset) {
    const auto place = std::lower_bound(cuts_.begin(), cuts_.end(), offset);
    if (place == cuts_.end() || *place != offset) cuts_.insert(place, offset);
  }

  // Memory whose place in the pool is `offset`. In one call where the system can, else from cut to
  // cut: a mapping that was cut apart by earlier moves may not have merged again, and the system
  // does not move across its parts.
  bool move(std::byte* from, std::byte* to, std::size_t bytes, std::size_t offset) noexcept {
    if (!cuts_stay_) {
      if (move_pages({from, bytes}, to)) return true;
      if (errno != EFAULT) return false;
    }
    auto cut = std::upper_bound(cuts_.begin(), cuts_.end(), offset);
    for (std::size_t done = 0; done < bytes;) {
      const std::size_t end = cut == cuts_.end() ? bytes : std::min(*cut++ - offset, bytes);
      if (!move_pages({from + done, end - done}, to + done)) return false;
      done = end;
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
  std::vector<PageRange> lent_;    // without an address: abandoned
  std::vector<std::size_t> cuts_;  // ascending offsets in the pool
  bool cuts_stay_ = false;
};

}  // namespace shardwise::inline v0_1::detail
