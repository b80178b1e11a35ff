#pragma once

#include <algorithm>
#include <cstddef>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

namespace shardwise::inline v0_1::detail {

/// How many insertions, removals, exchanges and swaps of neighbours turn one word into the other
/// (Damerau and Levenshtein; no character is edited twice). Upper and lower case are equal, and so
/// are '-' and '_'.
[[nodiscard]] inline std::size_t edit_distance(std::string_view a, std::string_view b) {
  const auto folded = [](char c) {
    if (c >= 'A' && c <= 'Z') return static_cast<char>(c - 'A' + 'a');
    return c == '-' ? '_' : c;
  };
  std::vector<std::size_t> before(b.size() + 1);
  std::vector<std::size_t> row(b.size() + 1);
  std::vector<std::size_t> next(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    next[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const bool same = folded(a[i - 1]) == folded(b[j - 1]);
      next[j] = std::min({row[j] + 1, next[j - 1] + 1, row[j - 1] + (same ? 0 : 1)});
      if (i > 1 && j > 1 && folded(a[i - 1]) == folded(b[j - 2]) &&
          folded(a[i - 2]) == folded(b[j - 1])) {
        next[j] = std::min(next[j], before[j - 2] + 1);
      }
    }
    std::swap(before, row);
    std::swap(row, next);
  }
  return row[b.size()];
}

/// The word that was meant, if one is near: within two edits, or a third of the longer word. Where
/// two are as near, the one that begins alike, then the one of the same length, then the first.
[[nodiscard]] inline std::string nearest_word(std::string_view found,
                                              const std::vector<std::string_view>& words) {
  struct Score {
    std::size_t distance = std::numeric_limits<std::size_t>::max();
    std::size_t unlike = 0;
    std::size_t length = 0;
    [[nodiscard]] bool operator<(const Score& other) const noexcept {
      if (distance != other.distance) return distance < other.distance;
      if (length != other.length) return length < other.length;
      return unlike < other.unlike;
    }
  };
  Score best;
  std::string_view nearest;
  if (found.size() > 200) return {};
  for (const std::string_view word : words) {
    Score score;
    const std::size_t longer = std::max(found.size(), word.size());
    const std::size_t most = std::max(std::size_t{2}, longer / 3);
    score.length = longer - std::min(found.size(), word.size());
    if (score.length > most) continue;
    score.distance = edit_distance(found, word);
    // Two edits of a short word are another word.
    if (score.distance > most || score.distance >= longer) continue;
    const auto parted = std::mismatch(found.begin(), found.end(), word.begin(), word.end());
    score.unlike = found.size() - static_cast<std::size_t>(parted.first - found.begin());
    if (score < best) {
      best = score;
      nearest = word;
    }
  }
  return std::string(nearest);
}

}  // namespace shardwise::inline v0_1::detail
