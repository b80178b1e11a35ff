#pragma once

#include <cstddef>

#include "../core/dtype.hpp"
#include "../core/host_device.hpp"
#include "cast.hpp"

namespace shardwise::inline v0_1::detail {

/// A functor for launch_tiles, for one tile: converts at most `size` elements in place, where the
/// types differ in size. All are read before one is written.
template <FloatingElement From, FloatingElement To>
struct ConvertTile {
  static constexpr unsigned lanes = 32;
  static constexpr std::size_t per_lane = 8;
  static constexpr std::size_t size = lanes * per_lane;
  struct State {
    To values[per_lane];
  };
  using Partial = unsigned;  // nothing to agree on

  const From* from;
  To* to;
  std::size_t count;

  SHARDWISE_HOST_DEVICE unsigned load(std::size_t /*tile*/, unsigned lane, State& state) const {
    for (std::size_t i = 0; i < per_lane; ++i) {
      const std::size_t at = i * lanes + lane;
      if (at < count) state.values[i] = cast_element<To>(from[at]);
    }
    return 0;
  }
  SHARDWISE_HOST_DEVICE static unsigned combine(unsigned a, unsigned b) { return a | b; }
  SHARDWISE_HOST_DEVICE void store(std::size_t /*tile*/, unsigned lane, const State& state,
                                   unsigned /*total*/) const {
    for (std::size_t i = 0; i < per_lane; ++i) {
      const std::size_t at = i * lanes + lane;
      if (at < count) to[at] = state.values[i];
    }
  }
};

}  // namespace shardwise::inline v0_1::detail
