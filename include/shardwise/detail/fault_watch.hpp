#pragma once

#include <signal.h>  // NOLINT(modernize-deprecated-headers): sigaction is of POSIX

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>

#include "../core/error.hpp"
#include "pages.hpp"

#if defined(__x86_64__)
#include <ucontext.h>
#endif

namespace shardwise::inline v0_1::detail {

/// Who wants to know when a thread touches memory that is not there.
class FaultObserver {
 public:
  /// In a signal handler, on the thread that touched `address`: system calls alone. True where the
  /// access may be tried again.
  virtual bool on_fault(std::byte* address, bool is_write) noexcept = 0;

 protected:
  ~FaultObserver() = default;
};

/// Tells observers of faults within their ranges of addresses; all others go where they went
/// before. Installs its handler of SIGSEGV for as long as anything is watched.
///
/// Signals belong to the process, so this is the library's one piece of state that does: it is used
/// in debug mode alone.
class FaultWatch {
 public:
  constexpr FaultWatch() noexcept = default;
  FaultWatch(const FaultWatch&) = delete;
  FaultWatch& operator=(const FaultWatch&) = delete;

  static FaultWatch& of_process() noexcept;

  /// BackendError where more is watched than the table holds, or the handler cannot be installed.
  void add(FaultObserver& observer, PageRange range) {
    const std::lock_guard lock(mutex_);
    for (Entry& entry : entries_) {
      if (entry.observer.load() != nullptr) continue;
      if (used_ == 0 && !chained_) install();
      entry.begin.store(range.begin);
      entry.bytes.store(range.bytes);
      entry.observer.store(&observer);
      ++used_;
      return;
    }
    raise<BackendError>(
        "debug mode watches {} arenas of one process at most: make fewer, or switch "
        "ContextOptions::debug off",
        entries_.size());
  }
  void remove(FaultObserver& observer) noexcept {
    const std::lock_guard lock(mutex_);
    for (Entry& entry : entries_) {
      if (entry.observer.load() != &observer) continue;
      entry.observer.store(nullptr);
      if (--used_ > 0) continue;
      struct sigaction now = {};  // a handler that the host has installed since then stays
      const bool ours = sigaction(SIGSEGV, nullptr, &now) == 0 && now.sa_sigaction == &handle;
      if (ours) sigaction(SIGSEGV, &before_, nullptr);
      chained_ = !ours;
    }
  }

 private:
  // `begin` and `bytes` change only while `observer` is null; a handler on another thread may read
  // them at that time, and looks at `observer` again. Threads that fault within a range belong to a
  // rank whose arena is alive.
  struct Entry {
    std::atomic<FaultObserver*> observer{nullptr};
    std::atomic<std::byte*> begin{nullptr};
    std::atomic<std::size_t> bytes{0};
  };

  void install() {
    struct sigaction action = {};
    action.sa_sigaction = &handle;
    action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    if (sigaction(SIGSEGV, &action, &before_) != 0) {
      raise<BackendError>("the handler of SIGSEGV, which debug mode needs, cannot be installed");
    }
  }

  static void handle(int signal, siginfo_t* info, void* context) {
    FaultWatch& watch = of_process();
    auto* const address = static_cast<std::byte*>(info->si_addr);
    for (Entry& entry : watch.entries_) {
      FaultObserver* const observer = entry.observer.load();
      std::byte* const begin = entry.begin.load();
      const std::size_t bytes = entry.bytes.load();
      if (observer == nullptr || address < begin || address >= begin + bytes) continue;
      if (entry.observer.load() != observer) continue;
      if (observer->on_fault(address, is_write(context))) return;
    }
    watch.pass_on(signal, info, context);
  }

  void pass_on(int signal, siginfo_t* info, void* context) const {
    if ((before_.sa_flags & SA_SIGINFO) != 0) {
      before_.sa_sigaction(signal, info, context);
    } else if (before_.sa_handler != SIG_DFL && before_.sa_handler != SIG_IGN) {
      before_.sa_handler(signal);
    } else {
      ::signal(signal, SIG_DFL);  // the access is tried again and ends the process
    }
  }

  static bool is_write([[maybe_unused]] void* context) noexcept {
#if defined(__x86_64__)
    constexpr long long write_bit = 2;
    return (static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_ERR] & write_bit) != 0;
#else
    return false;
#endif
  }

  std::mutex mutex_;
  std::array<Entry, 256> entries_{};
  std::size_t used_ = 0;
  bool chained_ =
      false;  // ours stands behind the host's: installed again, they would go in circles
  struct sigaction before_ = {};
};

inline FaultWatch& FaultWatch::of_process() noexcept {
  static constinit FaultWatch watch;
  return watch;
}

}  // namespace shardwise::inline v0_1::detail
