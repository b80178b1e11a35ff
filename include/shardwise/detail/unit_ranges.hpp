#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "pages.hpp"

namespace shardwise::inline v0_1::detail {

/// Residency in_place: what the pages of a unit's slot go below, those of all its members
/// (Member::place()) in order. One list serves all units of a store, one after the other.
class UnitRanges {
 public:
  template <class Unit>
  [[nodiscard]] static std::size_t count(const Unit& unit) noexcept {
    std::size_t count = 0;
    for (const auto* member : unit) count += member->place().pages().size();
    return count;
  }

  /// Room for those of `unit`: of() allocates nothing.
  template <class Unit>
  void reserve(const Unit& unit) {
    ranges_.reserve(count(unit));
  }
  /// Valid until the next call.
  template <class Unit>
  [[nodiscard]] std::span<const PageRange> of(const Unit& unit) {
    ranges_.clear();
    for (const auto* member : unit) {
      const auto pages = member->place().pages();
      ranges_.insert(ranges_.end(), pages.begin(), pages.end());
    }
    return ranges_;
  }

 private:
  std::vector<PageRange> ranges_;
};

}  // namespace shardwise::inline v0_1::detail
