#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>

#include "failure_channel_options.hpp"

namespace shardwise::inline v0_1 {

/// In which order sums over ranks are taken.
enum class MpiOrder : std::uint8_t {
  canonical,  ///< the library's tree: the bits of every other backend (all-to-all, then a local
              ///< sum)
  fast        ///< MPI's own where it has the type, for sums without weights; bits depend on its
              ///< algorithm
};

/// How an MPI communicator behaves. The same on all ranks.
struct MpiOptions {
  MpiOrder order = MpiOrder::canonical;
  /// Works on a duplicate of the host's communicator, so that no message of one meets one of the
  /// other, and errors are exceptions. Otherwise on the host's own, which must outlive this one, is
  /// not freed, and keeps its error handler: with MPI's default one errors end the job.
  bool duplicate = true;
  /// How long ranks wait for each other while the communicator is made.
  std::chrono::nanoseconds startup_timeout = std::chrono::minutes(5);
  /// Bytes of one message; what is larger travels in several (MPI counts in int).
  std::size_t largest_message = std::size_t{1} << 30;
  /// Bytes that one rank sends another before a sum goes on: sums in the canonical order run over
  /// such chunks while later ones travel, so that what lands stays in the caches. 0: 512 KiB.
  std::size_t chunk_bytes = 0;
  /// Looks at MPI before a waiting rank lets other threads run; -1: some where this machine has a
  /// core for each of its ranks, none otherwise.
  int spins = -1;
  /// How ranks learn of one another's failures.
  FailureChannelOptions failures = {};
};

}  // namespace shardwise::inline v0_1
