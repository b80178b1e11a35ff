#pragma once

#include <cstddef>
#include <cstring>

#include "../core/dtype.hpp"
#include "../core/piece.hpp"
#include "communicator.hpp"

namespace shardwise::inline v0_1::detail {

/// What backends on host memory do with the pieces of an item.

/// Calls move(from, bytes, place) for what the owner of `source` contributes to the part of a
/// gathered buffer that begins at element `begin`, in stretches that lie in one place on each rank;
/// place(item) is where that rank's receive buffer takes it.
template <class Move>
void for_each_stretch(const GatherItem& source, std::size_t begin, const Move& move) noexcept {
  const std::size_t size = size_of(source.dtype);
  const auto* const contiguous = static_cast<const std::byte*>(source.send);
  if (source.pieces.empty()) {
    move(contiguous, source.count * size,
         [&](const GatherItem& of) { return static_cast<std::byte*>(of.recv) + begin * size; });
    return;
  }
  for_each_piece(source.pieces, begin, begin + source.count,
                 [&](std::size_t index, std::size_t first, std::size_t count) {
                   const std::size_t inside = (first - source.pieces[index].offset) * size;
                   const std::byte* const from = contiguous == nullptr
                                                     ? source.pieces[index].data + inside
                                                     : contiguous + (first - begin) * size;
                   move(from, count * size,
                        [&](const GatherItem& of) { return of.pieces[index].data + inside; });
                 });
}

/// Fills the part that begins at `begin` of `item`'s receive buffer with what the owner of `source`
/// contributes. copy(to, from, bytes) moves.
template <class Copy>
void fill_part(const GatherItem& item, const GatherItem& source, std::size_t begin,
               const Copy& copy) noexcept {
  for_each_stretch(source, begin, [&](const std::byte* from, std::size_t bytes, const auto& place) {
    copy(place(item), from, bytes);
  });
}

/// Calls sum(first, count, input) for the stretches of elements [begin, end) that lie in one place
/// on each rank; input(item) is where that rank's stretch begins. `out` holds the results of
/// [begin, end): those that no rank contributes to become 0, unless they accumulate.
template <class Sum>
void for_each_stretch(const ReduceItem& item, std::size_t begin, std::size_t end, std::byte* out,
                      const Sum& sum) noexcept {
  const std::size_t size = size_of(item.dtype);
  if (item.pieces.empty()) {
    sum(begin, end - begin, [&](const ReduceItem& of) -> const void* {
      return static_cast<const std::byte*>(of.send) + begin * size;
    });
    return;
  }
  std::size_t done = begin;
  const auto skip_to = [&](std::size_t next) {
    const std::size_t bytes = size_of(item.spec.output);
    if (!item.spec.accumulate) std::memset(out + (done - begin) * bytes, 0, (next - done) * bytes);
  };
  for_each_piece(
      item.pieces, begin, end, [&](std::size_t index, std::size_t first, std::size_t count) {
        skip_to(first);
        const std::size_t inside = (first - item.pieces[index].offset) * size;
        sum(first, count,
            [&](const ReduceItem& of) -> const void* { return of.pieces[index].data + inside; });
        done = first + count;
      });
  skip_to(end);
}

}  // namespace shardwise::inline v0_1::detail
