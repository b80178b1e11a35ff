#pragma once

#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <iterator>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "../core/error.hpp"
#include "communicator.hpp"
#include "fingerprint.hpp"
#include "host_communicator.hpp"
#include "launch.hpp"
#include "mpi_family.hpp"
#include "mpi_handle.hpp"
#include "mpi_landing.hpp"
#include "mpi_options.hpp"
#include "mpi_patience.hpp"
#include "mpi_session.hpp"
#include "mpi_shared_block.hpp"
#include "mpi_shared_memory.hpp"
#include "mpi_transfer.hpp"
#include "mpi_turns.hpp"
#include "split.hpp"

namespace shardwise::inline v0_1 {

/// One rank of a group of processes that are connected by MPI; host memory.
///
/// Sums are taken in the canonical order, with the bits of every other backend, or as MPI does.
/// Collectives on a stream with a worker are carried out by that worker, beside the host's compute.
/// Whoever waits polls MPI, sleeps between, and ends where the time is up or a rank has failed;
/// nothing blocks inside MPI but split, which all ranks enter together. Goes before its session.
///
/// abort() may be called from any thread. The destructor waits for this rank's own calls. After a
/// failure MPI is not called any more: messages that could not be taken back stay with it.
class MpiCommunicator final : public HostCommunicator<MpiCommunicator> {
 public:
  /// Of all ranks of MPI_COMM_WORLD.
  explicit MpiCommunicator(const MpiSession& session, const MpiOptions& options = {})
      : MpiCommunicator(session, MPI_COMM_WORLD, options) {}

  /// Of the ranks of the host's `comm`, which all call this. BackendError, TimedOut.
  MpiCommunicator(const MpiSession& session, MPI_Comm comm, const MpiOptions& options = {})
      : options_(options),
        family_(std::make_shared<detail::mpi::Family>(session.runtime())),
        handle_(duplicate(session, comm, options)) {
    check(options);
    for (int r = 0; r < size(); ++r) world_ranks_.push_back(r);
    transfer_ = make_transfer();
    start();
  }

  MpiCommunicator(const MpiCommunicator&) = delete;
  MpiCommunicator& operator=(const MpiCommunicator&) = delete;

  ~MpiCommunicator() override {
    if (end_calls()) family_->leave(group_);
  }

  [[nodiscard]] int rank() const noexcept override { return handle_->rank(); }
  [[nodiscard]] int size() const noexcept override { return handle_->size(); }
  [[nodiscard]] std::string_view backend() const noexcept override { return "mpi"; }
  [[nodiscard]] std::size_t landing_bytes(const ReduceItem& item,
                                          bool scatter) const noexcept override {
    return landing_bytes_among(size(), item, scatter);
  }
  [[nodiscard]] std::size_t landing_bytes_among(int ranks, const ReduceItem& item,
                                                bool scatter) const noexcept override {
    return detail::mpi::landing_bytes(item, scatter, static_cast<std::size_t>(ranks), options_);
  }

  /// Of ranks that may map one another's memory: on one machine, not in containers of their own.
  /// UsageError, on all ranks, where they do not ask for the same size.
  [[nodiscard]] std::unique_ptr<SharedBlock> share_block(std::size_t bytes,
                                                         const CallInfo& info) override {
    std::unique_ptr<SharedBlock> result;
    std::string differ;
    exchange_in_call(info, [&](const auto& exchange) {
      const std::vector<std::string> sizes = exchange(std::to_string(bytes));
      const auto odd = std::adjacent_find(sizes.begin(), sizes.end(), std::not_equal_to<>());
      if (odd == sizes.end()) {
        result = MpiSharedBlock::make(rank(), bytes, machine_name(), exchange);
      } else {
        const std::ptrdiff_t first = odd - sizes.begin();
        differ = detail::format("rank {} asks for {} bytes, rank {} for {}", first, odd[0],
                                first + 1, odd[1]);
      }
    });
    if (!differ.empty()) {
      raise("'{}': all ranks share one memory, but {}: ask for the same size on all of them",
            info.name, differ);
    }
    return result;
  }

  [[nodiscard]] std::unique_ptr<Communicator> split(int color, int key,
                                                    const CallInfo& info) override {
    const Call call = next_call(Operation::split, info);
    std::unique_ptr<Communicator> result;
    carry_out(call, std::span<const BroadcastItem>(),
              [&](const auto& wait) { result = split_off(color, key, wait); });
    return result;
  }

  void abort(std::string_view message, bool provisional = false) noexcept override {
    family_->fail(message, provisional);
  }

 private:
  friend class HostCommunicator<MpiCommunicator>;
  friend class MpiArena;
  friend class MpiRendezvous;

  using Outcome = detail::mpi::Patience::Outcome;
  using Batch = detail::mpi::Batch;

  // A part of `whole`.
  MpiCommunicator(const MpiCommunicator& whole, std::shared_ptr<detail::mpi::Handle> handle,
                  std::vector<int> world_ranks, std::uint64_t group)
      : options_(whole.options_),
        family_(whole.family_),
        handle_(std::move(handle)),
        world_ranks_(std::move(world_ranks)),
        group_(group),
        spins_(whole.spins_),
        one_machine_(whole.one_machine_) {
    transfer_ = make_transfer();
    if (one_machine_) transfer_->stay_on_one_machine();
  }

  static void check(const MpiOptions& options) {
    constexpr std::size_t most = std::size_t{1} << 30;
    if (options.largest_message >= 1 && options.largest_message <= most) return;
    raise("MpiOptions::largest_message is {}, expected 1 to {}", options.largest_message, most);
  }

  [[nodiscard]] static std::shared_ptr<detail::mpi::Handle> duplicate(const MpiSession& session,
                                                                      MPI_Comm comm,
                                                                      const MpiOptions& options) {
    using detail::mpi::Handle;
    if (!options.duplicate) return std::make_shared<Handle>(session.runtime(), comm);
    return std::make_shared<Handle>(session.runtime(), comm, options.startup_timeout);
  }

  [[nodiscard]] std::unique_ptr<detail::mpi::Transfer> make_transfer() {
    return std::make_unique<detail::mpi::Transfer>(*handle_, options_);
  }

  // The ranks connect, and tell one another their machines' names: how many share this one?
  void start() {
    exchange_in_call({"start", options_.startup_timeout}, [&](const auto& exchange) {
      const std::string machine = machine_name();
      const std::vector<std::string> machines = exchange(machine);
      const auto local = std::count(machines.begin(), machines.end(), machine);
      spins_ = options_.spins >= 0                            ? options_.spins
               : local <= std::thread::hardware_concurrency() ? 2000
                                                              : 0;
      one_machine_ = local == std::ssize(machines);
      if (one_machine_) transfer_->stay_on_one_machine();
      family_->connect(rank(), size(), exchange, options_.failures);
    });
  }

  // For an MpiArena; all ranks call it.
  [[nodiscard]] std::shared_ptr<detail::mpi::SharedMemory> share(std::size_t bytes,
                                                                 const CallInfo& info) {
    std::shared_ptr<detail::mpi::SharedMemory> result;
    exchange_in_call(info, [&](const auto& exchange) {
      result = std::make_shared<detail::mpi::SharedMemory>(static_cast<std::size_t>(rank()), bytes,
                                                           machine_name(), exchange);
      transfer_->use(result);
    });
    return result;
  }
  void unshare() noexcept { transfer_->use(nullptr); }

  // Runs body(exchange) as one call of all ranks; exchange(text) gathers a text of each.
  template <class Body>
  void exchange_in_call(const CallInfo& info, const Body& body) {
    const Call call = next_call(Operation::split, info);
    carry_out(call, std::span<const BroadcastItem>(), [&](const auto& wait) {
      body([&](const std::string& mine) { return exchange_texts(mine, wait); });
    });
  }

  template <class Wait>
  [[nodiscard]] std::vector<std::string> exchange_texts(const std::string& mine, const Wait& wait) {
    const std::uint64_t length = mine.size();
    std::vector<std::uint64_t> lengths(static_cast<std::size_t>(size()));
    const std::vector<std::byte> all = transfer_->collect(&length, sizeof length, wait);
    std::memcpy(lengths.data(), all.data(), all.size());
    const std::size_t longest = *std::max_element(lengths.begin(), lengths.end());
    std::string padded = mine;
    padded.resize(longest);
    const std::vector<std::byte> texts = transfer_->collect(padded.data(), longest, wait);
    std::vector<std::string> result;
    for (std::size_t r = 0; r < lengths.size(); ++r) {
      const auto* text = reinterpret_cast<const char*>(texts.data() + r * longest);
      result.emplace_back(text, lengths[r]);
    }
    return result;
  }

  [[nodiscard]] int world_rank() const noexcept {
    return world_ranks_[static_cast<std::size_t>(handle_->rank())];
  }

  template <class Item>
  void execute(const Call& call, std::span<const Item> items) {
    carry_out(call, items,
              [&](const auto& wait) { transfer_->move(call.operation, call.root, items, wait); });
  }

  // Runs move(wait) when it is this call's turn.
  template <class Item, class Move>
  void carry_out(const Call& call, std::span<const Item> items, const Move& move) {
    const Fingerprint print =
        detail::fingerprint_of(call.operation, items, call.info, call.root, call.ticket + 1);
    const auto failed = [&] { return family_->has_failed(); };
    switch (turns_.take(call.ticket, call.info.timeout, failed)) {
      case Outcome::failed:
        family_->fail_with_peer(print);
      case Outcome::timed_out:
        give_up_waiting_for_turn(print);
      case Outcome::done:
        break;
    }
    family_->entering(print, group_);
    transfer_->begin(call.operation, call.ticket);
    const auto wait = [&]<class What>(What&& what) {
      const auto done = [&] {
        if constexpr (std::same_as<std::remove_cvref_t<What>, Batch>) {
          const auto lock = handle_->lock();
          return what.test();
        } else {
          return what();
        }
      };
      switch (detail::mpi::Patience(spins_).wait(call.info.timeout, done, failed)) {
        case Outcome::failed:
          family_->fail_with_peer(print);
        case Outcome::timed_out:
          family_->time_out(print, world_rank(), world_ranks_, group_);
        case Outcome::done:
          break;
      }
    };
    try {
      move(wait);
    } catch (const BackendError& error) {
      transfer_->cancel();
      const std::string message =
          detail::format("{}\nin {} on rank {}", error.what(), describe(print), world_rank());
      abort(message);
      throw BackendError(message);
    } catch (const std::exception& error) {
      transfer_->cancel();
      abort(error.what());
      throw;
    }
    family_->leaving(group_);
    turns_.end();
  }

  template <class Wait>
  [[nodiscard]] std::unique_ptr<Communicator> split_off(int color, int key, const Wait& wait) {
    const SplitItem mine{color, key};
    std::vector<SplitItem> wishes(static_cast<std::size_t>(size()));
    const std::vector<std::byte> all = transfer_->collect(&mine, sizeof mine, wait);
    std::memcpy(wishes.data(), all.data(), all.size());
    const int index = detail::index_of_color(color, wishes);
    std::vector<int> part;
    for (const std::size_t member : detail::members_of(color, wishes))
      part.push_back(world_ranks_[member]);
    const auto group =
        detail::mix(detail::mix(group_ + 1, tickets()), static_cast<std::uint64_t>(index));
    family_->joining(group, group_, tickets());
    return std::unique_ptr<Communicator>(
        new MpiCommunicator(*this, std::make_shared<detail::mpi::Handle>(*handle_, index, key),
                            std::move(part), group));
  }

  [[noreturn]] void give_up_waiting_for_turn(const Fingerprint& print) {
    const std::string message = detail::format("rank {} waited in vain in {}; {}", world_rank(),
                                               describe(print), stuck_stream);
    abort(message);
    throw TimedOut(message);
  }

  MpiOptions options_;
  std::shared_ptr<detail::mpi::Family> family_;
  std::shared_ptr<detail::mpi::Handle> handle_;
  std::unique_ptr<detail::mpi::Transfer> transfer_;
  std::vector<int> world_ranks_;  // what the members are called in messages
  std::uint64_t group_ = 0;       // tells it from others of the family
  detail::mpi::Turns turns_;
  int spins_ = 0;
  bool one_machine_ = false;  // all ranks are on this one
};

static_assert(CommunicatorBackend<MpiCommunicator>);

}  // namespace shardwise::inline v0_1
