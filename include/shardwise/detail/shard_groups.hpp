#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "../comm/communicator.hpp"
#include "../comm/regular_parts.hpp"

namespace shardwise::inline v0_1::detail {

/// The ranks that a parameter is sharded over. What they hold together others may hold, too.
struct ShardGroup {
  int size;
  Communicator* within;  ///< consecutive ranks, each of which holds a part
  Communicator* across;  ///< the ranks that hold the same part; null where it is this one alone
};

/// Groups of consecutive ranks of a world, by size, and the communicators that they need: parts of
/// the world's, made when they are first asked for, by all ranks.
class ShardGroups {
 public:
  explicit ShardGroups(Communicator& world)
      : world_(&world), whole_{world.size(), &world, nullptr} {}
  ShardGroups(const ShardGroups&) = delete;
  ShardGroups& operator=(const ShardGroups&) = delete;

  /// `size` divides the world. All ranks make the same, in the same order; what is there already is
  /// free. The address stays.
  const ShardGroup& make(int size, std::chrono::nanoseconds timeout) {
    if (size == whole_.size) return whole_;
    for (const auto& group : groups_) {
      if (group->size == size) return *group;
    }
    Communicator& within = part(size, 1, timeout);
    Communicator& across = part(whole_.size / size, size, timeout);
    groups_.push_back(std::make_unique<ShardGroup>(ShardGroup{size, &within, &across}));
    return *groups_.back();
  }
  /// The ranks of which this is one, where each `size` that follow each other are a part of their
  /// own; likewise.
  Communicator& consecutive(int size, std::chrono::nanoseconds timeout) {
    return size == whole_.size ? *world_ : part(size, 1, timeout);
  }
  /// One that was made.
  [[nodiscard]] const ShardGroup& of(int size) const noexcept {
    for (const auto& group : groups_) {
      if (group->size == size) return *group;
    }
    return whole_;
  }

  /// Ranks of the world.
  [[nodiscard]] int world() const noexcept { return whole_.size; }

  /// Throws what is known to have failed in one of them; never waits.
  void check() {
    for (const Part& part : parts_) part.comm->check();
  }

 private:
  struct Part {
    int size;
    int stride;
    std::unique_ptr<Communicator> comm;
  };

  // `size` ranks, `stride` apart, this one among them.
  Communicator& part(int size, int stride, std::chrono::nanoseconds timeout) {
    for (const Part& made : parts_) {
      if (made.size == size && made.stride == stride) return *made.comm;
    }
    std::unique_ptr<Communicator> comm;
    if (const auto* regular = dynamic_cast<const RegularParts*>(world_)) {
      comm = regular->part(size, stride);
    } else {
      const int rank = world_->rank();
      const int color = rank / (size * stride) * stride + rank % stride;
      comm = world_->split(color, rank,
                           {stride == 1 ? "shard group" : "replicas of a shard", timeout,
                            static_cast<std::uint64_t>(size)});
    }
    parts_.push_back({size, stride, std::move(comm)});
    return *parts_.back().comm;
  }

  Communicator* world_;
  ShardGroup whole_;
  std::vector<Part> parts_;
  std::vector<std::unique_ptr<ShardGroup>> groups_;
};

}  // namespace shardwise::inline v0_1::detail
