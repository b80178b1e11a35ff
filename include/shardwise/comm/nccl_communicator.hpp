#pragma once

#include <nccl.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <numeric>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "../core/error.hpp"
#include "../core/format.hpp"
#include "../device/cuda_guard.hpp"
#include "arguments.hpp"
#include "communicator.hpp"
#include "fingerprint.hpp"
#include "nccl_connect.hpp"
#include "nccl_endpoint.hpp"
#include "nccl_options.hpp"
#include "nccl_shrink.hpp"
#include "nccl_transfer.hpp"
#include "nccl_watchdog.hpp"
#include "rendezvous.hpp"
#include "split.hpp"

namespace shardwise::inline v0_1 {

/// One rank of a group whose ranks have a CUDA device each and are connected by NCCL.
///
/// Calls come with a CUDA stream of the rank's device, which is not the default stream, and
/// pointers to memory of that device; or on the null stream with a few numbers in host memory. Sums
/// are taken in the canonical order, with the bits of every other backend, or as NCCL does.
///
/// A watchdog thread looks after the calls: where a rank fails, leaves or does not come in time,
/// every rank's work on its streams ends and every later call, and check(), throws PeerFailed (or
/// TimedOut, on the rank whose time was up). Results of calls that did not end by themselves are
/// undefined. abort() may be called from any thread.
class NcclCommunicator final : public Communicator {
 public:
  /// Made by all ranks of the rendezvous, each with its own device as the host thread's current
  /// one. ConfigError, BackendError, PeerFailed, TimedOut.
  explicit NcclCommunicator(const std::shared_ptr<Rendezvous>& rendezvous,
                            const NcclOptions& options = {})
      : NcclCommunicator(rendezvous, options, nullptr) {}

  /// Adopts the host's `comm`, which must outlive this object and is not destroyed; its ranks are
  /// those of the rendezvous. See NcclOptions::abort_adopted.
  NcclCommunicator(const std::shared_ptr<Rendezvous>& rendezvous, ncclComm_t comm,
                   const NcclOptions& options = {})
      : NcclCommunicator(rendezvous, options, comm) {}

  NcclCommunicator(const NcclCommunicator&) = delete;
  NcclCommunicator& operator=(const NcclCommunicator&) = delete;

  /// Leaves the group: peers that wait for this rank, now or later, get PeerFailed. Waits for this
  /// rank's own calls, within NcclOptions::shutdown_timeout.
  ~NcclCommunicator() override = default;

  [[nodiscard]] int rank() const noexcept override { return end_->member().rank; }
  [[nodiscard]] int size() const noexcept override { return end_->size(); }
  [[nodiscard]] std::string_view backend() const noexcept override { return "nccl"; }
  /// Host memory as well, for a few numbers on the null stream.
  [[nodiscard]] bool accepts(MemoryKind memory) const noexcept override {
    return memory == MemoryKind::cuda;
  }
  [[nodiscard]] std::size_t landing_bytes(const ReduceItem& item,
                                          bool scatter) const noexcept override {
    return landing_bytes_among(size(), item, scatter);
  }
  [[nodiscard]] std::size_t landing_bytes_among(int ranks, const ReduceItem& item,
                                                bool scatter) const noexcept override {
    return detail::nccl::landing_bytes(item, scatter, static_cast<std::size_t>(ranks),
                                       end_->options().order);
  }

  void all_gather(std::span<const GatherItem> items, const CallInfo& info,
                  StreamRef stream) override {
    arguments(Operation::all_gather, info).check(items);
    end_->issue(
        Operation::all_gather, items, info, stream, -1,
        [&](auto& transfer) { transfer.all_gather(items); },
        [&](auto&&... call) { end_->staging().all_gather(items, call...); });
  }
  void reduce_scatter(std::span<const ReduceItem> items, const CallInfo& info,
                      StreamRef stream) override {
    arguments(Operation::reduce_scatter, info).check(items);
    check_landing(Operation::reduce_scatter, items, info, stream);
    end_->issue(
        Operation::reduce_scatter, items, info, stream, -1,
        [&](auto& transfer) { transfer.reduce_scatter(items); },
        [&](auto&&... call) { end_->staging().reduce(items, true, call...); });
  }
  void all_reduce(std::span<const ReduceItem> items, const CallInfo& info,
                  StreamRef stream) override {
    arguments(Operation::all_reduce, info).check(items);
    check_landing(Operation::all_reduce, items, info, stream);
    end_->issue(
        Operation::all_reduce, items, info, stream, -1,
        [&](auto& transfer) { transfer.all_reduce(items); },
        [&](auto&&... call) { end_->staging().reduce(items, false, call...); });
  }
  void broadcast(std::span<const BroadcastItem> items, int root, const CallInfo& info,
                 StreamRef stream) override {
    arguments(Operation::broadcast, info).check(items, root);
    end_->issue(
        Operation::broadcast, items, info, stream, root,
        [&](auto& transfer) { transfer.broadcast(items, root); },
        [&](auto&&... call) { end_->staging().broadcast(items, root, call...); });
  }
  void all_to_all(std::span<const ExchangeItem> items, const CallInfo& info,
                  StreamRef stream) override {
    arguments(Operation::all_to_all, info).check(items);
    end_->issue(
        Operation::all_to_all, items, info, stream, -1,
        [&](auto& transfer) { transfer.all_to_all(items); },
        [&](auto&&... call) { end_->staging().all_to_all(items, call...); });
  }
  void barrier(const CallInfo& info, StreamRef stream) override {
    end_->issue(
        Operation::barrier, std::span<const BroadcastItem>(), info, stream, -1,
        [&](auto& transfer) { transfer.barrier(); },
        [&](const Fingerprint& print, std::chrono::nanoseconds timeout, const auto& patience) {
          const std::uint64_t nothing[2] = {};
          static_cast<void>(
              end_->staging().gather(print, timeout, nothing, sizeof nothing, patience));
        });
  }

  [[nodiscard]] std::unique_ptr<Communicator> split(int color, int key,
                                                    const CallInfo& info) override {
    std::unique_ptr<Communicator> result;
    end_->issue(
        Operation::split, std::span<const BroadcastItem>(), info, {}, -1, [](auto&) {},
        [&](const Fingerprint& print, std::chrono::nanoseconds timeout, const auto& patience) {
          result = split_off(color, key, print, timeout, patience);
        });
    return result;
  }

  /// After a failure, for a run that goes on without the `lost` ranks (of this communicator; see
  /// PeerFailed::rank()): all others call it with the same list, and with a rendezvous of their own
  /// (RemainingRendezvous), which numbers them anew in their order. NCCL does not connect anew.
  /// What is in this object's place is a group of its own; this one may then be destroyed.
  /// UsageError where it has not failed or the ranks do not agree; PeerFailed, TimedOut,
  /// BackendError as where a communicator is made. A Context that used this one is made anew.
  [[nodiscard]] std::unique_ptr<NcclCommunicator> shrink(
      const std::shared_ptr<Rendezvous>& rendezvous, std::vector<int> lost) {
    std::sort(lost.begin(), lost.end());
    const auto& options = end_->options();
    const int device = end_->device();
    const CudaDeviceGuard guard(device);
    return std::unique_ptr<NcclCommunicator>(
        new NcclCommunicator(join(rendezvous, options, device, [&](const std::string& id) {
          return detail::nccl::shrink(end_->member(), lost, *rendezvous, id, options, device);
        })));
  }

  void abort(std::string_view message, bool provisional = false) noexcept override {
    end_->abort(message, provisional);
  }

  void check() override { end_->check(); }

  /// Tells NCCL of memory from ncclMemAlloc; all ranks call it, in the same order. The same answer
  /// on all. For NcclArena.
  [[nodiscard]] NcclRegistration enroll(void* data, std::size_t bytes, const CallInfo& info) {
    NcclRegistration least = NcclRegistration::window;
    end_->issue(
        Operation::barrier, std::span<const BroadcastItem>(), info, {}, -1, [](auto&) {},
        [&](const Fingerprint& print, std::chrono::nanoseconds timeout, const auto& patience) {
          // Calls beside a registration may hang in NCCL: nobody is in one once all are here.
          std::uint64_t mine[2] = {bytes, 0};
          static_cast<void>(end_->staging().gather(print, timeout, mine, sizeof mine, patience));
          for (const auto& channel : end_->member().channels) {
            least = std::min(least, channel->handle->enroll(data, bytes, patience));
          }
          mine[0] = static_cast<std::uint64_t>(least);
          const std::byte* all =
              end_->staging().gather(print, timeout, mine, sizeof mine, patience);
          for (int r = 0; r < size(); ++r, all += sizeof mine) {
            std::uint64_t theirs = 0;
            std::memcpy(&theirs, all, sizeof theirs);
            least = std::min(least, static_cast<NcclRegistration>(theirs));
          }
        });
    if (least == NcclRegistration::none) withdraw(data);  // on some ranks alone it is undefined
    return least;
  }
  /// NCCL forgets memory that it was told of.
  void withdraw(const void* data) noexcept {
    for (const auto& channel : end_->member().channels) channel->handle->withdraw(data);
  }

 private:
  using Member = detail::nccl::Member;

  NcclCommunicator(const std::shared_ptr<Rendezvous>& rendezvous, const NcclOptions& options,
                   ncclComm_t adopted) {
    const int device = current_cuda_device();
    end_ = join(rendezvous, options, device, [&](const std::string& id) {
      if (options.shrinkable && !detail::nccl::can_revoke()) {
        int loaded = 0;
        static_cast<void>(ncclGetVersion(&loaded));
        raise<ConfigError>(
            "NcclOptions::shrinkable needs NCCL 2.28.7 or later; this program was compiled with "
            "the header of {} and found the library of {}",
            NCCL_VERSION_CODE, loaded);
      }
      return detail::nccl::connect(*rendezvous, id, options, device, adopted);
    });
  }

  // channels_of(id) makes them with all ranks of the rendezvous.
  template <class ChannelsOf>
  [[nodiscard]] static std::unique_ptr<detail::nccl::Endpoint> join(
      const std::shared_ptr<Rendezvous>& rendezvous, const NcclOptions& options, int device,
      const ChannelsOf& channels_of) {
    const auto member = std::make_shared<Member>();
    member->id = "nccl." + options.name;
    member->rank = rendezvous->rank();
    member->world_ranks.resize(static_cast<std::size_t>(rendezvous->size()));
    std::iota(member->world_ranks.begin(), member->world_ranks.end(), 0);
    try {
      member->channels = channels_of(member->id);
      return std::make_unique<detail::nccl::Endpoint>(
          options, device, member, std::make_shared<detail::nccl::Watchdog>(rendezvous, device));
    } catch (const std::exception& error) {
      rendezvous->fail({rendezvous->rank(), error.what()});
      throw;
    }
  }

  // A part of another one.
  explicit NcclCommunicator(std::unique_ptr<detail::nccl::Endpoint> end) : end_(std::move(end)) {}

  [[nodiscard]] Arguments arguments(Operation operation, const CallInfo& info) const noexcept {
    return Arguments(operation, info.name, rank(), size());
  }

  void check_landing(Operation operation, std::span<const ReduceItem> items, const CallInfo& info,
                     StreamRef stream) const {
    if (stream.memory == MemoryKind::host) return;
    for (const ReduceItem& item : items) {
      const std::size_t bytes = landing_bytes(item, operation == Operation::reduce_scatter);
      if (bytes == 0 || item.landing != nullptr) continue;
      raise("{} \"{}\" on rank {}: the landing buffer is null, expected {} bytes (landing_bytes())",
            name_of(operation), info.name, rank(), bytes);
    }
  }

  template <class Patience>
  [[nodiscard]] std::unique_ptr<Communicator> split_off(int color, int key,
                                                        const Fingerprint& print,
                                                        std::chrono::nanoseconds timeout,
                                                        const Patience& patience) {
    const SplitItem mine{color, key};
    const Member& whole = end_->member();
    std::vector<SplitItem> wishes(whole.world_ranks.size());
    std::memcpy(wishes.data(), end_->staging().gather(print, timeout, &mine, sizeof mine, patience),
                wishes.size() * sizeof(SplitItem));
    const std::vector<std::size_t> members = detail::members_of(color, wishes);
    const int index = detail::index_of_color(color, wishes);
    const auto part = std::make_shared<Member>();
    part->id = detail::format("{}.{}.{}", whole.id, end_->sequence(), index);
    for (std::size_t i = 0; i < members.size(); ++i) {
      part->world_ranks.push_back(whole.world_ranks[members[i]]);
      if (members[i] == static_cast<std::size_t>(whole.rank)) part->rank = static_cast<int>(i);
    }
    for (const auto& channel : whole.channels) {
      part->channels.push_back(std::make_unique<detail::nccl::Channel>(
          channel->handle->split(index, part->rank, end_->options(), part->id, patience),
          end_->device()));
    }
    return std::unique_ptr<Communicator>(
        new NcclCommunicator(std::make_unique<detail::nccl::Endpoint>(
            end_->options(), end_->device(), part, end_->watchdog())));
  }

  std::unique_ptr<detail::nccl::Endpoint> end_;
};

static_assert(CommunicatorBackend<NcclCommunicator>);

}  // namespace shardwise::inline v0_1
