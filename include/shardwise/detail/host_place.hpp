#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "../core/dtype.hpp"
#include "../core/piece.hpp"
#include "../host_tensor.hpp"
#include "engine.hpp"
#include "flat_parameter.hpp"
#include "in_place.hpp"

namespace shardwise::inline v0_1::detail {

/// Where a host's tensors lie in an arena.
template <class Range>
struct HostPlace {
  Range* arena;
  Placed placed;
  std::vector<Piece> pieces;
};

/// Claims the bytes of `tensors`, which are those of `layout`, in `arena` for `parameter`; null
/// where no tensor has elements. `recycle`: their pages come and go. UsageError where one is not of
/// type `lease`, or has no place of its own in the arena.
template <class Range>
[[nodiscard]] HostPlace<Range> claim_place(Range* arena, const std::string& parameter,
                                           std::span<const HostTensor> tensors,
                                           const Layout& layout, DType lease, bool recycle) {
  for (const HostTensor& tensor : tensors) {
    if (tensor.dtype == lease) continue;
    raise(
        "tensor '{}' of parameter '{}' lies in an arena as {}, but leases are {}: set "
        "Strategy::lease (gradients: gradient_lease) = DType::{}",
        tensor.spec.name, parameter, name_of(tensor.dtype), name_of(lease), name_of(tensor.dtype));
  }
  HostPlace<Range> place{arena, {}, pieces_of(layout)};
  if (arena == nullptr) return place;
  place.placed = arena->claim(parameter, tensors, recycle);
  for (std::size_t i = 0; i < tensors.size(); ++i) place.pieces[i].data = tensors[i].data;
  return place;
}

/// The arena of the first tensor that has elements; null where there is none. UsageError where it
/// lies in no arena of the context.
template <class Device>
[[nodiscard]] RangeOf<Device>* arena_of(const Engine<Device>& engine,
                                        std::span<const HostTensor> tensors) {
  for (const HostTensor& tensor : tensors) {
    if (tensor.count() > 0) return &engine.arena_of(tensor);
  }
  return nullptr;
}

}  // namespace shardwise::inline v0_1::detail
