#pragma once

#include <cstddef>
#include <cstring>

#include "../core/dtype.hpp"
#include "../core/piece.hpp"
#include "communicator.hpp"

namespace shardwise::inline v0_1::detail {

/// What backends on host memory do with the pieces of an item.

/// Fills elements [first, first + count) of `item`'s receive buffer, which lie in the part that
/// begins at `begin`: `source`, the item of its owner, contributes it. copy(to, from, bytes) moves.
template <class Copy>
void fill_range(const GatherItem& item, const GatherItem& source, std::size_t begin,
                std::size_t first, std::size_t count, const Copy& copy) noexcept {
  const std::size_t size = size_of(item.dtype);
  const auto* contiguous = static_cast<const std::byte*>(source.send);
  if (item.pieces.empty()) {
    copy(static_cast<std::byte*>(item.recv) + first * size, contiguous + (first - begin) * size,
         count * size);
    return;
  }
  for_each_piece(item.pieces, first, first + count,
                 [&](std::size_t index, std::size_t at, std::size_t elements) {
                   const std::size_t inside = (at - item.pieces[index].offset) * size;
                   const std::byte* from = contiguous == nullptr
                                               ? source.pieces[index].data + inside
                                               : contiguous + (at - begin) * size;
                   copy(item.pieces[index].data + inside, from, elements * size);
                 });
}

/// The whole part that begins at `begin`.
template <class Copy>
void fill_part(const GatherItem& item, const GatherItem& source, std::size_t begin,
               const Copy& copy) noexcept {
  fill_range(item, source, begin, begin, item.count, copy);
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
