#pragma once

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../core/error.hpp"
#include "../core/format.hpp"
#include "../device/cuda_guard.hpp"
#include "communicator.hpp"
#include "fingerprint.hpp"
#include "nccl_handle.hpp"
#include "nccl_options.hpp"
#include "nccl_range.hpp"
#include "nccl_staging.hpp"
#include "nccl_transfer.hpp"
#include "nccl_watchdog.hpp"
#include "peer_failure.hpp"
#include "rendezvous.hpp"

namespace shardwise::inline v0_1::detail::nccl {

/// One rank's end of a communicator: how its calls are issued, and what becomes of them where the
/// communicator fails or goes.
class Endpoint {
  /// Where waiting ends: throws where the communicator has failed, or the host's time is up inside
  /// NCCL, which waits for peers there when it connects to them.
  class Patience {
   public:
    Patience(Endpoint& end, const Fingerprint& print, std::chrono::nanoseconds timeout) noexcept
        : end_(end), print_(print), timeout_(timeout) {}

    void operator()() const {
      if (!end_.is_peaceful()) end_.throw_failure(print_);
      if (std::chrono::steady_clock::now() - begin_ < timeout_) return;
      end_.member_->wants_time_out.store(true);
      end_.watchdog_->wake();
      end_.throw_failure(print_);
    }

   private:
    Endpoint& end_;
    const Fingerprint& print_;
    std::chrono::nanoseconds timeout_;
    std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
  };

 public:
  /// `member` has its channels.
  Endpoint(const NcclOptions& options, int device, std::shared_ptr<Member> member,
           std::shared_ptr<Watchdog> watchdog)
      : options_(options),
        device_(device),
        exceptions_(std::uncaught_exceptions()),
        member_(std::move(member)),
        watchdog_(std::move(watchdog)) {
    member_->abort_adopted = options_.abort_adopted;
    member_->shrinkable = options_.shrinkable;
    staging_ = std::make_unique<Staging>(*member_->channels.front(), size());
    watchdog_->add(member_);
  }
  Endpoint(const Endpoint&) = delete;
  Endpoint& operator=(const Endpoint&) = delete;
  ~Endpoint() {
    const bool unwinding = std::uncaught_exceptions() > exceptions_;
    if (unwinding) pass_on_failure();
    if (!unwinding && wait_for_own_calls()) {
      try {
        rendezvous().put(member_->left_key(static_cast<std::size_t>(member_->rank)),
                         format("{}", sequence_));
      } catch (...) {
        abort("its communicator was destroyed");
      }
    }
    if (!is_peaceful()) static_cast<void>(wait_until_settled());
    watchdog_->remove(member_);
    if (!wait_for_all_calls()) {
      // Work that does not end, as far as anybody knows, still uses this memory.
      static_cast<void>(staging_.release());
      static_cast<void>(kept_.release());
    }
    for (const auto& channel : member_->channels) channel->handle->close(options_.shutdown_timeout);
  }

  [[nodiscard]] const NcclOptions& options() const noexcept { return options_; }
  [[nodiscard]] int device() const noexcept { return device_; }
  [[nodiscard]] const Member& member() const noexcept { return *member_; }
  [[nodiscard]] const std::shared_ptr<Watchdog>& watchdog() const noexcept { return watchdog_; }
  [[nodiscard]] Staging& staging() const noexcept { return *staging_; }
  [[nodiscard]] int size() const noexcept { return static_cast<int>(member_->world_ranks.size()); }
  /// Number of the last call.
  [[nodiscard]] std::uint64_t sequence() const noexcept { return sequence_; }

  /// Issues one call: on a CUDA stream on_device(transfer) enqueues it, on the null stream
  /// on_host(print, timeout, patience) does it. What fails here, fails everybody.
  template <class Item, class OnDevice, class OnHost>
  void issue(Operation operation, std::span<const Item> items, const CallInfo& info,
             StreamRef stream, int root, const OnDevice& on_device, const OnHost& on_host) {
    check_stream(operation, items, info, stream);
    const Fingerprint print = detail::fingerprint_of(operation, items, info, root, sequence_ + 1);
    if (!is_peaceful()) throw_failure(print);
    const Range range(print, options_.ranges);
    try {
      const CudaDeviceGuard guard(device_);
      // The watchdog sees to time-outs of what was enqueued; this is for NCCL's own waiting.
      const Patience patience(*this, print, info.timeout);
      if (options_.checked) compare(print, info.timeout, patience);
      ++sequence_;
      if (stream.memory == MemoryKind::host) {
        on_host(print, info.timeout, patience);
        return;
      }
      auto& channel = channel_for(operation);
      auto* const native = static_cast<cudaStream_t>(stream.native);
      auto& memory = channel.tracker.open(print, info.timeout, native, patience);
      Transfer transfer(*channel.handle, size(), options_.order, native, memory, patience);
      try {
        on_device(transfer);
      } catch (...) {
        channel.tracker.close(native);
        throw;
      }
      channel.tracker.close(native);
    } catch (const PeerFailed&) {
      throw;
    } catch (const TimedOut&) {
      throw;
    } catch (const UsageError&) {
      throw;
    } catch (const BackendError& error) {
      const std::string message = format("{}\nin {}", error.what(), describe(print));
      abort(message);
      throw BackendError(message);
    } catch (const std::exception& error) {
      abort(format("{}\nin {}", error.what(), describe(print)));
      throw;
    }
  }

  void abort(std::string_view message, bool provisional = false) noexcept {
    try {
      rendezvous().fail({member_->world_rank(), std::string(message), provisional});
    } catch (...) {
      rendezvous().fail({member_->world_rank()});  // no memory: the rank alone must do
    }
    aborting_.store(true);
    watchdog_->wake();
  }

  /// Throws what is known to have failed.
  void check() {
    if (!is_peaceful()) throw_failure({});
  }

 private:
  using State = Member::State;

  [[nodiscard]] Rendezvous& rendezvous() const noexcept { return watchdog_->rendezvous(); }

  [[nodiscard]] Channel& channel_for(Operation operation) const noexcept {
    const bool reduces =
        operation == Operation::reduce_scatter || operation == Operation::all_reduce;
    return *(reduces ? member_->channels.back() : member_->channels.front());
  }

  template <class Item>
  void check_stream(Operation operation, std::span<const Item> items, const CallInfo& info,
                    StreamRef stream) const {
    if (stream.memory == MemoryKind::cuda && stream.native == nullptr) {
      raise(
          "{} \"{}\" on rank {}: the CUDA stream is null; the default stream is adopted by its "
          "name, cudaStreamLegacy or cudaStreamPerThread",
          name_of(operation), info.name, member_->rank);
    }
    if (stream.memory == MemoryKind::cuda) return;
    bool pieces = false;
    if constexpr (requires { items.front().pieces; }) {
      for (const Item& item : items) pieces = pieces || !item.pieces.empty();
    }
    if (stream.native == nullptr && !pieces) return;
    raise(
        "{} \"{}\" on rank {}: this communicator works on CUDA memory and CUDA streams; of host "
        "memory it takes a few numbers, on the null stream and without pieces",
        name_of(operation), info.name, member_->rank);
  }

  void compare(const Fingerprint& print, std::chrono::nanoseconds timeout,
               const Patience& patience) {
    std::vector<Fingerprint> calls(member_->world_ranks.size());
    const std::byte* const all = staging_->gather(print, timeout, &print, sizeof print, patience);
    std::memcpy(static_cast<void*>(calls.data()), all, calls.size() * sizeof(Fingerprint));
    const auto differs = [&](const Fingerprint& call) { return !call.agrees_with(calls[0]); };
    const auto other = std::find_if(calls.begin(), calls.end(), differs);
    if (other == calls.end()) return;
    const auto name = [&](std::size_t r) { return member_->world_ranks[r]; };
    const std::string message = describe_mismatch(calls, name);
    rendezvous().fail({.rank = name(static_cast<std::size_t>(other - calls.begin())),
                       .message = message,
                       .mismatch = true});
    throw CollectiveMismatch(message);
  }

  [[nodiscard]] bool is_peaceful() const noexcept {
    return member_->state.load() == State::peaceful && !aborting_.load();
  }

  // An exception is unwinding this rank's stack: the communicator's own failure, as a rule, which
  // the others may not know yet.
  void pass_on_failure() noexcept {
    if (!is_peaceful() && wait_until_settled()) {
      rendezvous().fail(member_->failure);
    } else {
      abort("an exception is unwinding its stack", true);
    }
  }

  // The watchdog settles within moments; where it hangs in NCCL, what the rendezvous knows must do.
  [[nodiscard]] bool wait_until_settled() const noexcept {
    const auto begin = std::chrono::steady_clock::now();
    Backoff pause;
    while (member_->state.load() != State::settled) {
      if (std::chrono::steady_clock::now() - begin > std::chrono::seconds(3)) return false;
      pause();
    }
    return true;
  }

  /// Throws why the communicator has failed; `print` is the call that is refused, if any is.
  [[noreturn]] void throw_failure(const std::optional<Fingerprint>& print) {
    RankFailure failure;
    std::string call;
    if (wait_until_settled()) {
      failure = member_->failure;
      call = member_->call;
    } else {
      failure = rendezvous().failure().value_or(
          RankFailure{member_->world_rank(), "its watchdog hangs in NCCL"});
    }
    if (call.empty()) call = print ? describe(*print) : "no call";
    if (failure.mismatch) throw CollectiveMismatch(failure.message);
    if (member_->timed_out) throw TimedOut(failure.message);
    const std::string what =
        member_->left ? failure.message : format("failed: {}", failure.message);
    throw peer_failed(failure.rank, what, member_->world_rank(), call, failure.message);
  }

  // False where they did not end, not even by the abort of a failure, or nobody knows.
  [[nodiscard]] bool wait_for_all_calls() noexcept {
    const auto begin = std::chrono::steady_clock::now();
    try {
      for (const auto& channel : member_->channels) {
        channel->tracker.wait_for_all([&] {
          if (std::chrono::steady_clock::now() - begin < options_.shutdown_timeout) return;
          raise<TimedOut>("calls that were aborted did not end");
        });
      }
      return std::ranges::all_of(
          member_->channels, [](const auto& channel) { return channel->tracker.knows_all_ends(); });
    } catch (const TimedOut&) {
      return false;
    } catch (const std::exception&) {
      return true;  // a device that failed runs nothing any more
    }
  }

  // False where they did not end by themselves.
  [[nodiscard]] bool wait_for_own_calls() noexcept {
    const auto begin = std::chrono::steady_clock::now();
    try {
      for (const auto& channel : member_->channels) {
        channel->tracker.wait_for_last([&] {
          if (!is_peaceful()) throw_failure({});
          if (std::chrono::steady_clock::now() - begin < options_.shutdown_timeout) return;
          raise<TimedOut>("its communicator was destroyed, and its own calls did not end");
        });
      }
      return is_peaceful();
    } catch (const PeerFailed&) {
      return false;
    } catch (const std::exception& error) {
      abort(error.what());
      return false;
    }
  }

  NcclOptions options_;
  int device_;
  int exceptions_;
  std::shared_ptr<Member> member_;
  std::shared_ptr<Watchdog> watchdog_;
  // Outlives this object where work does not end.
  std::unique_ptr<std::shared_ptr<Member>> kept_ =
      std::make_unique<std::shared_ptr<Member>>(member_);
  std::unique_ptr<Staging> staging_;  // goes before the channels
  std::uint64_t sequence_ = 0;
  std::atomic<bool> aborting_{false};
};

}  // namespace shardwise::inline v0_1::detail::nccl
