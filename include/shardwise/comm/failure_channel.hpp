#pragma once

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "../core/error.hpp"
#include "failure_channel_calls.hpp"
#include "failure_channel_meeting.hpp"
#include "failure_channel_options.hpp"
#include "failure_channel_state.hpp"
#include "fingerprint.hpp"
#include "process_failure.hpp"

namespace shardwise::inline v0_1 {

/// Tells the processes of a run of one another's failures, beside whatever carries their bytes:
/// sockets between them (local ones on one machine, TCP between machines) and one thread that
/// sleeps until something happens. A process that dies is known to all others as soon as the kernel
/// has closed its sockets, and a message in a round trip.
///
/// A communicator says where it is by entering() and leaving(), looks at has_failed() while it
/// waits, and throws peer_failed(). Ranks are those of the run. `group` tells the run's
/// communicators apart: any number that is equal on a communicator's ranks and has not been used
/// before. All functions may be called from any thread. In a forked child the channel does nothing.
class FailureChannel {
 public:
  using Exchange = std::function<std::vector<std::string>(const std::string& mine)>;

  /// All ranks make theirs together. `exchange` gathers one text of each rank, in the order of the
  /// ranks (MPI_Allgather, files); it is called once, and a second time where there are several
  /// machines. BackendError where the ranks cannot connect in time.
  FailureChannel(int rank, int size, const Exchange& exchange, FailureChannelOptions options = {})
      : rank_(rank), size_(size), process_(::getpid()), exceptions_(std::uncaught_exceptions()) {
    if (size < 1 || rank < 0 || rank >= size) {
      raise("a failure channel of {} ranks has none numbered {}", size, rank);
    }
    std::vector<detail::failures::Link> links;
    if (size > 1) links = detail::failures::Meeting(rank, size, exchange, options).connect();
    state_ = std::make_shared<State>(rank, size, std::move(links), std::move(options));
    thread_ = start(state_);
  }
  FailureChannel(const FailureChannel&) = delete;
  FailureChannel& operator=(const FailureChannel&) = delete;

  /// Says goodbye: this rank is well and needs nobody any more. While an exception unwinds the
  /// stack this rank has failed. Takes at most 2 s, and as a rule a round trip.
  ~FailureChannel() {
    if (is_child()) {
      state_->forget();
      thread_.detach();
      // The parent's threads may have held its locks while it was copied.
      static_cast<void>(new (std::nothrow) std::shared_ptr<State>(std::move(state_)));
      return;
    }
    if (std::uncaught_exceptions() > exceptions_) {
      state_->fail("an exception is unwinding its stack", true);
    }
    state_->close();
    if (state_->wait_for_end(std::chrono::seconds(2))) {
      thread_.join();
    } else {
      thread_.detach();
    }
  }

  [[nodiscard]] int rank() const noexcept { return rank_; }
  [[nodiscard]] int size() const noexcept { return size_; }

  /// Whether a rank has failed, this one included. One atomic load.
  [[nodiscard]] bool has_failed() const noexcept { return state_->has_failed(); }

  /// The first failure that this rank has learnt of; false where there is none. Gives a message
  /// that is on its way a moment.
  [[nodiscard]] ProcessFailure failure() const { return state_->settled_failure(); }

  /// This rank cannot go on; see Communicator::abort. The others know before it returns, as far as
  /// the network carries it.
  void fail(std::string_view message, bool provisional = false) noexcept {
    if (!is_child()) state_->fail(message, provisional);
  }

  /// This rank is in `call` from now on. Where a rank has destroyed its communicator of this group
  /// before this call, that is a failure of that rank.
  void entering(const Fingerprint& call, std::uint64_t group = 0) { state_->enter(call, group); }
  /// This rank is in the call that splits `group` off `parent`, and has entered it as its call
  /// number `call`. Not needed, but without it what others say of leaving stays for good.
  void joining(std::uint64_t group, std::uint64_t parent, std::uint64_t call) {
    state_->join(group, {parent, call});
  }
  /// The last call that entered `group` is complete; not to be called where it failed.
  void leaving(std::uint64_t group = 0) { state_->complete(group); }
  /// This rank destroys its communicator: others' later calls of this group are in vain.
  void leave(std::uint64_t group = 0) noexcept {
    if (!is_child()) state_->leave(group);
  }

  /// The ranks whose processes do not answer a question within `patience`: stopped, or cut off.
  [[nodiscard]] std::vector<int> silent(
      std::chrono::milliseconds patience = std::chrono::milliseconds(500)) {
    const auto answers = state_->ask(0, patience);
    std::vector<int> found;
    for (int r = 0; r < size_; ++r) {
      if (!answers[static_cast<std::size_t>(r)] && !state_->gone(r)) found.push_back(r);
    }
    return found;
  }

  /// Who made call `sequence` of `group` and who did not, each with its last call, for the message
  /// of a wait in vain. Ranks that wait in an earlier call are behind, and not missing, where
  /// others are missing. `members`: the group's ranks.
  [[nodiscard]] std::string who_came(
      std::uint64_t sequence, std::span<const int> members, std::uint64_t group = 0,
      std::chrono::milliseconds patience = std::chrono::milliseconds(500)) {
    const auto answers = state_->ask(group, patience);
    std::string missing;
    std::string behind;
    std::string calls;
    for (const int r : members) {
      const std::optional<detail::failures::LastCall>& last = answers[static_cast<std::size_t>(r)];
      const char* where = "arrived";
      if (!last || last->sequence < sequence) {
        where = last && last->inside ? "behind" : "missing";
        std::string& ranks = last && last->inside ? behind : missing;
        ranks += detail::format("{}{}", ranks.empty() ? "" : ", ", r);
      }
      std::string text = "does not answer: its process is stopped, or its machine cut off";
      if (!last && state_->gone(r)) text = "has ended";
      if (last) text = describe_last(*last);
      calls += detail::format("\n  rank {} ({}): {}", r, where, text);
    }
    if (missing.empty()) missing = std::move(behind);
    if (missing.empty()) missing = "none (all made the call: is the network slow, or stuck?)";
    return detail::format("missing ranks: {}; last calls:{}", missing, calls);
  }

  /// What to throw in `call` where has_failed(). Gives the other ranks a moment to learn of it,
  /// too: what carries the bytes may read this rank's buffers, which go when it unwinds, until they
  /// stop it.
  [[nodiscard]] PeerFailed peer_failed(const Fingerprint& call) const {
    const ProcessFailure first = failure();
    std::this_thread::sleep_for(for_others);
    return detail::peer_failed(first.rank, what_happened(first), rank_, describe(call),
                               first.message);
  }

  /// Ends a wait whose time is up: tells all ranks and throws TimedOut, which says who did not come
  /// to `call`; PeerFailed where another rank has failed meanwhile.
  [[noreturn]] void time_out(const Fingerprint& call, std::span<const int> members,
                             std::uint64_t group = 0) {
    fail(State::time_is_up, true);  // so that the others do not ask, too
    const auto another_failed = [&] { return state_->settled_failure().rank != rank_; };
    if (another_failed()) throw peer_failed(call);
    const std::string message =
        detail::format("rank {} waited in vain in {}; {}", rank_, describe(call),
                       who_came(call.sequence, members, group));
    if (another_failed()) throw peer_failed(call);
    fail(message);
    throw TimedOut(message);
  }

 private:
  using State = detail::failures::State;
  static constexpr auto for_others = std::chrono::milliseconds(20);

  [[nodiscard]] bool is_child() const noexcept { return ::getpid() != process_; }

  [[nodiscard]] static std::string describe_last(const detail::failures::LastCall& last) {
    if (last.sequence == 0) return "no call so far";
    return detail::format("{} {}", last.inside ? "in" : "after", last.text);
  }

  /// The host's signal handlers run on its own threads.
  [[nodiscard]] static std::thread start(const std::shared_ptr<State>& state) {
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
      std::thread thread([state] { state->run(); });
      pthread_sigmask(SIG_SETMASK, &before, nullptr);
      return thread;
    } catch (...) {
      pthread_sigmask(SIG_SETMASK, &before, nullptr);
      throw;
    }
  }

  int rank_;
  int size_;
  pid_t process_;
  int exceptions_;
  std::shared_ptr<State> state_;
  std::thread thread_;
};

}  // namespace shardwise::inline v0_1
