#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <span>
#include <string_view>

#include "../core/format.hpp"
#include "../device/host_stream.hpp"
#include "arguments.hpp"
#include "communicator.hpp"
#include "fingerprint.hpp"

namespace shardwise::inline v0_1 {

/// What communicators of several ranks on host memory have in common: each call is checked, gets
/// its number and goes where its stream runs it, on a worker or at once. Derived is their class; it
/// has `execute(call, items)`, which carries out one call in its turn, on whichever thread, and
/// calls end_calls() in its destructor before anything else.
template <class Derived>
class HostCommunicator : public Communicator {
 public:
  [[nodiscard]] bool accepts(MemoryKind memory) const noexcept override {
    return memory == MemoryKind::host;
  }

  void all_gather(std::span<const GatherItem> items, const CallInfo& info,
                  StreamRef stream) override {
    arguments(Operation::all_gather, info).check(items);
    issue(Operation::all_gather, items, info, stream);
  }
  void reduce_scatter(std::span<const ReduceItem> items, const CallInfo& info,
                      StreamRef stream) override {
    arguments(Operation::reduce_scatter, info).check(items);
    issue(Operation::reduce_scatter, items, info, stream);
  }
  void all_reduce(std::span<const ReduceItem> items, const CallInfo& info,
                  StreamRef stream) override {
    arguments(Operation::all_reduce, info).check(items);
    issue(Operation::all_reduce, items, info, stream);
  }
  void broadcast(std::span<const BroadcastItem> items, int root, const CallInfo& info,
                 StreamRef stream) override {
    arguments(Operation::broadcast, info).check(items, root);
    issue(Operation::broadcast, items, info, stream, root);
  }
  void all_to_all(std::span<const ExchangeItem> items, const CallInfo& info,
                  StreamRef stream) override {
    arguments(Operation::all_to_all, info).check(items);
    issue(Operation::all_to_all, items, info, stream);
  }
  void barrier(const CallInfo& info, StreamRef stream) override {
    issue(Operation::barrier, std::span<const BroadcastItem>(), info, stream);
  }

  void check() override {}  // host streams rethrow

 protected:
  /// One call, as it travels through a stream.
  struct Call {
    Operation operation;
    int root;
    std::uint64_t ticket;
    CallInfo info;
  };

  static constexpr std::string_view stuck_stream =
      "an earlier collective of this rank has not run: is its stream stuck?";

  HostCommunicator() : exceptions_(std::uncaught_exceptions()) {}

  /// A call that needs no stream.
  [[nodiscard]] Call next_call(Operation operation, const CallInfo& info) noexcept {
    return {operation, -1, tickets_++, info};
  }
  /// Calls made so far.
  [[nodiscard]] std::uint64_t tickets() const noexcept { return tickets_; }

  template <class Item>
  void issue(Operation operation, std::span<const Item> items, const CallInfo& info,
             StreamRef stream, int root = -1) {
    arguments(operation, info).check(stream);
    const Call call{operation, root, tickets_, info};
    auto* queue = static_cast<HostStream*>(stream.native);
    if (queue == nullptr || queue->is_inline()) {
      ++tickets_;
      self().execute(call, items);
      return;
    }
    add_streamed(1);
    try {
      queue->enqueue(Task<Item>{this, call}, items);
    } catch (...) {
      add_streamed(-1);
      throw;
    }
    ++tickets_;
  }

  /// Waits for this rank's calls in streams. False where an exception unwinds this object, which
  /// its peers are told.
  [[nodiscard]] bool end_calls() {
    const bool unwinding = std::uncaught_exceptions() > exceptions_;
    if (unwinding) this->abort(unwound, true);
    std::unique_lock lock(streamed_mutex_);
    streamed_done_.wait(lock, [&] { return streamed_ == 0; });
    return !unwinding;
  }

 private:
  static constexpr std::string_view unwound = "an exception is unwinding its stack";

  /// A call in a stream with a worker.
  template <class Item>
  struct Task {
    HostCommunicator* base;
    Call call;

    void operator()(std::span<const Item> items) const {
      const Streamed streamed{base};
      base->self().execute(call, items);
    }
    void skipped(const std::exception_ptr& failure) const noexcept {
      const Streamed streamed{base};
      base->skip(call, failure);
    }
    void interrupted() const noexcept { base->abort(unwound, true); }
  };

  /// Counts a call as finished, however it ends; the communicator may go right afterwards.
  struct Streamed {
    HostCommunicator* base;
    explicit Streamed(HostCommunicator* communicator) noexcept : base(communicator) {}
    Streamed(const Streamed&) = delete;
    Streamed& operator=(const Streamed&) = delete;
    ~Streamed() {
      const std::lock_guard lock(base->streamed_mutex_);
      --base->streamed_;
      base->streamed_done_.notify_all();
    }
  };

  [[nodiscard]] Derived& self() noexcept { return static_cast<Derived&>(*this); }

  [[nodiscard]] Arguments arguments(Operation operation, const CallInfo& info) const noexcept {
    return Arguments(operation, info.name, this->rank(), this->size());
  }

  void add_streamed(int change) {
    const std::lock_guard lock(streamed_mutex_);
    streamed_ += change;
  }

  void skip(const Call& call, const std::exception_ptr& failure) noexcept {
    try {
      std::rethrow_exception(failure);
    } catch (const std::exception& error) {
      abort_skipped(call, error.what());
    } catch (...) {
      abort_skipped(call, "an exception that is not a std::exception");
    }
  }

  void abort_skipped(const Call& call, const char* why) noexcept {
    try {
      this->abort(detail::format("{} #{} \"{}\" was never run, because its stream had ended: {}",
                                 name_of(call.operation), call.ticket + 1, call.info.name, why));
    } catch (...) {
      this->abort(why);
    }
  }

  std::uint64_t tickets_ = 0;  // of calls made; the host thread's
  std::mutex streamed_mutex_;
  std::condition_variable streamed_done_;
  int streamed_ = 0;  // calls in streams with a worker that have not ended
  int exceptions_;
};

}  // namespace shardwise::inline v0_1
