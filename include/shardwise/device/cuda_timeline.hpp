#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "../core/observer.hpp"
#include "cuda_error.hpp"
#include "cuda_guard.hpp"
#include "cuda_stream.hpp"

namespace shardwise::inline v0_1 {

namespace detail::cuda {

/// What an observer is told once a stream has come there.
struct TimedEntry {
  enum class Kind : std::uint8_t { run, wait, update, mark, end_step };

  Kind kind = Kind::mark;
  Mark mark = Mark::step;
  Activity activity = Activity::all_gather;
  SubjectId subject = no_subject;
  std::uint64_t sequence = 0;
  StepResult result = {};
  cudaEvent_t begin = nullptr;  // null: a point
  cudaEvent_t end = nullptr;
  std::chrono::steady_clock::time_point issued = {};  ///< when the host recorded the end
};

/// Entries of one stream, in its order; of fixed size.
class TimedQueue {
 public:
  explicit TimedQueue(std::size_t capacity) : entries_(capacity) {}

  std::chrono::steady_clock::time_point told;  ///< when the last that was told had ended

  [[nodiscard]] bool empty() const noexcept { return count_ == 0; }
  [[nodiscard]] std::size_t room() const noexcept { return entries_.size() - count_; }
  [[nodiscard]] TimedEntry& front() noexcept { return entries_[first_]; }
  void push(const TimedEntry& entry) noexcept {
    entries_[(first_ + count_++) % entries_.size()] = entry;
  }
  void pop() noexcept {
    first_ = (first_ + 1) % entries_.size();
    --count_;
  }

 private:
  std::vector<TimedEntry> entries_;
  std::size_t first_ = 0;
  std::size_t count_ = 0;
};

/// The events and queues of a timeline that somebody observes. Events are made at once and used
/// again and again; the host waits for the device once, at the beginning, to set its clock.
class ObservedStreams {
 public:
  using Clock = std::chrono::steady_clock;

  ObservedStreams(Observer& observer, CudaStream& compute, CudaStream& communication)
      : observer_(observer), compute_(compute), communication_(communication) {
    const CudaDeviceGuard guard(compute.device());
    free_.reserve(event_count);
    try {
      for (std::size_t i = 0; i < event_count; ++i) {
        cudaEvent_t event = nullptr;
        check(cudaEventCreateWithFlags(&event, cudaEventDefault), "cudaEventCreateWithFlags");
        free_.push_back(event);
      }
      anchor_ = take();
      check(cudaEventRecord(anchor_, compute.native()), "cudaEventRecord");
      check(cudaEventSynchronize(anchor_), "cudaEventSynchronize");
    } catch (...) {
      destroy();
      throw;
    }
    anchor_time_ = Clock::now();
  }
  ObservedStreams(const ObservedStreams&) = delete;
  ObservedStreams& operator=(const ObservedStreams&) = delete;
  ~ObservedStreams() { destroy(); }

  [[nodiscard]] Observer& observer() noexcept { return observer_; }

  /// The device is so far behind that what can be missed is not timed.
  [[nodiscard]] bool is_crowded() noexcept {
    const auto crowded = [&] {
      return free_.size() < 2 * reserve || points_.room() < reserve || runs_.room() < reserve;
    };
    if (crowded()) poll();
    return crowded();
  }

  /// Null where all events are in use.
  [[nodiscard]] cudaEvent_t record(CudaStream& stream) noexcept {
    cudaEvent_t event = take();
    if (event == nullptr) return nullptr;
    recorded_ = Clock::now();
    const cudaError_t status = cudaEventRecord(event, stream.native());
    if (status == cudaSuccess) return event;
    forget(status);
    give_back(event);
    return nullptr;
  }
  void push(CudaStream& stream, TimedEntry entry) noexcept {
    TimedQueue& queue = stream.native() == compute_.native() ? points_ : runs_;
    if (queue.room() == 0 || entry.end == nullptr) {
      give_back(entry.begin);
      give_back(entry.end);
      return;
    }
    entry.issued = recorded_;
    queue.push(entry);
  }
  void give_back(cudaEvent_t event) noexcept {
    if (event != nullptr) free_.push_back(event);
  }

  void poll() noexcept {
    for (TimedQueue* queue : {&points_, &runs_}) {
      while (!queue->empty()) {
        TimedEntry entry = queue->front();
        const cudaError_t status = cudaEventQuery(entry.end);
        forget(status);
        if (status == cudaErrorNotReady) break;
        queue->pop();
        if (status == cudaSuccess) tell(entry, queue->told);
        give_back(entry.begin);
        give_back(entry.end);
      }
    }
  }

  void flush() noexcept {
    compute_.drain();
    communication_.drain();
    poll();
  }

 private:
  static constexpr std::size_t reserve = 64;  // for what tells steps apart
  static constexpr std::size_t event_count = 4096;
  static constexpr std::size_t queue_capacity = 2048;

  [[nodiscard]] cudaEvent_t take() noexcept {
    if (free_.empty()) return nullptr;
    cudaEvent_t event = free_.back();
    free_.pop_back();
    return event;
  }

  // What has run was given to the device before, and is seen to have run after: where the clocks of
  // the device and the host have drifted apart, the device's is set. A float of milliseconds is
  // exact to a tenth of a microsecond for a second only: the next one counts from this event.
  void set_clock(TimedEntry& entry, Clock::time_point& end) noexcept {
    const auto now = Clock::now();
    const auto right = std::clamp(end, std::min(entry.issued, now), now);
    anchor_time_ += right - end;
    end = right;
    if (end - anchor_time_ < std::chrono::seconds(1)) return;
    std::swap(anchor_, entry.end);
    anchor_time_ = end;
  }
  [[nodiscard]] bool time_of(cudaEvent_t event, Clock::time_point& time) noexcept {
    float milliseconds = 0;
    const cudaError_t status = cudaEventElapsedTime(&milliseconds, anchor_, event);
    if (status != cudaSuccess) {
      forget(status);
      return false;
    }
    time = anchor_time_ + std::chrono::duration_cast<Clock::duration>(
                              std::chrono::duration<double, std::milli>(milliseconds));
    return true;
  }

  // `told`: the end of what the stream did before, which stays where a clock is set back meanwhile.
  void tell(TimedEntry& entry, Clock::time_point& told) noexcept {
    Clock::time_point begin, end;
    if (!time_of(entry.end, end)) return;
    const auto before = end;
    if (entry.begin == nullptr || !time_of(entry.begin, begin)) begin = end;
    set_clock(entry, end);
    begin = std::max(begin + (end - before), told);
    end = told = std::max(end, begin);
    switch (entry.kind) {
      case TimedEntry::Kind::run:
        observer_.ran({entry.sequence, entry.activity, entry.subject, begin, end});
        if (communication_.native() == compute_.native()) {  // nothing runs beside it
          observer_.waited({entry.subject, entry.activity, begin, end});
        }
        break;
      case TimedEntry::Kind::wait:
        observer_.waited({entry.subject, entry.activity, begin, end});
        break;
      case TimedEntry::Kind::update:
        observer_.record({Activity::update, entry.subject, 0, 0, 0, true, begin, end, {}});
        break;
      case TimedEntry::Kind::mark:
        observer_.mark({entry.mark, entry.subject, end});
        break;
      case TimedEntry::Kind::end_step:
        observer_.end_step(entry.result, end);
        break;
    }
  }

  void destroy() noexcept {
    for (TimedQueue* queue : {&points_, &runs_}) {
      for (; !queue->empty(); queue->pop()) {
        give_back(queue->front().begin);
        give_back(queue->front().end);
      }
    }
    give_back(anchor_);
    for (cudaEvent_t event : free_) static_cast<void>(cudaEventDestroy(event));
  }

  Observer& observer_;
  CudaStream& compute_;
  CudaStream& communication_;
  std::vector<cudaEvent_t> free_;
  TimedQueue points_{queue_capacity};  // of the compute stream
  TimedQueue runs_{queue_capacity};    // of the communication stream
  cudaEvent_t anchor_ = nullptr;
  Clock::time_point anchor_time_;
  Clock::time_point recorded_;  // when the last event was given to the device
};

}  // namespace detail::cuda

/// HostTimeline for CUDA: what ran on the streams is timed by events and told when the host comes
/// by again, in stream order, all of it on the host's thread. Nothing waits for the device but
/// flush() and the constructor, once.
class CudaTimeline {
 public:
  CudaTimeline(Observer* observer, CudaStream& compute, CudaStream& communication)
      : compute_(compute), communication_(communication) {
    if (observer == nullptr) return;
    streams_ = std::make_unique<detail::cuda::ObservedStreams>(*observer, compute, communication);
  }

  static constexpr bool asynchronous = true;

  void begin_run(std::uint64_t sequence, Activity activity, SubjectId subject) noexcept {
    if (!streams_) return;
    streams_->poll();
    if (streams_->is_crowded()) return;
    run_ = {Kind::run, {}, activity, subject, sequence, {}, streams_->record(communication_), {}};
  }
  void end_run() noexcept { end(communication_, run_); }

  void begin_wait() noexcept {
    if (!streams_ || streams_->is_crowded()) return;
    wait_ = {Kind::wait, {}, {}, {}, 0, {}, streams_->record(compute_), {}};
  }
  void end_wait(const WaitRecord& record) noexcept {
    wait_.activity = record.awaited;
    wait_.subject = record.subject;
    end(compute_, wait_);
  }

  void begin_update() noexcept {
    if (!streams_ || streams_->is_crowded()) return;
    update_ = {Kind::update, {}, {}, {}, 0, {}, streams_->record(compute_), {}};
  }
  void end_update(SubjectId subject) noexcept {
    update_.subject = subject;
    end(compute_, update_);
  }

  void mark(Mark mark, SubjectId subject) noexcept {
    if (!streams_) return;
    if (mark == Mark::step) {
      streams_->observer().mark(
          {Mark::step_announced, no_subject, std::chrono::steady_clock::now()});
    } else if (streams_->is_crowded()) {
      return;
    }
    streams_->push(compute_,
                   {Kind::mark, mark, {}, subject, 0, {}, nullptr, streams_->record(compute_)});
  }
  void end_step(const StepResult& result) noexcept {
    if (!streams_) return;
    streams_->poll();
    streams_->observer().mark({Mark::step_issued, no_subject, std::chrono::steady_clock::now()});
    streams_->push(compute_,
                   {Kind::end_step, {}, {}, {}, 0, result, nullptr, streams_->record(compute_)});
  }

  void poll() noexcept {
    if (streams_) streams_->poll();
  }
  void flush() noexcept {
    if (streams_) streams_->flush();
  }

 private:
  using Kind = detail::cuda::TimedEntry::Kind;

  void end(CudaStream& stream, detail::cuda::TimedEntry& entry) noexcept {
    if (!streams_) return;
    entry.end = entry.begin == nullptr ? nullptr : streams_->record(stream);
    streams_->push(stream, std::exchange(entry, {}));
  }

  CudaStream& compute_;
  CudaStream& communication_;
  std::unique_ptr<detail::cuda::ObservedStreams> streams_;
  detail::cuda::TimedEntry run_, wait_, update_;  // that have begun
};

}  // namespace shardwise::inline v0_1
