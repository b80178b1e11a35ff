#pragma once

#include <algorithm>
#include <cstddef>
#include <span>

namespace shardwise::inline v0_1 {

/// Where elements [offset, offset + count) of a flat buffer lie, where that is not one allocation:
/// a list of pieces stands for the buffer. In a list offsets ascend and pieces do not overlap;
/// elements between them (padding) lie nowhere. Does not own the memory.
struct Piece {
  std::byte* data = nullptr;  ///< may be null where count is 0
  std::size_t offset = 0;     ///< elements
  std::size_t count = 0;      ///< elements

  [[nodiscard]] bool operator==(const Piece&) const = default;
};

/// Calls f(index, first, count) for each part of elements [begin, end) of the flat buffer that lies
/// within one piece, in order: `count` (at least 1) elements from element `first` on, in
/// pieces[index].
template <class F>
void for_each_piece(std::span<const Piece> pieces, std::size_t begin, std::size_t end, F&& f) {
  auto piece = std::partition_point(pieces.begin(), pieces.end(), [&](const Piece& candidate) {
    return candidate.offset + candidate.count <= begin;
  });
  for (; piece != pieces.end() && piece->offset < end; ++piece) {
    const std::size_t first = std::max(begin, piece->offset);
    const std::size_t last = std::min(end, piece->offset + piece->count);
    if (first < last) f(static_cast<std::size_t>(piece - pieces.begin()), first, last - first);
  }
}

}  // namespace shardwise::inline v0_1
