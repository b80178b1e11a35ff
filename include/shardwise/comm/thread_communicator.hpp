#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../core/error.hpp"
#include "communicator.hpp"
#include "fingerprint.hpp"
#include "host_communicator.hpp"
#include "peer_failure.hpp"
#include "thread_family.hpp"
#include "thread_group.hpp"
#include "thread_shared_block.hpp"
#include "thread_transfer.hpp"

namespace shardwise::inline v0_1 {

/// One rank of a group of threads; made by run_ranks, make_thread_group or split. Peers read one
/// another's buffers directly: one copy at most. Every call's fingerprint is compared.
///
/// abort() may be called from any thread. Destroying the communicator leaves the group: peers that
/// wait, or come later, get PeerFailed. The destructor waits for this rank's own collectives on
/// streams with a worker, so buffers that they use must outlive it or their stream. Ranks in
/// messages are those of the first group, before any split.
class ThreadCommunicator final : public HostCommunicator<ThreadCommunicator> {
 public:
  ThreadCommunicator(std::shared_ptr<ThreadGroup> group, std::size_t rank)
      : group_(std::move(group)), rank_(rank), transfer_(*group_, rank) {}

  ~ThreadCommunicator() override {
    if (end_calls()) group_->family()->leave(*group_, world_rank());
  }

  [[nodiscard]] int rank() const noexcept override { return static_cast<int>(rank_); }
  [[nodiscard]] int size() const noexcept override { return static_cast<int>(group_->size()); }
  [[nodiscard]] std::string_view backend() const noexcept override { return "thread"; }
  [[nodiscard]] bool shares_addresses() const noexcept override { return true; }
  [[nodiscard]] std::size_t landing_bytes(const ReduceItem&, bool) const noexcept override {
    return 0;
  }

  [[nodiscard]] std::unique_ptr<SharedBlock> share_block(std::size_t bytes,
                                                         const CallInfo& info) override {
    return std::make_unique<ThreadSharedBlock>(*this, bytes, info);
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

 private:
  friend class HostCommunicator<ThreadCommunicator>;

  [[nodiscard]] int world_rank() const noexcept { return group_->world_rank(rank_); }

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
        time_out(print(), [] { return stuck_stream; });
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

  [[noreturn]] void fail_with_peer(const Fingerprint& print) {
    const ThreadFailure failure = group_->family()->reason(*group_, world_rank());
    const std::string what = failure.left ? std::string(detail::left_the_group)
                                          : detail::format("failed: {}", failure.message);
    throw detail::peer_failed(failure.rank, what, world_rank(), describe(print),
                              failure.left ? what : failure.message);
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
};

static_assert(CommunicatorBackend<ThreadCommunicator>);

}  // namespace shardwise::inline v0_1
