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

/// f(address, first, count) for each part of elements [begin, end), of `size` bytes each, that lies
/// in one place: in `pieces` or, where there are none, in the buffer `flat`. Byte is std::byte,
/// const or not.
template <class Byte, class F>
void for_each_place(Byte* flat, std::span<const Piece> pieces, std::size_t size, std::size_t begin,
                    std::size_t end, F&& f) {
  if (pieces.empty()) {
    if (begin < end) f(flat + begin * size, begin, end - begin);
    return;
  }
  for_each_piece(pieces, begin, end, [&](std::size_t index, std::size_t first, std::size_t count) {
    Byte* const data = pieces[index].data;
    f(data + (first - pieces[index].offset) * size, first, count);
  });
}

}  // namespace shardwise::inline v0_1
