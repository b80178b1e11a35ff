#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "../core/error.hpp"
#include "../device/host_caches.hpp"
#include "fingerprint.hpp"
#include "thread_family.hpp"
#include "thread_wait.hpp"

namespace shardwise::inline v0_1 {

/// Places inside a collective, for tests that inject delays.
enum class ThreadPoint : std::uint8_t { published, arrived, giving_up, committed, moved, leaving };

/// How a group of thread ranks behaves.
struct ThreadOptions {
  /// At most so many looks at a condition before a waiting rank yields, then sleeps; -1: some where
  /// every rank has a core, none otherwise.
  int spins = -1;
  /// Results go past the caches where the buffers of all ranks together are larger than this; 0:
  /// than the last cache.
  std::size_t cache_bytes = 0;
  /// In an all_gather each rank fills its own buffer, or a part of all buffers where one rank reads
  /// and writes more than this; 0: than the second cache.
  std::size_t core_cache_bytes = 0;
  /// Where not null, called at each ThreadPoint. For tests: it may delay, nothing else.
  void (*at_point)(void* context, int rank, ThreadPoint point) noexcept = nullptr;
  void* context = nullptr;
};

/// What the ranks of one thread communicator share.
///
/// One word {poisoned, generation, arrived} decides each collective: a rank that arrives counts
/// itself, the last one starts the next generation, which commits; poison acts on a generation that
/// is not committed, so a collective runs on all ranks or on none. Between commit and the exit
/// barrier a rank runs bounded code only (no allocation, no exception, no look at the poison), so
/// the exit barrier ignores poison and always completes, and nobody's buffers go while they are
/// read. A rank that saw poison before commit has been read by nobody. tests/model/barrier.pml is a
/// model of this, checked in every interleaving.
class ThreadGroup final : public ThreadFamily::Member {
 public:
  enum class Arrival : std::uint8_t { committed, poisoned, timed_out };

  /// What one rank shows its peers from its arrival to its exit, and what it alone keeps. Peers
  /// read `prints` and `items` after commit, or when `stamp` says that they belong to this
  /// generation. The prints of the generations before it stay readable meanwhile: whoever waits in
  /// vain says what ranks that are missing did last.
  struct alignas(128) Slot {
    static constexpr std::uint64_t kept = 4;

    [[nodiscard]] Fingerprint& print(std::uint64_t of) noexcept { return prints[of % kept]; }
    [[nodiscard]] const Fingerprint& print(std::uint64_t of) const noexcept {
      return prints[of % kept];
    }

    std::array<Fingerprint, kept> prints;  // of the last generations
    const void* items = nullptr;
    std::atomic<std::uint64_t> stamp{0};         // generation + 1
    std::atomic<std::int64_t> waiting_since{0};  // Clock ticks; 0: not waiting
    std::uint64_t generation = 0;                // the rank's own
    WaitPoint::Patience patience;                // the rank's own
    std::uint64_t exits = 0;                     // the rank's own: value of exits_ it waits for
    alignas(128) std::atomic<std::uint64_t> turn{0};  // the ticket that may run
    WaitPoint turn_changed;
  };

  /// `world_ranks`: what the members are called in messages.
  ThreadGroup(std::shared_ptr<ThreadFamily> family, std::vector<int> world_ranks,
              const ThreadOptions& options)
      : family_(std::move(family)),
        world_ranks_(std::move(world_ranks)),
        slots_(std::make_unique<Slot[]>(world_ranks_.size())),
        options_(options) {
    if (world_ranks_.empty() || world_ranks_.size() > arrived_mask) {
      raise("a group of thread ranks has 1 to {} members, not {}", arrived_mask,
            world_ranks_.size());
    }
    if (options_.spins < 0) {
      options_.spins = world_ranks_.size() <= std::thread::hardware_concurrency() ? 1000 : 0;
    }
    if (options_.cache_bytes == 0 || options_.core_cache_bytes == 0) {
      const detail::HostCaches caches = detail::HostCaches::of_this_machine();
      if (options_.cache_bytes == 0) options_.cache_bytes = caches.last;
      if (options_.core_cache_bytes == 0) options_.core_cache_bytes = caches.second;
    }
    for (std::size_t r = 0; r < size(); ++r) {
      slots_[r].patience = WaitPoint::Patience(options_.spins);
    }
    family_->add(*this);
  }
  ThreadGroup(const ThreadGroup&) = delete;
  ThreadGroup& operator=(const ThreadGroup&) = delete;
  ~ThreadGroup() override { family_->remove(*this); }

  [[nodiscard]] std::size_t size() const noexcept { return world_ranks_.size(); }
  [[nodiscard]] int world_rank(std::size_t rank) const noexcept { return world_ranks_[rank]; }
  [[nodiscard]] Slot& slot(std::size_t rank) noexcept { return slots_[rank]; }
  [[nodiscard]] const std::shared_ptr<ThreadFamily>& family() const noexcept { return family_; }
  [[nodiscard]] const ThreadOptions& options() const noexcept { return options_; }
  [[nodiscard]] bool poisoned() const noexcept { return (word_.load() & poison_bit) != 0; }

  void poison() noexcept override {
    word_.fetch_or(poison_bit);
    arrivals_.notify();
    for (std::size_t r = 0; r < size(); ++r) slots_[r].turn_changed.notify();
  }

  /// Waits until `ticket` may run on this rank: calls run in the order in which they were made.
  [[nodiscard]] Arrival take_turn(std::size_t rank, std::uint64_t ticket,
                                  std::chrono::nanoseconds timeout) {
    Slot& slot = slots_[rank];
    const auto ready = [&] { return slot.turn.load() == ticket || poisoned(); };
    if (!ready()) {
      const auto deadline = WaitPoint::after(WaitPoint::Clock::now(), timeout);
      if (!slot.turn_changed.wait_until(deadline, ready)) return Arrival::timed_out;
    }
    return poisoned() ? Arrival::poisoned : Arrival::committed;
  }

  void end_turn(std::size_t rank) noexcept {
    slots_[rank].turn.fetch_add(1);
    slots_[rank].turn_changed.notify();
  }

  /// Shows the slot, which the caller has filled, and waits for all ranks. Where the time is up,
  /// measured from the first arrival, poisons the group: the caller tells the family why.
  [[nodiscard]] Arrival arrive(std::size_t rank, std::chrono::nanoseconds timeout) {
    Slot& slot = slots_[rank];
    const std::uint64_t generation = slot.generation;
    slot.waiting_since.store(0, std::memory_order_relaxed);
    slot.stamp.store(generation + 1, std::memory_order_release);
    point(rank, ThreadPoint::published);
    std::uint64_t word = word_.load();
    bool last = false;
    do {
      if ((word & poison_bit) != 0) return Arrival::poisoned;
      last = (word & arrived_mask) + 1 == size();
    } while (
        !word_.compare_exchange_weak(word, last ? (generation + 1) << generation_shift : word + 1));
    point(rank, ThreadPoint::arrived);
    if (last) {
      arrivals_.notify();
    } else {
      const auto settled = [&] {
        const std::uint64_t now = word_.load();
        return (now & poison_bit) != 0 || generation_of(now) != generation;
      };
      if (!WaitPoint::look(slot.patience, settled)) {
        slot.waiting_since.store(WaitPoint::Clock::now().time_since_epoch().count(),
                                 std::memory_order_relaxed);
        if (!arrivals_.wait_until(deadline(generation, timeout), settled)) {
          point(rank, ThreadPoint::giving_up);
          if (give_up(generation)) return Arrival::timed_out;
        }
      }
      if (generation_of(word_.load()) == generation) return Arrival::poisoned;
    }
    slot.generation = generation + 1;
    point(rank, ThreadPoint::committed);
    return Arrival::committed;
  }

  /// After commit, up to the exit barrier: the call that `rank` made, as `own` sees it.
  [[nodiscard]] const Fingerprint& committed(std::size_t own, std::size_t rank) const noexcept {
    return slots_[rank].print(slots_[own].generation - 1);
  }

  /// After commit: whether all ranks made the same call; the same answer on all.
  [[nodiscard]] bool agreed(std::size_t own) const noexcept {
    for (std::size_t r = 1; r < size(); ++r) {
      if (!committed(own, r).agrees_with(committed(own, 0))) return false;
    }
    return true;
  }

  /// After commit: waits until all ranks are here. Ignores poison.
  void meet(std::size_t rank) noexcept {
    Slot& slot = slots_[rank];
    slot.exits += size();
    if (exits_.fetch_add(1) + 1 == slot.exits) {
      leavers_.notify();
      return;
    }
    const auto all_here = [&] { return exits_.load() >= slot.exits; };
    if (!WaitPoint::look(slot.patience, all_here)) leavers_.wait(all_here);
  }

  /// Which ranks made their call of `generation` and which are missing, each with its last calls.
  [[nodiscard]] std::string who_came(std::uint64_t generation) const {
    std::string missing;
    std::string calls;
    for (std::size_t r = 0; r < size(); ++r) {
      const bool came = slots_[r].stamp.load(std::memory_order_acquire) == generation + 1;
      if (!came) missing += detail::format("{}{}", missing.empty() ? "" : ", ", world_rank(r));
      calls += detail::format("\n  rank {} ({}): {}", world_rank(r), came ? "arrived" : "missing",
                              last_calls(slots_[r], generation, came));
    }
    if (missing.empty()) missing = "none (the last came too late)";
    return detail::format("missing ranks: {}; last calls, the latest first:{}", missing, calls);
  }

  void point(std::size_t rank, ThreadPoint where) const noexcept {
    if (options_.at_point != nullptr) {
      options_.at_point(options_.context, static_cast<int>(rank), where);
    }
  }

 private:
  static constexpr int generation_shift = 16;
  static constexpr std::uint64_t arrived_mask = (std::uint64_t{1} << generation_shift) - 1;
  static constexpr std::uint64_t poison_bit = std::uint64_t{1} << 63;

  static constexpr std::uint64_t generation_of(std::uint64_t word) noexcept {
    return (word & ~poison_bit) >> generation_shift;
  }

  // Of the generations before `generation` all ranks' prints are still; of it, those that came.
  static std::string last_calls(const Slot& slot, std::uint64_t generation, bool came) {
    std::string text;
    for (std::uint64_t back = came ? 0 : 1; back < Slot::kept && back <= generation; ++back) {
      text +=
          detail::format("{}{}", text.empty() ? "" : "; ", describe(slot.print(generation - back)));
    }
    return text.empty() ? "none so far" : text;
  }

  [[nodiscard]] WaitPoint::Clock::time_point deadline(std::uint64_t generation,
                                                      std::chrono::nanoseconds timeout) const {
    auto first = WaitPoint::Clock::now();
    for (std::size_t r = 0; r < size(); ++r) {
      if (slots_[r].stamp.load(std::memory_order_acquire) != generation + 1) continue;
      const WaitPoint::Clock::rep ticks = slots_[r].waiting_since.load(std::memory_order_relaxed);
      if (ticks == 0) continue;
      first = std::min(first, WaitPoint::Clock::time_point(WaitPoint::Clock::duration(ticks)));
    }
    return WaitPoint::after(first, timeout);
  }

  // Poisons `generation` unless it was committed or poisoned meanwhile.
  bool give_up(std::uint64_t generation) noexcept {
    std::uint64_t word = word_.load();
    do {
      if ((word & poison_bit) != 0 || generation_of(word) != generation) return false;
    } while (!word_.compare_exchange_weak(word, word | poison_bit));
    return true;
  }

  std::shared_ptr<ThreadFamily> family_;
  std::vector<int> world_ranks_;
  std::unique_ptr<Slot[]> slots_;
  ThreadOptions options_;
  alignas(128) std::atomic<std::uint64_t> word_{0};
  alignas(128) std::atomic<std::uint64_t> exits_{0};
  alignas(128) WaitPoint arrivals_;
  alignas(128) WaitPoint leavers_;
};

}  // namespace shardwise::inline v0_1
