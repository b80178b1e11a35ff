#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

#include "../core/observer.hpp"
#include "flight_recorder.hpp"
#include "records.hpp"

/// @file
/// How a Monitor counts: what the unfinished step adds up to is moved to the steps that warm up, or
/// to those that are timed, when the step ends.
namespace shardwise::inline v0_1::monitor {

namespace detail {

/// What was counted of one subject in some steps.
struct Tally {
  std::array<Counter, activity_count> counters = {};
  std::int64_t forward_ns = 0;
  std::int64_t backward_ns = 0;

  [[nodiscard]] Counter& operator[](Activity activity) noexcept {
    return counters[static_cast<std::size_t>(activity)];
  }
  Tally& operator+=(const Tally& other) noexcept {
    for (std::size_t a = 0; a < activity_count; ++a) counters[a] += other.counters[a];
    forward_ns += other.forward_ns;
    backward_ns += other.backward_ns;
    return *this;
  }
};

/// What the host's thread knows of one subject.
struct SubjectTally {
  Tally issued;  // calls and bytes of the unfinished step
  Tally now;     // times of the unfinished step
  Tally warm_up;
  Tally timed;
  std::array<SubjectId, activity_count> leader = {};  // of its last bucket
  bool gradient_is_open = false;

  /// Calls and bytes are of the steps in which they were issued, which the host may end long before
  /// the device does.
  void commit_counts(bool warms_up) noexcept {
    (warms_up ? warm_up : timed) += issued;
    issued = {};
  }
  void commit_times(bool warms_up) noexcept {
    (warms_up ? warm_up : timed) += now;
    now = {};
  }
};

/// What ran on the communication stream; its thread writes and the host's reads.
class RunTally {
 public:
  explicit RunTally(std::size_t spans) : spans_(spans) {}

  void resize(std::size_t subjects) {
    const std::lock_guard lock(mutex_);
    runs_.resize(subjects);
  }

  /// `counts`: its time is not counted elsewhere.
  void add(const Span& span, bool counts) noexcept {
    const std::lock_guard lock(mutex_);
    const std::int64_t time = span.end_ns - span.begin_ns;
    if (counts && span.subject < runs_.size()) {
      runs_[span.subject].now[static_cast<std::size_t>(span.activity)] += time;
    }
    if (least_ns_ == 0 || time < least_ns_) least_ns_ = time;
    spans_.add(span);
  }

  void commit(bool warms_up) noexcept {
    const std::lock_guard lock(mutex_);
    for (Runs& runs : runs_) {
      Times& to = warms_up ? runs.warm_up : runs.timed;
      for (std::size_t a = 0; a < activity_count; ++a) to[a] += runs.now[a];
      runs.now = {};
    }
  }
  void forget_unfinished() noexcept {
    const std::lock_guard lock(mutex_);
    for (Runs& runs : runs_) runs.now = {};
  }

  /// Adds what it has to a rank's records.
  void add_to(Rank& rank, bool with_warm_up) const {
    const std::lock_guard lock(mutex_);
    rank.communication = spans_.values();
    rank.least_run_ns = least_ns_;
    for (std::size_t s = 0; s < std::min(runs_.size(), rank.subjects.size()); ++s) {
      for (std::size_t a = 0; a < activity_count; ++a) {
        std::int64_t& run_ns = rank.subjects[s].counters[a].run_ns;
        run_ns += runs_[s].timed[a];
        if (with_warm_up) run_ns += runs_[s].warm_up[a];
      }
    }
  }

 private:
  using Times = std::array<std::int64_t, activity_count>;
  struct Runs {
    Times now = {}, warm_up = {}, timed = {};
  };

  mutable std::mutex mutex_;
  std::vector<Runs> runs_;
  FlightRecorder<Span> spans_;
  std::int64_t least_ns_ = 0;
};

/// The time of a bucket was counted for its first member: each gets its part by its bytes.
inline void share_runs(Rank& rank, const std::vector<SubjectTally>& subjects) {
  for (const Activity activity :
       {Activity::all_gather, Activity::reduce_scatter, Activity::all_reduce}) {
    const auto a = static_cast<std::size_t>(activity);
    std::vector<double> bytes(rank.subjects.size());
    std::vector<Counter> whole(rank.subjects.size());
    for (std::size_t s = 0; s < rank.subjects.size(); ++s) {
      whole[s] = rank.subjects[s].counters[a];
      if (whole[s].calls == 0) continue;
      bytes[subjects[s].leader[a]] += static_cast<double>(whole[s].wire_bytes);
    }
    for (std::size_t s = 0; s < rank.subjects.size(); ++s) {
      const SubjectId leader = subjects[s].leader[a];
      if (whole[s].calls == 0 || bytes[leader] == 0) continue;
      const double part = static_cast<double>(whole[s].wire_bytes) / bytes[leader];
      rank.subjects[s].counters[a].run_ns =
          static_cast<std::int64_t>(part * static_cast<double>(whole[leader].run_ns));
      if (rank.overlap) continue;  // without, the host stood still for the whole bucket
      rank.subjects[s].counters[a].exposed_ns =
          static_cast<std::int64_t>(part * static_cast<double>(whole[leader].exposed_ns));
    }
  }
}

}  // namespace detail
}  // namespace shardwise::inline v0_1::monitor
