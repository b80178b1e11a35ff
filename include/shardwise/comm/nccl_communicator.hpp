#pragma once

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../core/error.hpp"
#include "../core/format.hpp"
#include "../device/cuda_error.hpp"
#include "../device/cuda_guard.hpp"
#include "arguments.hpp"
#include "communicator.hpp"
#include "fingerprint.hpp"
#include "nccl_handle.hpp"
#include "nccl_options.hpp"
#include "nccl_staging.hpp"
#include "nccl_transfer.hpp"
#include "nccl_watchdog.hpp"
#include "rendezvous.hpp"

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
  explicit NcclCommunicator(std::shared_ptr<Rendezvous> rendezvous, const NcclOptions& options = {})
      : NcclCommunicator(rendezvous, options, nullptr) {}

  /// Adopts the host's `comm`, which must outlive this object and is not destroyed; its ranks are
  /// those of the rendezvous. See NcclOptions::abort_adopted.
  NcclCommunicator(std::shared_ptr<Rendezvous> rendezvous, ncclComm_t comm,
                   const NcclOptions& options = {})
      : NcclCommunicator(rendezvous, options, comm) {}

  NcclCommunicator(const NcclCommunicator&) = delete;
  NcclCommunicator& operator=(const NcclCommunicator&) = delete;

  /// Leaves the group: peers that wait for this rank, now or later, get PeerFailed. Waits for this
  /// rank's own calls, within NcclOptions::shutdown_timeout.
  ~NcclCommunicator() override {
    const bool unwinding = std::uncaught_exceptions() > exceptions_;
    if (unwinding) pass_on_failure();
    if (!unwinding && wait_for_own_calls()) {
      try {
        rendezvous().put(member_->left_key(static_cast<std::size_t>(member_->rank)),
                         detail::format("{}", sequence_));
      } catch (...) {
        abort("its communicator was destroyed");
      }
    }
    if (!is_peaceful()) static_cast<void>(wait_until_settled());
    watchdog_->remove(member_);
    if (!wait_for_all_calls()) {
      // Work that does not even end by an abort still uses this memory.
      static_cast<void>(staging_.release());
      static_cast<void>(new std::shared_ptr<detail::nccl::Member>(member_));
    }
    for (const auto& channel : member_->channels) channel->handle->close(options_.shutdown_timeout);
  }

  [[nodiscard]] int rank() const noexcept override { return member_->rank; }
  [[nodiscard]] int size() const noexcept override {
    return static_cast<int>(member_->world_ranks.size());
  }
  [[nodiscard]] std::string_view backend() const noexcept override { return "nccl"; }
  /// Host memory as well, for a few numbers on the null stream.
  [[nodiscard]] bool accepts(MemoryKind memory) const noexcept override {
    return memory == MemoryKind::cuda;
  }
  [[nodiscard]] std::size_t landing_bytes(const ReduceItem& item,
                                          bool scatter) const noexcept override {
    return detail::nccl::landing_bytes(item, scatter, member_->world_ranks.size(), options_.order);
  }

  void all_gather(std::span<const GatherItem> items, const CallInfo& info,
                  StreamRef stream) override {
    arguments(Operation::all_gather, info).check(items);
    issue(
        Operation::all_gather, items, info, stream, -1,
        [&](auto& transfer) { transfer.all_gather(items); },
        [&](auto&&... call) { staging_->all_gather(items, call...); });
  }
  void reduce_scatter(std::span<const ReduceItem> items, const CallInfo& info,
                      StreamRef stream) override {
    arguments(Operation::reduce_scatter, info).check(items);
    check_landing(Operation::reduce_scatter, items, info, stream);
    issue(
        Operation::reduce_scatter, items, info, stream, -1,
        [&](auto& transfer) { transfer.reduce_scatter(items); },
        [&](auto&&... call) { staging_->reduce(items, true, call...); });
  }
  void all_reduce(std::span<const ReduceItem> items, const CallInfo& info,
                  StreamRef stream) override {
    arguments(Operation::all_reduce, info).check(items);
    check_landing(Operation::all_reduce, items, info, stream);
    issue(
        Operation::all_reduce, items, info, stream, -1,
        [&](auto& transfer) { transfer.all_reduce(items); },
        [&](auto&&... call) { staging_->reduce(items, false, call...); });
  }
  void broadcast(std::span<const BroadcastItem> items, int root, const CallInfo& info,
                 StreamRef stream) override {
    arguments(Operation::broadcast, info).check(items, root);
    issue(
        Operation::broadcast, items, info, stream, root,
        [&](auto& transfer) { transfer.broadcast(items, root); },
        [&](auto&&... call) { staging_->broadcast(items, root, call...); });
  }
  void all_to_all(std::span<const ExchangeItem> items, const CallInfo& info,
                  StreamRef stream) override {
    arguments(Operation::all_to_all, info).check(items);
    issue(
        Operation::all_to_all, items, info, stream, -1,
        [&](auto& transfer) { transfer.all_to_all(items); },
        [&](auto&&... call) { staging_->all_to_all(items, call...); });
  }
  void barrier(const CallInfo& info, StreamRef stream) override {
    issue(
        Operation::barrier, std::span<const BroadcastItem>(), info, stream, -1,
        [&](auto& transfer) { transfer.barrier(); },
        [&](const Fingerprint& print, std::chrono::nanoseconds timeout, const auto& patience) {
          const std::uint64_t nothing[2] = {};
          static_cast<void>(staging_->gather(print, timeout, nothing, sizeof nothing, patience));
        });
  }

  [[nodiscard]] std::unique_ptr<Communicator> split(int color, int key,
                                                    const CallInfo& info) override {
    std::unique_ptr<Communicator> result;
    issue(
        Operation::split, std::span<const BroadcastItem>(), info, {}, -1, [](auto&) {},
        [&](const Fingerprint& print, std::chrono::nanoseconds timeout, const auto& patience) {
          result = split_off(color, key, print, timeout, patience);
        });
    return result;
  }

  void abort(std::string_view message, bool provisional = false) noexcept override {
    try {
      rendezvous().fail({member_->world_rank(), std::string(message), provisional});
    } catch (...) {
      rendezvous().fail({member_->world_rank()});  // no memory: the rank alone must do
    }
    aborting_.store(true);
    watchdog_->wake();
  }

  /// Tells NCCL of memory from ncclMemAlloc; all ranks call it, in the same order. The same answer
  /// on all. For NcclArena.
  [[nodiscard]] NcclRegistration enroll(void* data, std::size_t bytes, const CallInfo& info) {
    NcclRegistration least = NcclRegistration::window;
    issue(
        Operation::barrier, std::span<const BroadcastItem>(), info, {}, -1, [](auto&) {},
        [&](const Fingerprint& print, std::chrono::nanoseconds timeout, const auto& patience) {
          // Calls beside a registration may hang in NCCL: nobody is in one once all are here.
          std::uint64_t mine[2] = {bytes, 0};
          static_cast<void>(staging_->gather(print, timeout, mine, sizeof mine, patience));
          for (const auto& channel : member_->channels) {
            least = std::min(least, channel->handle->enroll(data, bytes, patience));
          }
          mine[0] = static_cast<std::uint64_t>(least);
          const std::byte* all = staging_->gather(print, timeout, mine, sizeof mine, patience);
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
    for (const auto& channel : member_->channels) channel->handle->withdraw(data);
  }

  void check() override {
    if (is_peaceful()) return;
    throw_failure({});
  }

 private:
  using State = detail::nccl::Member::State;

  NcclCommunicator(const std::shared_ptr<Rendezvous>& rendezvous, const NcclOptions& options,
                   ncclComm_t adopted)
      : options_(options),
        device_(current_cuda_device()),
        exceptions_(std::uncaught_exceptions()),
        member_(std::make_shared<detail::nccl::Member>()) {
    member_->id = "nccl." + options.name;
    member_->rank = rendezvous->rank();
    member_->world_ranks.resize(static_cast<std::size_t>(rendezvous->size()));
    std::iota(member_->world_ranks.begin(), member_->world_ranks.end(), 0);
    try {
      connect(*rendezvous, adopted);
      watchdog_ = std::make_shared<detail::nccl::Watchdog>(rendezvous, device_);
      begin();
    } catch (const std::exception& error) {
      rendezvous->fail({rendezvous->rank(), error.what()});
      throw;
    }
  }

  // A part of `whole`.
  NcclCommunicator(const NcclCommunicator& whole, std::shared_ptr<detail::nccl::Member> member)
      : options_(whole.options_),
        device_(whole.device_),
        exceptions_(std::uncaught_exceptions()),
        member_(std::move(member)),
        watchdog_(whole.watchdog_) {
    begin();
  }

  void connect(Rendezvous& rendezvous, ncclComm_t adopted) {
    const auto begin = std::chrono::steady_clock::now();
    const auto patience = [&] {
      if (rendezvous.failure()) {
        const RankFailure why = rendezvous.settled_failure(std::chrono::milliseconds(50));
        throw PeerFailed(detail::format("rank {} failed: {}\nwhile rank {} joined \"{}\"", why.rank,
                                        why.message, rendezvous.rank(), options_.name),
                         why.rank, why.message);
      }
      if (std::chrono::steady_clock::now() - begin < options_.startup_timeout) return;
      raise<TimedOut>(
          "rank {} of {} waited in vain for NCCL to connect \"{}\": all ranks came, but "
          "one or its network does not answer; NCCL_DEBUG=INFO says more",
          rendezvous.rank(), rendezvous.size(), options_.name);
    };
    // Who does not come is named here; inside NCCL it would be a time-out without names.
    ncclUniqueId id{};
    if (rendezvous.rank() == 0 && adopted == nullptr) {
      if (const ncclResult_t result = ncclGetUniqueId(&id); result != ncclSuccess) {
        detail::nccl::raise_result(result, "ncclGetUniqueId", 0);
      }
    }
    std::string own(sizeof id, '\0');
    std::memcpy(own.data(), &id, sizeof id);
    const auto all = rendezvous.exchange(member_->id + ".here", own, options_.startup_timeout);
    if (adopted != nullptr) {
      check_adopted(adopted);
      add_channel(detail::nccl::Handle::adopt(adopted, member_->rank));
    } else {
      std::memcpy(&id, all.front().data(), sizeof id);
      add_channel(detail::nccl::Handle::make(size(), member_->rank, id, options_, patience));
    }
    if (options_.separate_reductions) {
      add_channel(member_->channels.front()->handle->split(
          0, member_->rank, options_, options_.name + ".reductions", patience));
    }
  }

  void check_adopted(ncclComm_t adopted) const {
    int count = 0;
    int rank = 0;
    int device = 0;
    for (const ncclResult_t result :
         {ncclCommCount(adopted, &count), ncclCommUserRank(adopted, &rank),
          ncclCommCuDevice(adopted, &device)}) {
      if (result != ncclSuccess) {
        detail::nccl::raise_result(result, "ncclCommCount", member_->rank);
      }
    }
    if (count == size() && rank == member_->rank && device == device_) return;
    raise(
        "the adopted NCCL communicator is rank {} of {} on device {}, but the rendezvous says rank "
        "{} of {} and the current device is {}",
        rank, count, device, member_->rank, size(), device_);
  }

  void add_channel(std::shared_ptr<detail::nccl::Handle> handle) {
    member_->channels.push_back(
        std::make_unique<detail::nccl::Channel>(std::move(handle), device_));
  }

  void begin() {
    member_->abort_adopted = options_.abort_adopted;
    staging_ = std::make_unique<detail::nccl::Staging>(*member_->channels.front(), size());
    watchdog_->add(member_);
  }

  [[nodiscard]] Rendezvous& rendezvous() const noexcept { return watchdog_->rendezvous(); }

  [[nodiscard]] detail::nccl::Channel& channel_for(Operation operation) const noexcept {
    const bool reduces =
        operation == Operation::reduce_scatter || operation == Operation::all_reduce;
    return *(reduces ? member_->channels.back() : member_->channels.front());
  }

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

  template <class Item>
  void check_stream(Operation operation, std::span<const Item> items, const CallInfo& info,
                    StreamRef stream) const {
    if (stream.memory == MemoryKind::cuda && stream.native == nullptr) {
      raise(
          "{} \"{}\" on rank {}: the CUDA stream is null; the default stream is adopted by its "
          "name, cudaStreamLegacy or cudaStreamPerThread",
          name_of(operation), info.name, rank());
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
        name_of(operation), info.name, rank());
  }

  /// Where waiting ends: throws where the communicator has failed, or the host's time is up inside
  /// NCCL, which waits for peers there when it connects to them.
  [[nodiscard]] auto patience_of(const Fingerprint& print, std::chrono::nanoseconds timeout) {
    return [this, &print, timeout, begin = std::chrono::steady_clock::now()] {
      if (!is_peaceful()) throw_failure(print);
      if (std::chrono::steady_clock::now() - begin < timeout) return;
      member_->wants_time_out.store(true);
      watchdog_->wake();
      throw_failure(print);
    };
  }

  template <class Item, class OnDevice, class OnHost>
  void issue(Operation operation, std::span<const Item> items, const CallInfo& info,
             StreamRef stream, int root, const OnDevice& on_device, const OnHost& on_host) {
    check_stream(operation, items, info, stream);
    const Fingerprint print = detail::fingerprint_of(operation, items, info, root, sequence_ + 1);
    if (!is_peaceful()) throw_failure(print);
    try {
      const CudaDeviceGuard guard(device_);
      // The watchdog sees to time-outs of what was enqueued; this is for NCCL's own waiting.
      const auto patience = patience_of(print, info.timeout);
      if (options_.checked) compare(print, info.timeout, patience);
      ++sequence_;
      if (stream.memory == MemoryKind::host) {
        on_host(print, info.timeout, patience);
        return;
      }
      auto& channel = channel_for(operation);
      auto* const native = static_cast<cudaStream_t>(stream.native);
      auto& memory = channel.tracker.open(print, info.timeout, native, patience);
      detail::nccl::Transfer transfer(*channel.handle, size(), options_.order, native, memory,
                                      patience);
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
    } catch (const std::exception& error) {
      abort(detail::format("{}\nin {}", error.what(), describe(print)));
      throw;
    }
  }

  template <class Patience>
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

  template <class Patience>
  [[nodiscard]] std::unique_ptr<Communicator> split_off(int color, int key,
                                                        const Fingerprint& print,
                                                        std::chrono::nanoseconds timeout,
                                                        const Patience& patience) {
    struct Wish {
      int color;
      int key;
    };
    const Wish mine{color, key};
    std::vector<Wish> wishes(member_->world_ranks.size());
    std::memcpy(wishes.data(), staging_->gather(print, timeout, &mine, sizeof mine, patience),
                wishes.size() * sizeof(Wish));
    std::vector<std::size_t> members;
    std::vector<int> colors;
    for (std::size_t r = 0; r < wishes.size(); ++r) {
      if (wishes[r].color == color) members.push_back(r);
      colors.push_back(wishes[r].color);
    }
    std::stable_sort(members.begin(), members.end(),
                     [&](std::size_t a, std::size_t b) { return wishes[a].key < wishes[b].key; });
    std::sort(colors.begin(), colors.end());
    colors.erase(std::unique(colors.begin(), colors.end()), colors.end());
    // NCCL's colors are not negative.
    const auto index =
        static_cast<int>(std::lower_bound(colors.begin(), colors.end(), color) - colors.begin());
    auto part = std::make_shared<detail::nccl::Member>();
    part->id = detail::format("{}.{}.{}", member_->id, sequence_, index);
    for (std::size_t i = 0; i < members.size(); ++i) {
      part->world_ranks.push_back(member_->world_ranks[members[i]]);
      if (members[i] == static_cast<std::size_t>(member_->rank)) part->rank = static_cast<int>(i);
    }
    for (const auto& channel : member_->channels) {
      part->channels.push_back(std::make_unique<detail::nccl::Channel>(
          channel->handle->split(index, part->rank, options_, part->id, patience), device_));
    }
    return std::unique_ptr<Communicator>(new NcclCommunicator(*this, std::move(part)));
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
    detail::nccl::Backoff pause;
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
      failure = rendezvous().failure().value_or(RankFailure{rank(), "its watchdog hangs in NCCL"});
    }
    if (call.empty()) call = print ? describe(*print) : "no call";
    if (failure.mismatch) throw CollectiveMismatch(failure.message);
    if (member_->timed_out) throw TimedOut(failure.message);
    const int own = member_->world_rank();
    const std::string who = failure.rank == own ? detail::format("this rank ({})", own)
                                                : detail::format("rank {}", failure.rank);
    const std::string what =
        member_->left ? failure.message : detail::format("failed: {}", failure.message);
    throw PeerFailed(detail::format("{} {}\nwhile rank {} was in {}", who, what, own, call),
                     failure.rank, failure.message);
  }

  // False where they did not end, not even by the abort of a failure.
  [[nodiscard]] bool wait_for_all_calls() noexcept {
    const auto begin = std::chrono::steady_clock::now();
    try {
      for (const auto& channel : member_->channels) {
        channel->tracker.wait_for_all([&] {
          if (std::chrono::steady_clock::now() - begin < options_.shutdown_timeout) return;
          raise<TimedOut>("calls that were aborted did not end");
        });
      }
      return true;
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
  std::shared_ptr<detail::nccl::Member> member_;
  std::shared_ptr<detail::nccl::Watchdog> watchdog_;
  std::unique_ptr<detail::nccl::Staging> staging_;  // goes before the channels
  std::uint64_t sequence_ = 0;                      // of the last call
  std::atomic<bool> aborting_{false};
};

static_assert(CommunicatorBackend<NcclCommunicator>);

}  // namespace shardwise::inline v0_1
