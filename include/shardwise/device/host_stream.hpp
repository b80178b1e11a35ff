#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <span>
#include <thread>
#include <type_traits>

#include "../core/error.hpp"
#include "../core/observer.hpp"
#include "../core/stream_ref.hpp"

namespace shardwise::inline v0_1 {

class HostStream;

/// A point in a stream: everything enqueued before it was recorded. A default-made event is always
/// reached. Copyable; must not be waited for after its stream is gone.
class HostEvent {
 public:
  HostEvent() = default;

 private:
  friend class HostStream;
  HostEvent(HostStream* stream, std::uint64_t ticket) : stream_(stream), ticket_(ticket) {}

  HostStream* stream_ = nullptr;
  std::uint64_t ticket_ = 0;
};

/// A queue of work in host memory with the meaning of a CUDA stream. Inline: every call completes
/// before it returns. With a worker: one thread of its own runs the tasks in order (overlap).
///
/// One host thread enqueues at a time. Tasks are copied into a ring of fixed size; enqueue waits
/// for room when it is full and never allocates. A task that throws ends the stream: later tasks
/// are skipped, and synchronize() and waits for its events rethrow.
///
/// A task that others wait for (a collective) may have two more members, both noexcept:
/// `skipped(std::exception_ptr)` is called in its place, in stream order, where it will never run;
/// `interrupted()` is called, by another thread and while it runs, where an exception's unwinding
/// destroys the stream: it must make the task end soon.
class HostStream {
 public:
  enum class Mode : std::uint8_t { inline_calls, worker };

  explicit HostStream(Mode mode = Mode::inline_calls, std::size_t ring_bytes = std::size_t{1} << 18)
      : ring_bytes_(mode == Mode::worker ? rounded(std::max(ring_bytes, least_ring_bytes)) : 0),
        exceptions_(std::uncaught_exceptions()) {
    if (mode == Mode::worker) {
      ring_ = std::make_unique<Unit[]>(ring_bytes_ / sizeof(Unit));
      worker_ = std::thread([this] { work(); });
    }
  }
  HostStream(const HostStream&) = delete;
  HostStream& operator=(const HostStream&) = delete;
  /// Lets the running task finish, skips the rest.
  ~HostStream() {
    if (!worker_.joinable()) return;
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    if (std::uncaught_exceptions() > exceptions_) interrupt();
    worker_.join();
  }

  /// Whether a call made now completes before it returns.
  [[nodiscard]] bool is_inline() const noexcept { return ring_bytes_ == 0 || in_caller_; }
  [[nodiscard]] StreamRef ref() noexcept { return {MemoryKind::host, this}; }

  /// Runs `task(items)` in stream order. Both are copied; they must be trivially copyable.
  template <class Task, class Item>
  void enqueue(Task task, std::span<const Item> items) {
    static_assert(std::is_trivially_copyable_v<Task> && std::is_trivially_copyable_v<Item>);
    static_assert(alignof(Task) <= alignof(Unit) && alignof(Item) <= alignof(Unit));
    if (is_inline()) {
      task(items);
      return;
    }
    constexpr std::size_t head = rounded(sizeof(Task));
    std::unique_lock lock(mutex_);
    std::byte* record = reserve(
        lock, head + rounded(items.size_bytes()),
        [](std::byte* payload, std::size_t count, Fate fate, const std::exception_ptr& failure) {
          auto* stored = std::launder(reinterpret_cast<Task*>(payload));
          const auto* first = reinterpret_cast<const Item*>(payload + head);
          settle(*stored, std::span<const Item>(first, count), fate, failure);
        },
        items.size());
    ::new (record) Task(task);
    if (!items.empty()) std::memcpy(record + head, items.data(), items.size_bytes());
    publish(lock);
  }

  /// Runs `task()` in stream order.
  template <class Task>
  void enqueue(Task task) {
    if (is_inline()) {
      task();
      return;
    }
    enqueue([task](std::span<const std::byte>) mutable { task(); }, std::span<const std::byte>());
  }

  /// With a worker: `observer` is told when each task ran that is enqueued until end_run(), as part
  /// of this run, by the worker and before anybody sees that the task has run. It must outlive the
  /// stream, and is the same in all calls.
  void begin_run(Observer& observer, std::uint64_t sequence, Activity activity,
                 SubjectId subject) noexcept {
    if (observer_ != &observer) observer_ = &observer;  // the worker reads it
    run_ = {sequence, subject, activity};
  }
  void end_run() noexcept { run_ = {}; }

  /// With a worker: until end_inline() calls complete before they return, for what takes less time
  /// than handing it over. Not where something is queued, or the stream has failed: calls go to the
  /// worker then. The order of tasks is the same.
  void begin_inline() noexcept {
    in_caller_ = ring_bytes_ > 0 && idle() && !failed_.load(std::memory_order_acquire);
  }
  void end_inline() noexcept { in_caller_ = false; }

  /// Everything enqueued so far.
  [[nodiscard]] HostEvent record() noexcept {
    return is_inline() ? HostEvent() : HostEvent(this, issued_);
  }

  /// Later work of this stream runs after `event`. Inline: the caller waits now; a failure of the
  /// event's stream is rethrown.
  void wait(const HostEvent& event) {
    if (event.stream_ == nullptr || event.stream_ == this) return;
    if (is_inline()) {
      event.stream_->wait_for(event.ticket_);
    } else {
      enqueue(WaitTask{event}, std::span<const std::byte>());
    }
  }

  /// True when `event` was reached; never waits.
  [[nodiscard]] static bool reached(const HostEvent& event) noexcept {
    return event.stream_ == nullptr ||
           event.stream_->completed_.load(std::memory_order_acquire) >= event.ticket_;
  }

  /// The caller waits until everything enqueued so far has run; rethrows the stream's failure.
  void synchronize() {
    if (!is_inline()) wait_for(issued_);
  }

  /// True when nothing is queued or running.
  [[nodiscard]] bool idle() const noexcept {
    return completed_.load(std::memory_order_acquire) == issued_;
  }

  /// Waits until everything enqueued so far has run or was skipped; swallows failures.
  void drain() noexcept {
    if (is_inline()) return;
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return completed_.load(std::memory_order_relaxed) >= issued_; });
  }

 private:
  using Clock = std::chrono::steady_clock;

  struct alignas(16) Unit {
    std::byte bytes[16];
  };
  enum class Fate : std::uint8_t { run, skip, interrupt };
  using Invoke = void (*)(std::byte* payload, std::size_t count, Fate fate,
                          const std::exception_ptr& failure);
  struct WaitTask {
    HostEvent event;
    void operator()(std::span<const std::byte>) const { event.stream_->wait_for(event.ticket_); }
    void interrupted() const noexcept { event.stream_->interrupt(); }
  };
  // What an observer is told with a task; sequence 0: nothing.
  struct Run {
    std::uint64_t sequence = 0;
    SubjectId subject = no_subject;
    Activity activity = Activity::all_gather;
  };
  struct alignas(16) Header {
    Invoke invoke;  // null: the ring goes on at its start
    std::size_t count;
    std::size_t bytes;  // of the whole record
    Run run;
  };

  static constexpr std::size_t least_ring_bytes = 1024;

  static constexpr std::size_t rounded(std::size_t bytes) noexcept {
    return (bytes + sizeof(Unit) - 1) / sizeof(Unit) * sizeof(Unit);
  }
  std::byte* at(std::size_t position) noexcept { return ring_[position / sizeof(Unit)].bytes; }

  template <class Task, class Item>
  static void settle(Task& task, std::span<const Item> items, Fate fate,
                     const std::exception_ptr& failure) {
    if (fate == Fate::run) {
      task(items);
    } else if (fate == Fate::skip) {
      if constexpr (requires { task.skipped(failure); }) task.skipped(failure);
    } else {
      if constexpr (requires { task.interrupted(); }) task.interrupted();
    }
  }

  // Called where no more tasks come, so that a record stays readable after it has run.
  void interrupt() noexcept {
    Header* running = nullptr;
    {
      const std::lock_guard lock(mutex_);
      running = running_;
    }
    if (running != nullptr) {
      running->invoke(payload_of(running), running->count, Fate::interrupt, nullptr);
    }
  }

  static std::byte* payload_of(Header* header) noexcept {
    return reinterpret_cast<std::byte*>(header) + sizeof(Header);
  }

  // A record never wraps: where the ring's end is too near, a header without a task skips it.
  std::byte* reserve(std::unique_lock<std::mutex>& lock, std::size_t payload, Invoke invoke,
                     std::size_t count) {
    const std::size_t bytes = sizeof(Header) + payload;
    if (bytes > ring_bytes_ / 2) {
      raise(
          "one grouped call of {} bytes of arguments does not fit a stream's queue of {} bytes; "
          "group fewer buffers",
          payload, ring_bytes_);
    }
    const std::size_t to_end = ring_bytes_ - tail_;
    const std::size_t skipped = to_end < bytes ? to_end : 0;
    changed_.wait(lock, [&] { return used_ + skipped + bytes <= ring_bytes_; });
    if (skipped >= sizeof(Header)) ::new (at(tail_)) Header{nullptr, 0, skipped, {}};
    if (skipped > 0) tail_ = 0;
    ::new (at(tail_)) Header{invoke, count, bytes, run_};
    pending_ = skipped + bytes;
    return at(tail_) + sizeof(Header);
  }

  void publish(std::unique_lock<std::mutex>& lock) {
    tail_ += reinterpret_cast<Header*>(at(tail_))->bytes;
    if (tail_ == ring_bytes_) tail_ = 0;
    used_ += pending_;
    ++issued_;
    ++queued_;
    lock.unlock();
    changed_.notify_all();
  }

  void wait_for(std::uint64_t ticket) {
    if (completed_.load(std::memory_order_acquire) < ticket) {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return completed_.load(std::memory_order_relaxed) >= ticket; });
    }
    if (failed_.load(std::memory_order_acquire)) {
      const std::lock_guard lock(mutex_);
      std::rethrow_exception(failure_);
    }
  }

  void work() noexcept {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [&] { return queued_ > 0 || stopping_; });
      if (queued_ == 0) break;
      if (stopping_ && !failure_) {
        fail(std::make_exception_ptr(UsageError("the stream was destroyed with work queued")));
      }
      std::size_t skipped = 0;
      const std::size_t to_end = ring_bytes_ - head_;
      if (to_end < sizeof(Header) || reinterpret_cast<Header*>(at(head_))->invoke == nullptr) {
        skipped = to_end;
        head_ = 0;
      }
      auto* header = reinterpret_cast<Header*>(at(head_));
      const std::exception_ptr before = failure_;
      running_ = header;
      lock.unlock();
      const bool observed = header->run.sequence != 0 && !before;
      const auto begin = observed ? Clock::now() : Clock::time_point();
      std::exception_ptr failure;
      try {
        header->invoke(payload_of(header), header->count, before ? Fate::skip : Fate::run, before);
      } catch (...) {
        failure = std::current_exception();
      }
      if (observed) {
        const Run& run = header->run;
        observer_->ran({run.sequence, run.activity, run.subject, begin, Clock::now()});
      }
      lock.lock();
      running_ = nullptr;
      if (failure) fail(failure);
      head_ += header->bytes;
      used_ -= skipped + header->bytes;
      if (head_ == ring_bytes_) head_ = 0;
      --queued_;
      completed_.store(completed_.load(std::memory_order_relaxed) + 1, std::memory_order_release);
      changed_.notify_all();
    }
  }

  void fail(const std::exception_ptr& failure) noexcept {
    failure_ = failure;
    failed_.store(true, std::memory_order_release);
  }

  std::size_t ring_bytes_;
  std::unique_ptr<Unit[]> ring_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::size_t head_ = 0;
  std::size_t tail_ = 0;
  std::size_t used_ = 0;
  std::size_t pending_ = 0;
  std::size_t queued_ = 0;
  std::uint64_t issued_ = 0;  // written by the enqueuing thread under the mutex
  std::atomic<std::uint64_t> completed_{0};
  std::atomic<bool> failed_{false};
  std::exception_ptr failure_;
  Header* running_ = nullptr;
  bool stopping_ = false;
  Run run_ = {};            // the enqueuing thread's
  bool in_caller_ = false;  // likewise
  Observer* observer_ = nullptr;
  int exceptions_;
  std::thread worker_;
};

}  // namespace shardwise::inline v0_1
