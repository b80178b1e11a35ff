#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <thread>

namespace shardwise::inline v0_1::detail::mpi {

/// How a rank waits for MPI: it looks for a moment, then lets other threads run, then sleeps longer
/// and longer. MPI's own waiting spins through whole time slices where ranks outnumber cores.
class Patience {
 public:
  using Clock = std::chrono::steady_clock;
  enum class Outcome : std::uint8_t { done, failed, timed_out };

  explicit Patience(int spins) noexcept : spins_(spins) {}

  /// Until done() (which makes MPI go on), failed(), or the time is up. What is done although a
  /// rank has failed is done.
  template <class Done, class Failed>
  [[nodiscard]] Outcome wait(std::chrono::nanoseconds timeout, const Done& done,
                             const Failed& failed) const {
    for (int i = 0; i <= spins_; ++i) {
      if (done()) return Outcome::done;
    }
    const Clock::time_point begin = Clock::now();
    for (int looks = 0;; ++looks) {
      if (done()) return Outcome::done;
      if (failed()) return done() ? Outcome::done : Outcome::failed;
      const std::chrono::nanoseconds waited = Clock::now() - begin;
      if (spins_ > 0 ? waited < awake : looks < yields) {
        std::this_thread::yield();
        continue;
      }
      if (waited >= timeout) return done() ? Outcome::done : Outcome::timed_out;
      // What comes while it sleeps waits for it: only a small part of what it has waited already.
      std::this_thread::sleep_for(std::clamp(waited / 64, shortest_sleep, longest_sleep));
    }
  }

 private:
  // With a core for each rank; a sleep ends some 60 us late.
  static constexpr std::chrono::nanoseconds awake = std::chrono::milliseconds(2);
  static constexpr int yields = 200;  // without
  static constexpr std::chrono::nanoseconds shortest_sleep = std::chrono::microseconds(20);
  static constexpr std::chrono::nanoseconds longest_sleep = std::chrono::microseconds(200);

  int spins_;
};

}  // namespace shardwise::inline v0_1::detail::mpi
