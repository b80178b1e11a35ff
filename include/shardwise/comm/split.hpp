#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

namespace shardwise::inline v0_1 {

/// What one rank asks of a split.
struct SplitItem {
  int color;
  int key;
};

namespace detail {

/// The ranks that gave this color, in the order of (key, rank).
[[nodiscard]] inline std::vector<std::size_t> members_of(int color,
                                                         std::span<const SplitItem> wishes) {
  std::vector<std::size_t> members;
  for (std::size_t r = 0; r < wishes.size(); ++r) {
    if (wishes[r].color == color) members.push_back(r);
  }
  std::stable_sort(members.begin(), members.end(),
                   [&](std::size_t a, std::size_t b) { return wishes[a].key < wishes[b].key; });
  return members;
}

/// The place of this color among those given: libraries take no negative ones.
[[nodiscard]] inline int index_of_color(int color, std::span<const SplitItem> wishes) {
  std::vector<int> colors;
  for (const SplitItem& wish : wishes) colors.push_back(wish.color);
  std::sort(colors.begin(), colors.end());
  colors.erase(std::unique(colors.begin(), colors.end()), colors.end());
  return static_cast<int>(std::lower_bound(colors.begin(), colors.end(), color) - colors.begin());
}

}  // namespace detail
}  // namespace shardwise::inline v0_1
