#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "../core/observer.hpp"
#include "../statistics.hpp"
#include "flight_recorder.hpp"
#include "records.hpp"
#include "step_log.hpp"
#include "tally.hpp"

namespace shardwise::inline v0_1 {

struct MonitorOptions {
  /// Steps at the beginning that are in no time or rate: memory is touched for the first time, and
  /// slots are found. All the same they count where there are no others.
  std::size_t warm_up = 1;
  /// Spans of the timeline that are kept for each of its two threads: the last ones. 48 bytes each.
  std::size_t spans = std::size_t{1} << 14;
  /// Steps and changes of the ledger that are kept; where there are more every second one is.
  std::size_t history = std::size_t{1} << 12;
  /// A file that rank 0 writes a JSON line to at the end of every step; empty: none.
  std::string step_log = {};
};

/// Writes down what one Context does: ContextOptions{.observer = &monitor}. It must outlive the
/// Context, and a Context has one of its own on every rank. The trainer tells it of its steps by
/// Context::end_step. It never communicates and never waits for a stream; memory is allocated when
/// it is made and while parameters are, and none in steps that follow.
///
/// snapshot() gives the numbers of this rank; monitor/report.hpp brings those of all ranks
/// together, and makes tables, traces and reports of them.
class Monitor final : public Observer {
 public:
  explicit Monitor(MonitorOptions options = {})
      : options_(std::move(options)),
        history_(options_.history),
        ledger_(options_.history),
        host_(options_.spans),
        runs_(options_.spans) {}
  Monitor(const Monitor&) = delete;
  Monitor& operator=(const Monitor&) = delete;

  /// Bytes that this rank sent since the Context was made: what Statistics::traffic would be if
  /// nobody reset it.
  [[nodiscard]] const Traffic& traffic() const noexcept { return traffic_; }
  /// Steps that ended.
  [[nodiscard]] std::uint64_t steps() const noexcept { return rank_.steps; }
  /// The last step that ended.
  [[nodiscard]] const monitor::Step& last_step() const noexcept { return last_; }
  /// False where the log of steps could not be written to its end.
  [[nodiscard]] bool step_log_is_complete() const noexcept { return log_complete_; }

  /// What was written down so far, on the host's thread between two steps or after the last one.
  [[nodiscard]] monitor::Rank snapshot() const {
    monitor::Rank result = rank_;
    const bool none_timed = result.timed_steps == 0;
    if (none_timed) {
      result.sum = warm_up_.sum;
      result.timed_steps = result.steps;
    }
    result.history = history_.values();
    result.ledger = ledger_.values();
    result.host = host_.values();
    result.clock_ns = now();
    for (std::size_t s = 0; s < result.subjects.size(); ++s) {
      monitor::detail::Tally tally = subjects_[s].timed;
      if (none_timed) tally += subjects_[s].warm_up;
      result.subjects[s].counters = tally.counters;
      result.subjects[s].forward_ns = tally.forward_ns;
      result.subjects[s].backward_ns = tally.backward_ns;
    }
    runs_.add_to(result, none_timed);
    if (none_timed) {
      result.collectives = warm_up_.collectives;
      result.payload = warm_up_.payload;
    }
    monitor::detail::share_runs(result, subjects_);
    return result;
  }

  void attach(const ObservedContext& context) noexcept override {
    rank_.rank = context.rank;
    rank_.world = context.world;
    rank_.strategy = context.strategy;
    rank_.backend = context.backend;
    rank_.processors = static_cast<int>(std::thread::hardware_concurrency());
    rank_.overlap = context.overlap;
    rank_.prefetch = context.prefetch;
    rank_.bucket_bytes = context.bucket_bytes;
    rank_.asynchronous = context.asynchronous;
    if (context.rank == 0 && !options_.step_log.empty()) {
      try {
        log_ = monitor::StepLog(options_.step_log);
      } catch (const Error&) {
        log_complete_ = false;
      }
    }
  }

  void introduce(SubjectId subject, std::string_view name, bool is_parameter,
                 std::size_t bytes) noexcept override {
    rank_.subjects.resize(std::max<std::size_t>(rank_.subjects.size(), subject + 1));
    rank_.subjects[subject].name = name;
    rank_.subjects[subject].is_parameter = is_parameter;
    rank_.subjects[subject].bytes = bytes;
    subjects_.resize(rank_.subjects.size());
    runs_.resize(rank_.subjects.size());
  }

  void record(const ActivityRecord& record) noexcept override {
    const std::int64_t begin = to_ns(record.begin);
    const std::int64_t end = to_ns(record.end);
    count(record);
    if (record.subject == no_subject) return;
    if (record.blocking || !rank_.asynchronous) interrupt(begin, end);
    auto& counter = of(record.subject, record.activity);
    const bool is_update = record.activity == Activity::update;
    if (is_update) {
      ++counter.calls;
      counter.run_ns += end - begin;
      step_.update_ns += end - begin;
      end_micro_batch(begin);
    } else if (record.blocking) {
      counter.run_ns += end - begin;
      counter.exposed_ns += end - begin;
      step_.exposed_ns += end - begin;
    }
    const auto kind = is_update                             ? monitor::SpanKind::update
                      : record.activity == Activity::scalar ? monitor::SpanKind::scalar
                                                            : monitor::SpanKind::issue;
    host_.add(
        {begin, end, record.sequence, record.wire_bytes, record.subject, record.activity, kind});
    if (record.blocking && record.sequence != 0) {  // counted above
      runs_.add(span_of_run(record.sequence, record.activity, record.subject, begin, end), false);
    }
  }

  void waited(const WaitRecord& record) noexcept override {
    const std::int64_t begin = to_ns(record.begin);
    const std::int64_t end = to_ns(record.end);
    step_.exposed_ns += end - begin;
    if (record.subject == no_subject) return;
    interrupt(begin, end);
    of(record.subject, record.awaited).exposed_ns += end - begin;
    host_.add({begin, end, 0, 0, record.subject, record.awaited, monitor::SpanKind::wait});
  }

  void ran(const RunRecord& record) noexcept override {
    runs_.add(span_of_run(record.sequence, record.activity, record.subject, to_ns(record.begin),
                          to_ns(record.end)),
              true);
  }

  void mark(const MarkRecord& record) noexcept override {
    const std::int64_t time = to_ns(record.time);
    const SubjectId subject = record.subject;
    switch (record.mark) {
      case Mark::step:
        forget_unfinished_step();
        begin_step(time);
        return;
      case Mark::step_announced:
        unfinished_ = {};
        for (auto& state : subjects_) state.issued = {};
        return;
      case Mark::step_issued:
        commit_counts();
        return;
      case Mark::micro_batch:
        interrupt(time, time);
        end_micro_batch(time);
        micro_batch_begin_ns_ = time;
        return;
      case Mark::parameter_open:
        relabel(time, {subject, subjects_[subject].gradient_is_open});
        return;
      case Mark::parameter_close:
        if (label_.subject == subject && !label_.backward) relabel(time, {});
        return;
      case Mark::gradient_open:
        subjects_[subject].gradient_is_open = true;
        relabel(time, {subject, true});
        return;
      case Mark::gradient_close:
        subjects_[subject].gradient_is_open = false;
        if (label_.subject == subject) relabel(time, {});
        return;
    }
  }

  void end_step(const StepResult& result, ActivityRecord::TimePoint at) noexcept override {
    const std::int64_t time = to_ns(at);
    interrupt(time, time);
    end_micro_batch(time);
    step_.number = rank_.steps;
    step_.loss = result.loss;
    step_.tokens = result.tokens;
    step_.end_ns = time;
    step_.peak_bytes = rank_.peak.held.total();
    host_.add({step_.begin_ns, time, step_.number, 0, no_subject, Activity::all_gather,
               monitor::SpanKind::step});
    commit_times();
    history_.add(step_);
    log_complete_ = log_.write(step_) && log_complete_;
    last_ = step_;
    ++rank_.steps;
    micro_batches_ = 0;
    begin_step(time);
  }

  void hold(const LedgerRecord& record) noexcept override {
    std::size_t& held = held_[record.kind];
    held = static_cast<std::size_t>(static_cast<std::int64_t>(held) + record.change);
    ledger_.add({now(), held_});
    const std::size_t total = held_.total();
    if (record.change >= static_cast<std::int64_t>(total / 100)) growth_ = record;
    if (total <= rank_.peak.held.total()) return;
    rank_.peak = {held_, growth_.kind, static_cast<std::uint64_t>(growth_.change), growth_.subject,
                  rank_.steps};
  }

 private:
  struct Sums {
    monitor::Step sum;
    std::uint64_t collectives = 0;
    std::uint64_t payload = 0;
  };
  /// What the host computes: with the weights of which parameter, or for its gradient.
  struct Label {
    SubjectId subject = no_subject;
    bool backward = false;
  };

  [[nodiscard]] static std::int64_t to_ns(std::chrono::steady_clock::time_point time) noexcept {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(time.time_since_epoch()).count();
  }
  [[nodiscard]] static std::int64_t now() noexcept {
    return to_ns(std::chrono::steady_clock::now());
  }

  [[nodiscard]] monitor::Counter& issued(SubjectId subject, Activity activity) noexcept {
    return subjects_[subject].issued[activity];
  }
  [[nodiscard]] monitor::Counter& of(SubjectId subject, Activity activity) noexcept {
    return subjects_[subject].now[activity];
  }
  [[nodiscard]] static monitor::Span span_of_run(std::uint64_t sequence, Activity activity,
                                                 SubjectId subject, std::int64_t begin,
                                                 std::int64_t end) noexcept {
    return {begin, end, sequence, 0, subject, activity, monitor::SpanKind::run};
  }

  void count(const ActivityRecord& record) noexcept {
    switch (record.activity) {
      case Activity::all_gather:
        traffic_.all_gather += record.wire_bytes;
        ++traffic_.all_gather_calls;
        break;
      case Activity::reduce_scatter:
        traffic_.reduce_scatter += record.wire_bytes;
        ++traffic_.reduce_scatter_calls;
        break;
      case Activity::all_reduce:
        traffic_.all_reduce += record.wire_bytes;
        ++traffic_.all_reduce_calls;
        break;
      case Activity::scalar:
        ++traffic_.scalar_calls;
        if (record.subject != no_subject) ++issued(record.subject, record.activity).calls;
        return;
      case Activity::update:
        return;
    }
    ++unfinished_.collectives;
    unfinished_.payload += record.bytes;
    const auto activity = static_cast<std::size_t>(record.activity);
    for (const ActivityPart& part : record.parts) {
      auto& counter = issued(part.subject, record.activity);
      ++counter.calls;
      counter.wire_bytes += part.wire_bytes;
      subjects_[part.subject].leader[activity] = record.subject;
    }
  }

  void begin_step(std::int64_t time) noexcept {
    step_ = {};
    step_.begin_ns = time;
    segment_begin_ns_ = time;
    is_in_step_ = true;
  }
  // What the host did between the last step and one that it begins itself is in no step.
  void forget_unfinished_step() noexcept {
    for (auto& subject : subjects_) subject.now = {};
    runs_.forget_unfinished();
  }

  void commit_counts() noexcept {
    const bool warms_up = issued_steps_++ < options_.warm_up;
    (warms_up ? warm_up_.collectives : rank_.collectives) += unfinished_.collectives;
    (warms_up ? warm_up_.payload : rank_.payload) += unfinished_.payload;
    unfinished_ = {};
    for (auto& subject : subjects_) subject.commit_counts(warms_up);
  }
  void commit_times() noexcept {
    const bool warms_up = rank_.steps < options_.warm_up;
    monitor::Step& sum = warms_up ? warm_up_.sum : rank_.sum;
    sum.tokens += step_.tokens;
    sum.end_ns += step_.total_ns();
    sum.exposed_ns += step_.exposed_ns;
    sum.update_ns += step_.update_ns;
    sum.loss = step_.loss;
    sum.peak_bytes = step_.peak_bytes;
    if (!warms_up) ++rank_.timed_steps;
    for (auto& subject : subjects_) subject.commit_times(warms_up);
    runs_.commit(warms_up);
  }

  // The host stopped to compute at `begin` and goes on at `end`.
  void interrupt(std::int64_t begin, std::int64_t end) noexcept {
    if (!is_in_step_) begin_step(begin);
    const std::int64_t computed = begin - segment_begin_ns_;
    if (label_.subject != no_subject && computed > 0) {
      auto& tally = subjects_[label_.subject].now;
      (label_.backward ? tally.backward_ns : tally.forward_ns) += computed;
      host_.add({segment_begin_ns_, begin, 0, 0, label_.subject, Activity::update,
                 label_.backward ? monitor::SpanKind::backward : monitor::SpanKind::forward});
    }
    segment_begin_ns_ = std::max(segment_begin_ns_, end);
  }
  void relabel(std::int64_t time, Label label) noexcept {
    interrupt(time, time);
    label_ = label;
  }
  void end_micro_batch(std::int64_t time) noexcept {
    if (micro_batch_begin_ns_ == 0) return;
    host_.add({micro_batch_begin_ns_, time, micro_batches_++, 0, no_subject, Activity::all_gather,
               monitor::SpanKind::micro_batch});
    micro_batch_begin_ns_ = 0;
  }

  MonitorOptions options_;
  monitor::Rank rank_;  // its lists apart
  std::vector<monitor::detail::SubjectTally> subjects_;
  Traffic traffic_;
  monitor::Step step_;  // the unfinished one
  monitor::Step last_;
  Sums unfinished_;
  Sums warm_up_;
  std::uint64_t issued_steps_ = 0;  // that the host has ended
  bool is_in_step_ = false;
  Label label_;
  std::int64_t segment_begin_ns_ = 0;
  std::int64_t micro_batch_begin_ns_ = 0;  // 0: none has begun
  std::uint64_t micro_batches_ = 0;
  Bytes held_;
  LedgerRecord growth_ = {StateKind::slots, 0, no_subject};  // the last that counts
  monitor::ThinnedSeries<monitor::Step> history_;
  monitor::ThinnedSeries<monitor::LedgerPoint> ledger_;
  monitor::FlightRecorder<monitor::Span> host_;
  monitor::StepLog log_;
  bool log_complete_ = true;

  monitor::detail::RunTally runs_;
};

}  // namespace shardwise::inline v0_1
