#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "../core/dtype.hpp"
#include "../core/piece.hpp"
#include "../host_tensor.hpp"
#include "address_range.hpp"
#include "engine.hpp"
#include "flat_parameter.hpp"

namespace shardwise::inline v0_1::detail {

/// Where a host's tensors lie in an arena.
struct HostPlace {
  AddressRange* arena;
  Placed placed;
  std::vector<Piece> pieces;
};

/// Claims the bytes of `tensors`, which are those of `layout`, for `parameter`. `recycle`: their
/// pages come and go. UsageError where one is not of type `lease`, or has no place of its own in
/// the arena of the first.
template <class Device>
[[nodiscard]] HostPlace claim_place(const Engine<Device>& engine, const std::string& parameter,
                                    std::span<const HostTensor> tensors, const Layout& layout,
                                    DType lease, bool recycle) {
  const HostTensor* first = nullptr;
  for (const HostTensor& tensor : tensors) {
    if (tensor.dtype != lease) {
      raise(
          "tensor '{}' of parameter '{}' lies in an arena as {}, but leases are {}: set "
          "Strategy::lease (gradients: gradient_lease) = DType::{}",
          tensor.spec.name, parameter, name_of(tensor.dtype), name_of(lease),
          name_of(tensor.dtype));
    }
    if (first == nullptr && tensor.count() > 0) first = &tensor;
  }
  if (first == nullptr) return {nullptr, {}, pieces_of(layout)};
  AddressRange& arena = engine.arena_of(*first);
  HostPlace place{&arena, arena.claim(parameter, tensors, recycle), pieces_of(layout)};
  for (std::size_t i = 0; i < tensors.size(); ++i) place.pieces[i].data = tensors[i].data;
  return place;
}

}  // namespace shardwise::inline v0_1::detail
