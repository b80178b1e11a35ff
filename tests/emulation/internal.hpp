#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

/// What the two emulation libraries share. Both are built without sanitizers: their locks are
/// futexes that ThreadSanitizer does not see, so the only orders it knows are those that CUDA and
/// NCCL promise, stated here by hb_release and hb_acquire. Data moves by libc's memcpy, memmove and
/// memset, which sanitizers watch.
namespace emulation {

/// States that what this thread did happens before what a thread does after hb_acquire of the same
/// address. Nothing without ThreadSanitizer. Both may be called with a lock held.
void hb_release(void* edge);
void hb_acquire(void* edge);
/// For ThreadSanitizer a write by this thread, compared with all accesses; no byte changes. Not
/// with a lock held.
void hb_write(std::uintptr_t begin, std::size_t bytes);

/// Between the two the emulation's own work is invisible to ThreadSanitizer; they nest.
void quiet_begin();
void quiet_end();
struct Quiet {
  Quiet() { quiet_begin(); }
  ~Quiet() { quiet_end(); }
  Quiet(const Quiet&) = delete;
  Quiet& operator=(const Quiet&) = delete;
};

/// Whether the program is built with the sanitizer.
[[nodiscard]] bool under_thread_sanitizer();
[[nodiscard]] bool under_address_sanitizer();
void asan_poison(std::uintptr_t begin, std::size_t bytes);
void asan_unpoison(std::uintptr_t begin, std::size_t bytes);

/// A lock on a futex: no order for ThreadSanitizer, and what happens under it is not looked at.
class Lock {
 public:
  void lock();
  [[nodiscard]] bool try_lock();
  void unlock();

 private:
  enum State : std::uint32_t { free, held, contended };
  std::atomic<std::uint32_t> state_{free};
};

class Guard {
 public:
  explicit Guard(Lock& lock) : lock_(lock) { lock_.lock(); }
  ~Guard() { lock_.unlock(); }
  Guard(const Guard&) = delete;
  Guard& operator=(const Guard&) = delete;

 private:
  Lock& lock_;
};

/// Wakes all who wait; for use with a Lock.
class Condition {
 public:
  /// Releases `lock`, waits for a notification, takes it again. False: the time ran out.
  bool wait(Lock& lock, int milliseconds);
  void notify();

 private:
  std::atomic<std::uint32_t> epoch_{0};
  std::atomic<int> waiters_{0};
};

/// One lock for all state of the emulation: it serves tests, not speed.
[[nodiscard]] Lock& big_lock();
/// For waits on what has no condition of its own: NCCL's collectives. Notified by who changes it.
[[nodiscard]] Condition& changed();

/// Milliseconds without any progress after which a wait counts as a deadlock.
[[nodiscard]] int watchdog();

/// A wait that must end. Its owner waits in slices and calls check() after each that ran out, with
/// the big lock held. Where no task ended and the process hardly computed for watchdog()
/// milliseconds, or ten times that passed in all, check() prints the state of all streams and ends
/// the process with status 66.
class Patience {
 public:
  explicit Patience(std::string what) : what_(std::move(what)) { restart(); }
  [[nodiscard]] static int slice();  ///< milliseconds of one wait
  void check();
  /// What is missing may have changed since the wait began.
  void describe(std::string what) { what_ = std::move(what); }

 private:
  void restart();
  std::string what_;
  std::uint64_t progress_ = 0;
  std::chrono::nanoseconds computed_{0};
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
  std::chrono::steady_clock::time_point last_ = begin_;
};

/// Waits, with the big lock held, until `ready()`; `condition` is notified when it may have
/// changed.
template <class Ready>
void wait_until(Condition& condition, const std::string& what, Ready ready) {
  if (ready()) return;
  Patience patience(what);
  while (!ready()) {
    if (!condition.wait(big_lock(), Patience::slice())) patience.check();
  }
}

/// Prints why the program is wrong and ends it with status 66: for what would be undefined
/// behaviour, or would hang, on a device.
[[noreturn]] void fatal(const char* format, ...) __attribute__((format(printf, 1, 2)));
/// Counts and prints an error of the program that a device would not tell. A process with errors
/// ends with status 66 where it would have ended with 0.
void report(const char* format, ...) __attribute__((format(printf, 1, 2)));
/// Prints and counts what is allowed and rarely meant.
void note(const char* format, ...) __attribute__((format(printf, 1, 2)));
/// Prints what each stream runs, waits for and has queued. With the big lock held.
void dump_state();

/// Options are set by shardwise_emulation_set_option or by the environment variable
/// SHARDWISE_EMULATION_<NAME>; see control.hpp. Slow: not for each operation.
[[nodiscard]] std::string option(std::string_view name, std::string_view otherwise);
[[nodiscard]] long option(std::string_view name, long otherwise);

/// The status with which this call of `api` is to fail by the option `fail`; 0: it is not.
[[nodiscard]] int injected_failure(const char* api);

/// Runs `run` in stream order on the stream's worker thread. `label` shows in dumps; the task's
/// modelled time is `microseconds`. The null stream is the current device's legacy stream.
void enqueue(cudaStream_t stream, std::string label, std::function<void()> run,
             double microseconds = 1.0);
/// Whether the handle is one of a stream that lives (or the null stream).
[[nodiscard]] bool stream_exists(cudaStream_t stream);
[[nodiscard]] int stream_device(cudaStream_t stream);
/// The stream's modelled time in microseconds; only for tasks that run on it.
[[nodiscard]] double& stream_virtual_time(cudaStream_t stream);
/// From a task: what it waits for, shown in dumps; empty: nothing. With the big lock held.
void set_blocked(const std::string& why);

enum class Memory { none, device, host_pinned };
struct PointerInfo {
  Memory kind = Memory::none;
  int device = -1;
  std::uintptr_t base = 0;
  std::size_t size = 0;
  bool freed = false;
};
/// What the address belongs to; one past the end of an allocation may belong to it.
[[nodiscard]] PointerInfo classify(const void* pointer);
/// Ends the process with a message where [pointer, pointer + bytes) is freed, leaves its
/// allocation, is pageable although `need_device`, or belongs to a device that `device` (-1: any)
/// has no access to.
void check_range(const char* api, const void* pointer, std::size_t bytes, int device,
                 bool need_device);
/// Lets the calling task touch all devices' memory, as NCCL's transports do; false: no longer.
void all_device_access(bool on);

}  // namespace emulation
