#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../core/error.hpp"
#include "../device/host_stream.hpp"
#include "../kernels/reduce.hpp"
#include "arguments.hpp"
#include "communicator.hpp"
#include "fingerprint.hpp"
#include "thread_family.hpp"
#include "thread_group.hpp"
#include "thread_transfer.hpp"

namespace shardwise::inline v0_1 {

/// One rank of a group of threads; made by run_ranks, make_thread_group or split. Peers read one
/// another's buffers directly: one copy at most. Every call's fingerprint is compared.
///
/// abort() may be called from any thread. Destroying the communicator leaves the group: peers that
/// wait, or come later, get PeerFailed. The destructor waits for this rank's own collectives on
/// streams with a worker, so buffers that they use must outlive it or their stream. Ranks in
/// messages are those of the first group, before any split.
class ThreadCommunicator final : public Communicator {
 public:
  ThreadCommunicator(std::shared_ptr<ThreadGroup> group, std::size_t rank)
      : group_(std::move(group)),
        rank_(rank),
        transfer_(*group_, rank),
        exceptions_(std::uncaught_exceptions()) {}

  ~ThreadCommunicator() override {
    const bool unwinding = std::uncaught_exceptions() > exceptions_;
    if (unwinding) abort("an exception is unwinding its stack", true);
    {
      std::unique_lock lock(streamed_mutex_);
      streamed_done_.wait(lock, [&] { return streamed_ == 0; });
    }
    if (!unwinding) group_->family()->leave(*group_, world_rank());
  }

  [[nodiscard]] int rank() const noexcept override { return static_cast<int>(rank_); }
  [[nodiscard]] int size() const noexcept override { return static_cast<int>(group_->size()); }
  [[nodiscard]] std::string_view backend() const noexcept override { return "thread"; }
  [[nodiscard]] bool accepts(MemoryKind memory) const noexcept override {
    return memory == MemoryKind::host;
  }
  [[nodiscard]] std::size_t landing_bytes(const ReduceItem&, bool) const noexcept override {
    return 0;
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

  [[nodiscard]] std::unique_ptr<Communicator> split(int color, int key,
                                                    const CallInfo& info) override {
    const SplitItem mine{color, key};
    issue(Operation::split, std::span<const SplitItem>(&mine, 1), info, {});
    const std::vector<std::size_t> members = transfer_.members_of(color);
    const auto self = std::find(members.begin(), members.end(), rank_);
    HandoverItem handover{nullptr, members.front()};
    std::shared_ptr<ThreadGroup> made;
    std::unique_ptr<Communicator> result;
    try {
      if (members.front() == rank_) {
        std::vector<int> world_ranks;
        world_ranks.reserve(members.size());
        for (const std::size_t member : members) world_ranks.push_back(group_->world_rank(member));
        made = std::make_shared<ThreadGroup>(group_->family(), std::move(world_ranks),
                                             group_->options());
        handover.group = &made;
      }
    } catch (const std::exception& error) {
      abort(error.what());
      throw;
    }
    issue(Operation::split, std::span<const HandoverItem>(&handover, 1), info, {});
    try {
      result = std::make_unique<ThreadCommunicator>(
          transfer_.take_handed_over(), static_cast<std::size_t>(self - members.begin()));
    } catch (const std::exception& error) {
      abort(error.what());
      throw;
    }
    return result;
  }

  void abort(std::string_view message, bool provisional = false) noexcept override {
    group_->family()->fail(world_rank(), message, provisional);
  }
  void check() override {}  // host streams rethrow

 private:
  /// One call, as it travels through a stream.
  struct Call {
    Operation operation;
    int root;
    std::uint64_t ticket;
    CallInfo info;
  };

  /// A call in a stream with a worker.
  template <class Item>
  struct Task {
    ThreadCommunicator* self;
    Call call;

    void operator()(std::span<const Item> items) const {
      const Streamed streamed{self};
      self->execute(call, items);
    }
    void skipped(const std::exception_ptr& failure) const noexcept {
      const Streamed streamed{self};
      self->skip(call, failure);
    }
    void interrupted() const noexcept { self->abort("an exception is unwinding its stack", true); }
  };

  /// Counts a call as finished, however it ends; the communicator may go right afterwards.
  struct Streamed {
    ThreadCommunicator* self;
    explicit Streamed(ThreadCommunicator* communicator) noexcept : self(communicator) {}
    Streamed(const Streamed&) = delete;
    Streamed& operator=(const Streamed&) = delete;
    ~Streamed() {
      const std::lock_guard lock(self->streamed_mutex_);
      --self->streamed_;
      self->streamed_done_.notify_all();
    }
  };

  [[nodiscard]] int world_rank() const noexcept { return group_->world_rank(rank_); }

  [[nodiscard]] Arguments arguments(Operation operation, const CallInfo& info) const noexcept {
    return Arguments(operation, info.name, rank(), size());
  }

  template <class Item>
  void issue(Operation operation, std::span<const Item> items, const CallInfo& info,
             StreamRef stream, int root = -1) {
    arguments(operation, info).check(stream);
    const Call call{operation, root, tickets_, info};
    auto* queue = static_cast<HostStream*>(stream.native);
    if (queue == nullptr || queue->is_inline()) {
      ++tickets_;
      execute(call, items);
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

  void add_streamed(int change) {
    const std::lock_guard lock(streamed_mutex_);
    streamed_ += change;
  }

  template <class Item>
  void execute(const Call& call, std::span<const Item> items) {
    using Arrival = ThreadGroup::Arrival;
    const auto print = [&] {
      return detail::fingerprint_of(call.operation, items, call.info, call.root, call.ticket + 1);
    };
    switch (group_->take_turn(rank_, call.ticket, call.info.timeout)) {
      case Arrival::poisoned:
        fail_with_peer(print());
      case Arrival::timed_out:
        time_out(print(), [] {
          return std::string(
              "an earlier collective of this rank has not run: is its stream stuck?");
        });
      case Arrival::committed:
        break;
    }
    ThreadGroup::Slot& slot = group_->slot(rank_);
    const std::uint64_t generation = slot.generation;
    Fingerprint& shown = slot.print(generation);
    shown = print();
    slot.items = items.data();
    switch (group_->arrive(rank_, call.info.timeout)) {
      case Arrival::poisoned:
        fail_with_peer(shown);
      case Arrival::timed_out:
        time_out(shown, [&] { return group_->who_came(generation); });
      case Arrival::committed:
        break;
    }
    // From here to the exit barrier: bounded code that neither allocates nor throws nor looks at
    // the poison, because peers read this rank's buffers.
    const bool agreed = group_->agreed(rank_);
    if (agreed) {
      transfer_.move(call.operation, call.root, items);
    } else {
      transfer_.note_mismatch();
    }
    group_->point(rank_, ThreadPoint::moved);
    group_->meet(rank_);
    group_->end_turn(rank_);
    group_->point(rank_, ThreadPoint::leaving);
    if (!agreed) refuse_mismatch();
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
      abort(detail::format("{} #{} \"{}\" was never run, because its stream had ended: {}",
                           name_of(call.operation), call.ticket + 1, call.info.name, why));
    } catch (...) {
      abort(why);
    }
  }

  [[noreturn]] void fail_with_peer(const Fingerprint& print) {
    const ThreadFailure failure = group_->family()->reason(*group_, world_rank());
    const std::string who = failure.rank == world_rank()
                                ? detail::format("this rank ({})", failure.rank)
                                : detail::format("rank {}", failure.rank);
    const std::string message =
        failure.left ? "left the group (its communicator was destroyed; it returned early?)"
                     : detail::format("failed: {}", failure.message);
    throw PeerFailed(detail::format("{} {}\nwhile rank {} was in {}", who, message, world_rank(),
                                    describe(print)),
                     failure.rank, failure.left ? message : failure.message);
  }

  template <class Details>
  [[noreturn]] void time_out(const Fingerprint& print, const Details& details) {
    abort("its time is up", true);  // the group is poisoned already: peers wait for a reason
    const std::string message = detail::format("rank {} waited in vain in {}; {}", world_rank(),
                                               describe(print), details());
    abort(message);
    throw TimedOut(message);
  }

  [[noreturn]] void refuse_mismatch() {
    const std::span<const Fingerprint> calls = transfer_.noted();
    std::size_t other = 1;
    while (calls[other].agrees_with(calls[0])) ++other;
    const std::string message =
        describe_mismatch(calls, [&](std::size_t r) { return group_->world_rank(r); });
    group_->family()->fail(group_->world_rank(other), message, false);
    throw CollectiveMismatch(message);
  }

  std::shared_ptr<ThreadGroup> group_;
  std::size_t rank_;
  ThreadTransfer transfer_;
  std::uint64_t tickets_ = 0;  // of calls made; the host thread's
  std::mutex streamed_mutex_;
  std::condition_variable streamed_done_;
  int streamed_ = 0;  // calls in streams with a worker that have not ended
  int exceptions_;
};

static_assert(CommunicatorBackend<ThreadCommunicator>);

}  // namespace shardwise::inline v0_1
