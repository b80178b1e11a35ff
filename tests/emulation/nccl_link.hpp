#pragma once

#include <nccl.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "nccl_call.hpp"

namespace emulation {

/// Takes a part of a result: `bytes` at `data` belong at byte `offset` of the receiving buffer.
using Sink = std::function<void(std::size_t offset, const std::byte* data, std::size_t bytes)>;

enum class Outcome : std::int32_t {
  done,
  stopped,  // this rank aborted or revoked the communicator while it waited
  lost      // the process that holds the communicator is gone
};

/// Why a rank takes no part any more.
enum class Stop : std::int32_t { none, revoked, closed, aborted, died };

/// What a window registration must have equal on all ranks.
struct WindowRequest {
  std::uint64_t ordinal = 0;
  std::uint64_t bytes = 0;
  std::int32_t flags = 0;
};

class Link;

struct Child {
  Outcome outcome = Outcome::done;
  std::shared_ptr<Link> link;  // null where this rank is not a member
};

/// One rank's way to the others of its communicator: directly to the meeting point in this process,
/// or to the process that has it. Waits end when the rank stops; nothing here touches device
/// memory.
class Link {
 public:
  Link(std::string name, int rank, int ranks)
      : name_(std::move(name)), rank_(rank), ranks_(ranks) {}
  virtual ~Link() = default;
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;

  const std::string& name() const { return name_; }
  int rank() const { return rank_; }
  int ranks() const { return ranks_; }

  /// Takes part in the collective numbered `sequence`. `time` is the stream's modelled time in
  /// microseconds and becomes that of the end.
  virtual Outcome collective(const Call& call, std::uint64_t sequence, Staging contribution,
                             const Sink& sink, double& time) = 0;

  /// All sends and receives of one group; contributions belong to the sends, in order.
  using MessageSink = std::function<void(std::size_t call, const std::byte* data, std::size_t)>;
  virtual Outcome messages(std::span<const Call> calls, std::vector<Staging> contributions,
                           const MessageSink& sink, double& time) = 0;

  virtual Child split(std::uint64_t ordinal, int color, int key, const std::string& child) = 0;
  /// `excluded` is sorted.
  virtual Child shrink(const std::vector<int>& excluded, const std::string& child) = 0;
  virtual Outcome register_window(const WindowRequest& request) = 0;
  virtual void stop(Stop why) = 0;

  /// ncclSuccess, or ncclRemoteError where a peer's process has died.
  virtual ncclResult_t health() = 0;

 private:
  std::string name_;
  int rank_;
  int ranks_;
};

/// Joins `ranks` ranks under a key of this process; returns when all have come. `device` names the
/// rank's device on this machine: two ranks may not share one.
std::shared_ptr<Link> join_here(const std::string& key, const std::string& name, int rank,
                                int ranks, const std::string& device,
                                const std::function<bool()>& given_up);

}  // namespace emulation
