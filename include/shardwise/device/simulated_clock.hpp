#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>

#include "../core/stream_ref.hpp"

namespace shardwise::inline v0_1 {

/// What a simulated device does.
enum class SimulatedWork : std::uint8_t {
  compute,       ///< the host's own kernels, told by SimulatedClock::compute
  memory,        ///< zeroing, copies and casts
  update,        ///< optimizer steps and norms
  communication  ///< collectives
};

/// How fast a device does its own work, collectives apart.
struct Processor {
  double memory_bandwidth = 1e12;  ///< bytes read and written in a second
  double update_bandwidth = 0;     ///< the same for optimizer steps; 0: memory_bandwidth
  double norm_bandwidth = 0;       ///< the same for norms; 0: memory_bandwidth
  double cast_bandwidth = 0;       ///< the same for casts; 0: memory_bandwidth
  double launch = 0;               ///< seconds of the host for each piece of work that it enqueues
  /// A CPU: the host itself computes, and no call returns before its work is done.
  bool inline_compute = false;
  /// There: collectives of fewer bytes run in the caller (ContextOptions::overlap_from).
  std::size_t overlap_from = 0;
  /// The part of the compute's speed that a collective takes while it runs: 1 where ranks have no
  /// core to spare, a few hundredths for the cores that NCCL's kernels take of a GPU.
  double communication_share = 0;

  [[nodiscard]] double update_rate() const noexcept {
    return update_bandwidth > 0 ? update_bandwidth : memory_bandwidth;
  }
  [[nodiscard]] double norm_rate() const noexcept {
    return norm_bandwidth > 0 ? norm_bandwidth : memory_bandwidth;
  }
  [[nodiscard]] double cast_rate() const noexcept {
    return cast_bandwidth > 0 ? cast_bandwidth : memory_bandwidth;
  }
  [[nodiscard]] bool operator==(const Processor&) const = default;
};

class SimulatedClock;

/// The order of the work of one stream, or of several that are one.
struct SimulatedTimeline {
  SimulatedClock* clock;
  bool computes;           ///< the compute stream's
  double free = 0;         ///< when all that was enqueued so far has run
  bool in_caller = false;  ///< for now, the host itself does what is enqueued
};

/// The virtual time of one rank: its host thread, its compute stream and its communication stream.
/// Seconds from its making. It outlives every Context, stream and communicator that is told of it.
class SimulatedClock {
 public:
  explicit SimulatedClock(const Processor& processor) : processor_(processor) {}
  SimulatedClock(const SimulatedClock&) = delete;
  SimulatedClock& operator=(const SimulatedClock&) = delete;

  [[nodiscard]] const Processor& processor() const noexcept { return processor_; }
  /// For ContextOptions::stream of a Context<SimulatedDevice>.
  [[nodiscard]] StreamRef ref() noexcept { return {MemoryKind::simulated, &compute_}; }

  /// When the host is, and when all streams have run what they have.
  [[nodiscard]] double now() const noexcept { return host_; }
  [[nodiscard]] double end() const noexcept {
    return std::max({host_, compute_.free, communication_.free});
  }
  /// Seconds of work so far, of all streams.
  [[nodiscard]] double worked(SimulatedWork work) const noexcept {
    return worked_[static_cast<std::size_t>(work)];
  }

  [[nodiscard]] SimulatedTimeline& compute_line() noexcept { return compute_; }
  [[nodiscard]] SimulatedTimeline& communication_line() noexcept { return communication_; }

  /// The host's own kernels: `seconds` of them on the compute stream.
  void compute(double seconds) { enqueue(compute_, seconds, SimulatedWork::compute); }

  /// Work of `seconds` at the end of `line`.
  void enqueue(SimulatedTimeline& line, double seconds, SimulatedWork work) {
    // What a communication stream does beside collectives (casts, copies) is part of them.
    if (!line.computes) work = SimulatedWork::communication;
    worked_[static_cast<std::size_t>(work)] += seconds;
    if (is_inline(line)) {
      line.free = finish(std::max(host_, line.free), seconds);
      host_ = line.free;
      return;
    }
    host_ += processor_.launch;
    const double begin = std::max(host_, line.free);
    if (line.computes) {
      line.free = finish(begin, seconds);
    } else {
      line.free = begin + seconds;
      taken_.push_back({begin, line.free});
    }
  }
  /// Later work of `line` begins at `time` or later.
  void wait(SimulatedTimeline& line, double time) noexcept {
    line.free = std::max(line.free, time);
    if (is_inline(line)) host_ = std::max(host_, line.free);
  }
  /// The host goes on at `time` or later.
  void host_waits(double time) noexcept { host_ = std::max(host_, time); }

  [[nodiscard]] bool is_inline(const SimulatedTimeline& line) const noexcept {
    return line.in_caller || (processor_.inline_compute && line.computes);
  }

 private:
  struct Interval {
    double begin;
    double end;
  };

  // When `seconds` of compute are done that begin at `begin`, beside collectives that take their
  // share. Those that are over are forgotten: compute goes forwards.
  [[nodiscard]] double finish(double begin, double seconds) {
    while (!taken_.empty() && taken_.front().end <= begin) taken_.pop_front();
    const double speed = 1 - processor_.communication_share;
    double time = begin;
    for (const Interval& interval : taken_) {
      const double free = std::max(0.0, interval.begin - time);
      if (seconds <= free) break;
      seconds -= free;
      time += free;
      const double beside = std::max(0.0, interval.end - time);
      if (seconds < beside * speed) return time + seconds / speed;
      seconds -= beside * speed;
      time += beside;
    }
    return time + seconds;
  }

  Processor processor_;
  SimulatedTimeline compute_{this, true};
  SimulatedTimeline communication_{this, false};
  double host_ = 0;
  std::array<double, 4> worked_{};
  std::deque<Interval> taken_;  // when collectives run; in order, apart
};

}  // namespace shardwise::inline v0_1
