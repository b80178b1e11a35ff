#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "failure_channel.hpp"
#include "fingerprint.hpp"
#include "mpi_session.hpp"

namespace shardwise::inline v0_1::detail::mpi {

/// What a communicator and all that were split from it share: they fail together.
class Family {
 public:
  explicit Family(std::shared_ptr<Runtime> runtime) : runtime_(std::move(runtime)) {}
  Family(const Family&) = delete;
  Family& operator=(const Family&) = delete;
  ~Family() {
    if (has_failed()) runtime_->fail();
  }

  /// Before it, failures are this rank's alone.
  void connect(int rank, int size, const FailureChannel::Exchange& exchange,
               const FailureChannelOptions& options) {
    channel_ = std::make_unique<FailureChannel>(rank, size, exchange, options);
  }

  [[nodiscard]] bool has_failed() const noexcept {
    return channel_ != nullptr && channel_->has_failed();
  }

  /// This rank cannot go on.
  void fail(std::string_view message, bool provisional) noexcept {
    runtime_->fail();
    if (channel_ != nullptr) channel_->fail(message, provisional);
  }

  void entering(const Fingerprint& call, std::uint64_t group) {
    if (channel_ != nullptr) channel_->entering(call, group);
  }
  void joining(std::uint64_t group, std::uint64_t parent, std::uint64_t call) {
    if (channel_ != nullptr) channel_->joining(group, parent, call);
  }
  void leaving(std::uint64_t group) {
    if (channel_ != nullptr) channel_->leaving(group);
  }
  /// This rank destroys its communicator.
  void leave(std::uint64_t group) noexcept {
    if (channel_ != nullptr) channel_->leave(group);
  }

  /// Where has_failed().
  [[nodiscard]] ProcessFailure failure() const { return channel_->failure(); }

  /// Ends a call where has_failed().
  [[noreturn]] void fail_with_peer(const Fingerprint& call) {
    runtime_->fail();
    throw channel_->peer_failed(call);
  }

  /// Ends a call of rank `own` whose time is up; `members` are its ranks.
  [[noreturn]] void time_out(const Fingerprint& call, int own, std::span<const int> members,
                             std::uint64_t group) {
    runtime_->fail();
    if (channel_ != nullptr) channel_->time_out(call, members, group);
    raise<TimedOut>("rank {} waited in vain for all {} ranks to make an MpiCommunicator, in {}",
                    own, members.size(), describe(call));
  }

 private:
  std::shared_ptr<Runtime> runtime_;
  std::unique_ptr<FailureChannel> channel_;
};

}  // namespace shardwise::inline v0_1::detail::mpi
