#pragma once

#include <nccl.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "nccl_api.hpp"
#include "nccl_options.hpp"

namespace shardwise::inline v0_1::detail::nccl {

/// How a rank waits for others: looks, lets other threads run, then sleeps.
class Backoff {
 public:
  void operator()() {
    if (++looks_ < 64) return std::this_thread::yield();
    std::this_thread::sleep_for(pause_);
    pause_ = std::min(2 * pause_, std::chrono::microseconds(500));
  }

 private:
  int looks_ = 0;
  std::chrono::microseconds pause_{10};
};

/// One ncclComm_t, non-blocking, and the lock without which nobody calls NCCL on it. Whoever waits
/// for NCCL gives up the lock meanwhile, and calls its `patience`, which throws where waiting has
/// lost its sense.
class Handle {
 public:
  /// Takes part in making a communicator.
  template <class Patience>
  [[nodiscard]] static std::shared_ptr<Handle> make(int size, int rank, const ncclUniqueId& id,
                                                    const NcclOptions& options,
                                                    const Patience& patience) {
    std::shared_ptr<Handle> result(new Handle(rank, false));
    ncclConfig_t config = config_of(options, options.name);
    result->start("ncclCommInitRankConfig", patience, [&](ncclComm_t* made) {
      return ncclCommInitRankConfig(made, size, id, rank, &config);
    });
    return result;
  }

  /// One that belongs to the host and is not destroyed.
  [[nodiscard]] static std::shared_ptr<Handle> adopt(ncclComm_t adopted, int rank) {
    std::shared_ptr<Handle> result(new Handle(rank, true));
    result->comm_ = adopted;
    return result;
  }

  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  ~Handle() {
    if (!adopted_) {
      static_cast<void>(poll());  // what NCCL did meanwhile
      abort(true);
      if (revoked_ != nullptr) static_cast<void>(ncclCommAbort(revoked_));
    }
    for (std::shared_ptr<Handle>& part : parts_) await(part);
  }

  /// Takes part in splitting this one; `color` is not negative.
  template <class Patience>
  [[nodiscard]] std::shared_ptr<Handle> split(int color, int rank, const NcclOptions& options,
                                              const std::string& name, const Patience& patience) {
    std::shared_ptr<Handle> result(new Handle(rank, false));
    ncclConfig_t config = config_of(options, name);
    call("ncclCommSplit", patience, [&](ncclComm_t whole) {
      return begin_part(result, ncclCommSplit(whole, color, rank, &result->comm_, &config));
    });
    result->complete("ncclCommSplit", patience);
    const std::lock_guard lock(mutex_);
    std::erase(parts_, result);
    return result;
  }

  /// Where a failure revoked it: what is left of it without the ranks `lost`, which all others
  /// make. UsageError where it was aborted.
  template <class Patience>
  [[nodiscard]] std::shared_ptr<Handle> shrink(std::vector<int> lost, int rank,
                                               const NcclOptions& options,
                                               const Patience& patience) {
    if (revoked_ == nullptr) {
      raise(
          "\"{}\" was aborted, not revoked, so nothing is left to shrink: set "
          "NcclOptions::shrinkable (NCCL 2.28.7)",
          options.name);
    }
    std::shared_ptr<Handle> result(new Handle(rank, false));
#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 28, 7)
    ncclConfig_t config = config_of(options, options.name);
    const std::lock_guard lock(mutex_);
    ncclResult_t done =
        begin_part(result, ncclCommShrink(revoked_, lost.data(), static_cast<int>(lost.size()),
                                          &result->comm_, &config, NCCL_SHRINK_DEFAULT));
    if (done == ncclSuccess) done = status_of(revoked_);
    for (Backoff pause; done == ncclInProgress; done = status_of(revoked_)) {
      patience();
      pause();
    }
    if (done != ncclSuccess) raise_result(done, "ncclCommShrink", rank_);
    result->complete("ncclCommShrink", patience);
    std::erase(parts_, result);
#else
    static_cast<void>(lost);
    static_cast<void>(patience);
#endif
    return result;
  }

  /// Runs f(comm), which gives a result, and waits until NCCL has done what it asked for: enqueued
  /// work, for a collective. BackendError where NCCL refuses, or the communicator is gone.
  template <class Patience, class F>
  void call(std::string_view name, const Patience& patience, const F& f) {
    ncclResult_t result = ncclSuccess;
    {
      const std::lock_guard lock(mutex_);
      result = comm_ == nullptr ? ncclInvalidUsage : f(comm_);
      if (result == ncclSuccess) result = status_of(comm_);  // windows go on after they said so
    }
    settle(name, patience, result);
  }

  /// Tells NCCL of memory from ncclMemAlloc; all ranks do, in the same order. What it can make of
  /// it may differ between ranks, but for windows.
  template <class Patience>
  [[nodiscard]] NcclRegistration enroll(void* data, std::size_t bytes,
                                        [[maybe_unused]] const Patience& patience) {
    Enrolled enrolled;
    enrolled.data = data;
#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 27, 0)
    // Where there is no symmetric memory the call succeeds and leaves the window as it was.
    call("ncclCommWindowRegister", patience, [&](ncclComm_t comm) {
      return ncclCommWindowRegister(comm, data, bytes, &enrolled.window, NCCL_WIN_COLL_SYMMETRIC);
    });
    if (enrolled.window != nullptr) {
      const std::lock_guard lock(mutex_);
      enrolled_.push_back(enrolled);
      return NcclRegistration::window;
    }
#endif
    const std::lock_guard lock(mutex_);
    if (comm_ == nullptr || ncclCommRegister(comm_, data, bytes, &enrolled.buffer) != ncclSuccess ||
        enrolled.buffer == nullptr) {
      return NcclRegistration::none;
    }
    enrolled_.push_back(enrolled);
    return NcclRegistration::buffer;
  }

  /// Before the memory goes: NCCL forgets it. Nobody uses it any more.
  void withdraw(const void* data) noexcept {
    std::unique_lock lock(mutex_);
    if (comm_ == nullptr) {  // an abort forgets it, too, when it has ended
      lock.unlock();
      const auto begin = std::chrono::steady_clock::now();
      for (Backoff pause; is_aborting_.load() &&
                          std::chrono::steady_clock::now() - begin < std::chrono::seconds(5);) {
        pause();
      }
      lock.lock();
    }
    auto* const comm = comm_ != nullptr ? comm_ : revoked_;
    std::erase_if(enrolled_, [&](const Enrolled& enrolled) {
      if (enrolled.data != data) return false;
      if (comm != nullptr) forget(comm, enrolled);
      return true;
    });
  }

  /// What NCCL found out meanwhile; ncclInvalidUsage where the communicator is gone.
  [[nodiscard]] ncclResult_t poll() noexcept {
    const std::lock_guard lock(mutex_);
    return comm_ == nullptr ? ncclInvalidUsage : status_of(comm_);
  }

  /// Ends whatever is under way, on this rank; later calls are refused. A host's communicator is
  /// aborted only where that is allowed, else revoked, where NCCL can; `to_shrink`: so is any.
  void abort(bool adopted_too, bool to_shrink = false) noexcept {
    // A call that never gives the lock back hangs in NCCL: nothing else ends it.
    const auto begin = std::chrono::steady_clock::now();
    bool locked = mutex_.try_lock();
    for (Backoff pause;
         !locked && std::chrono::steady_clock::now() - begin < std::chrono::seconds(2);
         locked = mutex_.try_lock()) {
      pause();
    }
    auto* const comm = std::exchange(comm_, nullptr);
    if (comm != nullptr) is_aborting_.store(true);
    if (locked) mutex_.unlock();
    if (comm == nullptr) return;
    const bool may_abort = !adopted_ || adopted_too;
    const bool revoked = (!may_abort || to_shrink) && revoke(comm);
    if (may_abort && !revoked) {
      static_cast<void>(ncclCommAbort(comm));
    } else {
      revoked_ = comm;
    }
    is_aborting_.store(false);
  }

  /// The end in peace: waits until NCCL has flushed what this rank did, and aborts where that takes
  /// longer than `timeout`.
  void close(std::chrono::nanoseconds timeout) noexcept {
    auto* const comm = [&] {
      const std::lock_guard lock(mutex_);
      if (comm_ != nullptr) {
        for (const Enrolled& enrolled : enrolled_) forget(comm_, enrolled);
      }
      enrolled_.clear();
      return std::exchange(comm_, nullptr);
    }();
    if (comm == nullptr || adopted_) return;
    const auto begin = std::chrono::steady_clock::now();
    ncclResult_t result = ncclCommFinalize(comm);
    Backoff pause;
    while (result == ncclInProgress && std::chrono::steady_clock::now() - begin < timeout) {
      pause();
      if (ncclCommGetAsyncError(comm, &result) != ncclSuccess) result = ncclInternalError;
    }
    static_cast<void>(result == ncclSuccess ? ncclCommDestroy(comm) : ncclCommAbort(comm));
  }

  [[nodiscard]] int rank() const noexcept { return rank_; }

 private:
  struct Enrolled {
    const void* data = nullptr;
    void* buffer = nullptr;
#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 27, 0)
    ncclWindow_t window = nullptr;
#endif
  };

  static void forget(ncclComm_t comm, const Enrolled& enrolled) noexcept {
#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 27, 0)
    if (enrolled.window != nullptr) {
      static_cast<void>(ncclCommWindowDeregister(comm, enrolled.window));
    }
#endif
    if (enrolled.buffer != nullptr) static_cast<void>(ncclCommDeregister(comm, enrolled.buffer));
  }

  Handle(int rank, bool adopted) noexcept : rank_(rank), adopted_(adopted) {}

  [[nodiscard]] static ncclConfig_t config_of([[maybe_unused]] const NcclOptions& options,
                                              [[maybe_unused]] const std::string& name) {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    config.splitShare = 0;  // parts run beside the whole, and outlive its failure
#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 27, 0)
    config.commName = name.c_str();  // copied
#endif
#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 28, 3)
    if (options.copy_engine) config.CTAPolicy = NCCL_CTA_POLICY_ZERO;
#endif
    return config;
  }

  // Ends its work and waits until none is left; false where NCCL cannot.
  [[nodiscard]] static bool revoke([[maybe_unused]] ncclComm_t comm) noexcept {
#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 28, 7)
    if (!can_revoke()) return false;
    const auto begin = std::chrono::steady_clock::now();
    ncclResult_t result = ncclCommRevoke(comm, NCCL_REVOKE_DEFAULT);
    if (result == ncclSuccess) result = status_of(comm);
    for (Backoff pause; result == ncclInProgress; result = status_of(comm)) {
      if (std::chrono::steady_clock::now() - begin > std::chrono::seconds(5)) return false;
      pause();
    }
    return result == ncclSuccess;
#else
    return false;
#endif
  }

  [[nodiscard]] static ncclResult_t status_of(ncclComm_t comm) noexcept {
    ncclResult_t result = ncclSuccess;
    const ncclResult_t status = ncclCommGetAsyncError(comm, &result);
    return status == ncclSuccess ? result : status;
  }

  // Whether NCCL has written a part that it splits off, which it does on a thread of its own.
  [[nodiscard]] bool is_made() noexcept {
    return std::atomic_ref<ncclComm_t>(comm_).load(std::memory_order_acquire) != nullptr;
  }

  // NCCL writes a part when it is made, which may be after the wait for it was given up; not where
  // it refuses the call. With the lock held.
  ncclResult_t begin_part(const std::shared_ptr<Handle>& part, ncclResult_t result) {
    if (result == ncclSuccess || result == ncclInProgress) parts_.push_back(part);
    return result;
  }
  // Waits until NCCL has made this part; the whole says nothing of it.
  template <class Patience>
  void complete(std::string_view name, const Patience& patience) {
    for (Backoff pause; !is_made(); pause()) patience();
    settle(name, patience, ncclInProgress);
  }

  // NCCL still writes a part that was given up, when that has failed, too. One that it does not
  // write in time is never freed.
  static void await(std::shared_ptr<Handle>& part) noexcept {
    const auto begin = std::chrono::steady_clock::now();
    for (Backoff pause; !part->is_made(); pause()) {
      if (std::chrono::steady_clock::now() - begin < std::chrono::seconds(5)) continue;
      static_cast<void>(new (std::nothrow) std::shared_ptr<Handle>(std::move(part)));
      return;
    }
  }

  // Whether a peer's failure can be the reason.
  [[nodiscard]] static bool is_of_peers(ncclResult_t result) noexcept {
    return result == ncclRemoteError || result == ncclSystemError || result == ncclInternalError ||
           result == ncclInvalidUsage;
  }

  template <class Patience, class F>
  void start(std::string_view name, const Patience& patience, const F& f) {
    ncclResult_t result = ncclSuccess;
    {
      const std::lock_guard lock(mutex_);
      result = f(&comm_);
    }
    settle(name, patience, result);
  }

  template <class Patience>
  void settle(std::string_view name, const Patience& patience, ncclResult_t result) {
    Backoff pause;
    while (result == ncclInProgress) {
      patience();
      result = poll();
      if (result == ncclInProgress) pause();
    }
    if (result == ncclSuccess) return;
    // Where a peer failed, or this communicator was aborted, that is the reason, and known soon.
    const auto begin = std::chrono::steady_clock::now();
    do {
      patience();
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    } while (is_of_peers(result) &&
             std::chrono::steady_clock::now() - begin < std::chrono::milliseconds(60));
    raise_result(result, name, rank_);
  }

  std::mutex mutex_;
  ncclComm_t comm_ = nullptr;  // null: aborted or closed
  int rank_;
  bool adopted_;
  std::atomic<bool> is_aborting_{false};
  ncclComm_t revoked_ = nullptr;  // lives on; written before is_aborting_ ends
  std::vector<Enrolled> enrolled_;
  std::vector<std::shared_ptr<Handle>> parts_;  // that are being split off, or were given up
};

}  // namespace shardwise::inline v0_1::detail::nccl
