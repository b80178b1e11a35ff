#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

namespace shardwise::inline v0_1 {

/// Where threads wait until others have changed an atomic. They look for a moment, then sleep. No
/// wake-up is lost: a waiter counts itself before its last look, a notifier changes the atomic
/// before it looks at the count, and all four accesses are sequentially consistent. So conditions
/// must read, and notifiers must have written, with std::memory_order_seq_cst.
class WaitPoint {
 public:
  using Clock = std::chrono::steady_clock;

  /// How often one thread looks before it lets others run: less where that was in vain the last
  /// time, because a core is missing or the others are late, and more again where it was not.
  class Patience {
   public:
    explicit Patience(int most = 0) noexcept : most_(most), now_(most) {}
    [[nodiscard]] int spins() const noexcept { return now_; }
    void learn(bool in_vain) noexcept {
      now_ = in_vain ? now_ / 4 : std::min(most_, 2 * now_ + most_ / 64);
    }

   private:
    int most_;
    int now_;
  };

  /// True as soon as `ready()`; false when quick looks were in vain, and some more that let other
  /// threads run: where ranks outnumber cores these are what makes a barrier quick.
  template <class Ready>
  static bool look(Patience& patience, const Ready& ready) {
    constexpr int yields = 20;
    for (int i = 0; i < patience.spins(); ++i) {
      if (ready()) {
        patience.learn(false);
        return true;
      }
      relax();
    }
    // A core that nobody else wants comes back at once. Looking lasts longer than a sleeper takes
    // to wake: else two that wake each other in turns never meet awake again.
    constexpr std::chrono::microseconds soon(10);
    constexpr std::chrono::microseconds wake(50);
    const Clock::time_point begin = Clock::now();
    for (int i = 0; i < yields || Clock::now() - begin < wake; ++i) {
      if (ready()) {
        patience.learn(Clock::now() - begin > soon);
        return true;
      }
      std::this_thread::yield();
    }
    patience.learn(true);
    return ready();
  }

  /// Sleeps until `ready()`.
  template <class Ready>
  void wait(const Ready& ready) {
    std::unique_lock lock(mutex_);
    sleepers_.fetch_add(1);
    changed_.wait(lock, ready);
    sleepers_.fetch_sub(1);
  }

  /// Sleeps until `ready()` (true) or until the time is up (false).
  template <class Ready>
  bool wait_until(Clock::time_point deadline, const Ready& ready) {
    std::unique_lock lock(mutex_);
    sleepers_.fetch_add(1);
    const bool result = changed_.wait_until(lock, deadline, ready);
    sleepers_.fetch_sub(1);
    return result;
  }

  /// Wakes all that sleep here; cheap where nobody does.
  void notify() noexcept {
    if (sleepers_.load() == 0) return;
    { const std::lock_guard lock(mutex_); }
    changed_.notify_all();
  }

  /// `timeout` from now, without overflow.
  [[nodiscard]] static Clock::time_point after(Clock::time_point begin,
                                               std::chrono::nanoseconds timeout) noexcept {
    return timeout < Clock::time_point::max() - begin ? begin + timeout : Clock::time_point::max();
  }

 private:
  static void relax() noexcept {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable changed_;
};

}  // namespace shardwise::inline v0_1
