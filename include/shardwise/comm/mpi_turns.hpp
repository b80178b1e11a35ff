#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>

#include "mpi_patience.hpp"
#include "thread_wait.hpp"

namespace shardwise::inline v0_1::detail::mpi {

/// Calls of one communicator run in the order in which they were made, whatever their streams.
class Turns {
 public:
  using Outcome = Patience::Outcome;

  /// Waits until `ticket` may run. failed() is asked every few milliseconds.
  template <class Failed>
  [[nodiscard]] Outcome take(std::uint64_t ticket, std::chrono::nanoseconds timeout,
                             const Failed& failed) {
    if (failed()) return Outcome::failed;
    const auto ready = [&] { return turn_.load() == ticket; };
    if (ready()) return Outcome::done;
    const auto deadline = WaitPoint::after(WaitPoint::Clock::now(), timeout);
    for (;;) {
      const auto now = WaitPoint::Clock::now();
      if (changed_.wait_until(std::min(deadline, now + std::chrono::milliseconds(5)), ready)) {
        return failed() ? Outcome::failed : Outcome::done;
      }
      if (failed()) return Outcome::failed;
      if (now >= deadline) return Outcome::timed_out;
    }
  }

  void end() noexcept {
    turn_.fetch_add(1);
    changed_.notify();
  }

 private:
  std::atomic<std::uint64_t> turn_{0};
  WaitPoint changed_;
};

}  // namespace shardwise::inline v0_1::detail::mpi
