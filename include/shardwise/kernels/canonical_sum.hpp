#pragma once

#include <bit>
#include <cstddef>

namespace shardwise::inline v0_1 {

/// Where the canonical tree over n >= 2 ranks splits: at the largest power of two below n.
[[nodiscard]] constexpr std::size_t canonical_split(std::size_t n) noexcept {
  return std::bit_floor(n - 1);
}

/// at(begin) + ... + at(begin + n - 1), n >= 1, added in the canonical tree's order.
template <class At>
[[nodiscard]] constexpr auto canonical_sum(std::size_t begin, std::size_t n, const At& at) noexcept
    -> decltype(at(begin)) {
  if (n == 1) return at(begin);
  const std::size_t split = canonical_split(n);
  return canonical_sum(begin, split, at) + canonical_sum(begin + split, n - split, at);
}

}  // namespace shardwise::inline v0_1
