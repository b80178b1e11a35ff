#pragma once

#include <chrono>
#include <cstdint>

namespace shardwise::inline v0_1 {

/// Bytes that one rank sends for parameters and gradients, by the ring formula over the padded
/// buffers in the type on the wire: (N-1)/N of the buffer for an all-gather and a reduce-scatter,
/// twice that for an all-reduce; whatever the backend really moves. In groups of G ranks
/// (Strategy::shard_group) a parameter is gathered, and its gradient reduce-scattered, with (G-1)/G
/// of the buffer, within the group; the N/G groups then all-reduce a shard, 1/G of the buffer in
/// fp32 (f64 for f64), with 2(N-G)/N of it. Gathers from secondary shards (Strategy::reshard_group)
/// are those of a group of so many ranks.
struct Traffic {
  std::uint64_t all_gather = 0;
  std::uint64_t reduce_scatter = 0;
  std::uint64_t all_reduce = 0;
  std::uint64_t across_groups = 0;     ///< of `all_reduce`: between shard groups
  std::uint64_t within_secondary = 0;  ///< of `all_gather`: from secondary shards
  std::uint64_t all_gather_calls = 0;
  std::uint64_t reduce_scatter_calls = 0;
  std::uint64_t all_reduce_calls = 0;
  std::uint64_t scalar_calls = 0;  ///< group scalars, norms and flags: one collective each

  [[nodiscard]] std::uint64_t bytes() const noexcept {
    return all_gather + reduce_scatter + all_reduce;
  }
  [[nodiscard]] bool operator==(const Traffic&) const = default;
};

/// What a Context counted since it was made or reset.
struct Statistics {
  Traffic traffic;
  /// Time that the host stood still for communication. With overlap: waits for the communication
  /// stream; without: the collectives themselves.
  std::chrono::nanoseconds waited{0};
  /// Of traffic.all_gather: of parameters that ranks share (Residency::shared), for which no bytes
  /// travel.
  std::uint64_t shared = 0;
  /// Bytes that this rank wrote into copies that ranks share: its shards, in the lease type.
  std::uint64_t cast = 0;

  /// What this rank really moved for parameters and gradients: the traffic, without what is shared,
  /// and with what it cast instead.
  [[nodiscard]] std::uint64_t bytes_moved() const noexcept {
    return traffic.bytes() - shared + cast;
  }
};

}  // namespace shardwise::inline v0_1
