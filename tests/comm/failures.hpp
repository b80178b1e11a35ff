#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <random>
#include <shardwise/comm/thread.hpp>
#include <string>
#include <thread>
#include <vector>

#include "../support/sanitized.hpp"

namespace shardwise::test {

/// Ends the process, naming the case, where one case takes half a minute or more: a hang must not
/// look like a slow machine.
class Watchdog {
 public:
  Watchdog() : thread_([this] { watch(); }) {}
  ~Watchdog() {
    {
      const std::lock_guard lock(mutex_);
      done_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  void start(const std::string& name) {
    const std::lock_guard lock(mutex_);
    name_ = name;
    ++number_;
  }

 private:
  void watch() {
    std::unique_lock lock(mutex_);
    while (!done_) {
      const std::size_t number = number_;
      const auto moved_on = [&] { return done_ || number_ != number; };
      if (!changed_.wait_for(lock, std::chrono::seconds(sanitized ? 120 : 30), moved_on)) {
        std::fprintf(stderr, "HANG in %s\n", name_.c_str());
        std::abort();
      }
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::string name_ = "the first case";
  std::size_t number_ = 0;
  bool done_ = false;
  std::thread thread_;
};

/// ThreadOptions::at_point that yields, or sleeps a moment, at random.
inline void random_yield(void*, int rank, ThreadPoint point) noexcept {
  thread_local std::minstd_rand random(
      static_cast<unsigned>(std::hash<std::thread::id>()(std::this_thread::get_id())) +
      static_cast<unsigned>(rank));
  if (point == ThreadPoint::giving_up) {  // the last arrival may come just now
    std::this_thread::sleep_for(std::chrono::microseconds((random() >> 4) % 400));
  }
  switch ((random() >> 4) % 8) {
    case 0:
    case 1:
    case 2:
      std::this_thread::yield();
      break;
    case 3:
      if ((random() >> 4) % (point == ThreadPoint::committed ? 2 : 8) == 0) {
        std::this_thread::sleep_for(std::chrono::microseconds(50));
      }
      break;
    default:
      break;
  }
}

inline ThreadOptions with_yields() { return {.spins = 10, .at_point = random_yield}; }

/// How one rank ended.
struct RankEnd {
  enum class Kind { returned, own, peer_failed, timed_out, mismatch, other };
  Kind kind = Kind::returned;
  std::string what;
  std::string peer_message;
  int peer = -1;
  double latency = 0;  // seconds from the failure or the call, whichever was later
};

}  // namespace shardwise::test
