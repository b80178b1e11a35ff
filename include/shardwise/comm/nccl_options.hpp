#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace shardwise::inline v0_1 {

/// In which order sums over ranks are taken.
enum class NcclOrder : std::uint8_t {
  canonical,  ///< the library's tree: the bits of every other backend (all-to-all, then a local
              ///< sum)
  fast        ///< NCCL's own: bits depend on its algorithm, and bf16 and f16 round at each hop
};

/// How NCCL knows memory that it was told of before its use.
enum class NcclRegistration : std::uint8_t {
  none,    ///< not: it works all the same
  buffer,  ///< this rank's alone: peers copy from and to it without staging, where NCCL can
  window   ///< symmetric, on all ranks: also by fewer SMs, or by the copy engines
};

/// How an NCCL communicator behaves. The same on all ranks.
struct NcclOptions {
  /// Of the communicator, in messages and tools; one rendezvous makes one of each name. Letters,
  /// digits, '.', '_' and '-'.
  std::string name = "world";
  NcclOrder order = NcclOrder::canonical;
  /// Compares the ranks' calls before each one, so that different ones are a CollectiveMismatch on
  /// all ranks and not a hang. The host waits for each comparison: for tests, and to find mistakes.
  bool checked = false;
  /// A communicator of its own for reductions, so that they run beside gathers and not after them.
  /// Calls are then in order among gathers, broadcasts and all_to_alls, and among reductions.
  bool separate_reductions = false;
  /// Gathers by the copy engines, where buffers are in an NcclArena and NCCL can (NCCL 2.28.3, one
  /// machine); else as without.
  bool copy_engine = false;
  /// Profilers see each call as a range of the host thread (NVTX, where its header is there), named
  /// "all_gather block.3". NVTX starts itself at the first one, which race detectors report.
  bool ranges = false;
  /// How long ranks wait for each other while the communicator is made.
  std::chrono::nanoseconds startup_timeout = std::chrono::minutes(5);
  /// How long the destructor waits for this rank's own calls before it aborts them.
  std::chrono::nanoseconds shutdown_timeout = std::chrono::seconds(30);
  /// Of host communicators that were adopted: may a failure abort them (they are then gone)?
  /// Otherwise they are revoked, where NCCL can (2.28.7).
  bool abort_adopted = false;
  /// A failure revokes the communicator and does not abort it, so that the ranks that are left may
  /// shrink() it. ConfigError before NCCL 2.28.7.
  bool shrinkable = false;
};

}  // namespace shardwise::inline v0_1
