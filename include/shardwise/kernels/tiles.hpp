#pragma once

#include <cstddef>

#include "../core/host_device.hpp"

/// @file
/// Functors over tiles: `lanes` threads that work on one tile together and agree on one value, by
/// shuffles on a device and by the same additions in the same order on the host.
///
/// A functor has
/// - `static constexpr unsigned lanes`: a power of two, at most 32;
/// - `State`: what a lane keeps; `Partial`: what lanes combine, a float, a double or an integer;
/// - `Partial load(std::size_t tile, unsigned lane, State&) const`, which reads memory;
/// - `static Partial combine(Partial, Partial)`, which commutes;
/// - `void store(std::size_t tile, unsigned lane, const State&, Partial total) const`, which writes
///   memory, after all lanes of its tile have read.
///
/// Partials are combined between lanes whose numbers differ in bit 0, then in bit 1, and so on:
/// ((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7)) for eight.
namespace shardwise::inline v0_1::detail {

inline constexpr unsigned warp_lanes = 32;

template <class Tiles>
concept RunsTiles = Tiles::lanes >= 1 && Tiles::lanes <= warp_lanes &&
                    (Tiles::lanes & (Tiles::lanes - 1)) == 0 &&
                    requires(const Tiles& tiles, typename Tiles::State& state,
                             typename Tiles::Partial partial) {
  partial = tiles.load(std::size_t{}, 0u, state);
  partial = Tiles::combine(partial, partial);
  tiles.store(std::size_t{}, 0u, state, partial);
};

/// The device's launch on the host, tile by tile.
template <RunsTiles Tiles>
void run_tiles(std::size_t count, const Tiles& tiles) {
  using Partial = typename Tiles::Partial;
  constexpr unsigned lanes = Tiles::lanes;
  for (std::size_t tile = 0; tile < count; ++tile) {
    typename Tiles::State states[lanes];
    Partial partials[lanes];
    for (unsigned lane = 0; lane < lanes; ++lane) {
      partials[lane] = tiles.load(tile, lane, states[lane]);
    }
    for (unsigned bit = 1; bit < lanes; bit *= 2) {
      Partial combined[lanes];
      for (unsigned lane = 0; lane < lanes; ++lane) {
        combined[lane] = Tiles::combine(partials[lane], partials[lane ^ bit]);
      }
      for (unsigned lane = 0; lane < lanes; ++lane) partials[lane] = combined[lane];
    }
    for (unsigned lane = 0; lane < lanes; ++lane) {
      tiles.store(tile, lane, states[lane], partials[lane]);
    }
  }
}

}  // namespace shardwise::inline v0_1::detail
