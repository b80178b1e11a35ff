#pragma once

#include <chrono>
#include <cstdint>

#include "../core/observer.hpp"
#include "host_stream.hpp"

namespace shardwise::inline v0_1 {

/// Tells an observer when a Context's work ran, on the host: the compute stream is inline, so its
/// times are the caller's, and collectives are told by their stream's worker. Every device has one
/// with these functions; `observer` may be null.
class HostTimeline {
 public:
  using Clock = std::chrono::steady_clock;

  HostTimeline(Observer* observer, HostStream& /*compute*/, HostStream& communication) noexcept
      : observer_(observer), communication_(communication) {}

  /// Whether the host runs ahead of the compute stream.
  static constexpr bool asynchronous = false;

  /// What is enqueued on the communication stream between these two is one collective.
  void begin_run(std::uint64_t sequence, Activity activity, SubjectId subject) noexcept {
    if (observer_ != nullptr) communication_.begin_run(*observer_, sequence, activity, subject);
  }
  void end_run() noexcept { communication_.end_run(); }

  /// Between these two the compute stream waits; `record` has the host's times.
  void begin_wait() noexcept {}
  void end_wait(const WaitRecord& record) noexcept {
    if (observer_ != nullptr) observer_->waited(record);
  }

  /// Between these two an optimizer's step is given to the compute stream.
  void begin_update() noexcept {
    if (observer_ != nullptr) update_begin_ = Clock::now();
  }
  void end_update(SubjectId subject) noexcept {
    if (observer_ == nullptr) return;
    observer_->record({Activity::update, subject, 0, 0, 0, true, update_begin_, Clock::now(), {}});
  }

  void mark(Mark mark, SubjectId subject) noexcept {
    if (observer_ == nullptr) return;
    const auto now = Clock::now();
    if (mark == Mark::step) observer_->mark({Mark::step_announced, no_subject, now});
    observer_->mark({mark, subject, now});
  }
  void end_step(const StepResult& result) noexcept {
    if (observer_ == nullptr) return;
    const auto now = Clock::now();
    observer_->mark({Mark::step_issued, no_subject, now});
    observer_->end_step(result, now);
  }

  /// Tells what has run meanwhile; never waits.
  void poll() noexcept {}
  /// The host waits for both streams, and everything is told.
  void flush() noexcept {}

 private:
  Observer* observer_;
  HostStream& communication_;
  Clock::time_point update_begin_;
};

}  // namespace shardwise::inline v0_1
