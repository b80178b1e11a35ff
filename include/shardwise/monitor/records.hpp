#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "../core/observer.hpp"
#include "../memory.hpp"

/// @file
/// What a Monitor wrote down on one rank: plain values, that travel between ranks and into files.
/// Times are in nanoseconds; points in time count from the steady clock's start.
namespace shardwise::inline v0_1::monitor {

inline constexpr std::size_t activity_count = activities.size();

/// Of one activity of one subject in all steps that were timed.
struct Counter {
  std::uint64_t calls = 0;  ///< collectives that the subject had a part in
  std::uint64_t wire_bytes = 0;
  std::int64_t run_ns = 0;      ///< on its stream, the other ranks' arrival included
  std::int64_t exposed_ns = 0;  ///< the host stood still for it

  Counter& operator+=(const Counter& other) noexcept {
    calls += other.calls;
    wire_bytes += other.wire_bytes;
    run_ns += other.run_ns;
    exposed_ns += other.exposed_ns;
    return *this;
  }
};

/// A parameter, or a call that belongs to none.
struct Subject {
  std::string name;
  bool is_parameter = true;
  std::uint64_t bytes = 0;  ///< of the whole parameter in the lease type
  std::array<Counter, activity_count> counters = {};
  std::int64_t forward_ns = 0;   ///< the host computed with its weights lent
  std::int64_t backward_ns = 0;  ///< with its gradient lent

  [[nodiscard]] Counter& operator[](Activity activity) noexcept {
    return counters[static_cast<std::size_t>(activity)];
  }
  [[nodiscard]] const Counter& operator[](Activity activity) const noexcept {
    return counters[static_cast<std::size_t>(activity)];
  }
};

/// One step. What is neither exposed nor an update is computation.
struct Step {
  std::uint64_t number = 0;
  double loss = 0;
  std::uint64_t tokens = 0;  ///< of all ranks
  std::int64_t begin_ns = 0;
  std::int64_t end_ns = 0;
  std::int64_t exposed_ns = 0;   ///< the host stood still for communication
  std::int64_t update_ns = 0;    ///< optimizer
  std::uint64_t peak_bytes = 0;  ///< held on this rank, so far

  [[nodiscard]] std::int64_t total_ns() const noexcept { return end_ns - begin_ns; }
  [[nodiscard]] std::int64_t compute_ns() const noexcept {
    return total_ns() - exposed_ns - update_ns;
  }
};

/// What was held from this time on.
struct LedgerPoint {
  std::int64_t time_ns = 0;
  Bytes held;
};

/// When most was held, and the last allocation on the way there that was worth a hundredth of it.
struct Peak {
  Bytes held;
  StateKind kind = StateKind::parameters;  ///< of that allocation
  std::uint64_t allocation = 0;            ///< its bytes
  SubjectId subject = no_subject;          ///< whom it was for
  std::uint64_t step = 0;                  ///< 0: before the first one or in it
};

/// What a span of the timeline shows.
enum class SpanKind : std::uint8_t {
  step,         ///< the whole step
  micro_batch,  ///< one micro-batch
  forward,      ///< computation with a parameter's weights lent
  backward,     ///< computation with its gradient lent
  issue,        ///< the host issues a collective
  wait,         ///< the host stands still for communication
  scalar,       ///< a group scalar, which the host waits for
  update,       ///< the optimizer
  run           ///< a collective on the communication stream
};

/// A piece of the timeline.
struct Span {
  std::int64_t begin_ns = 0;
  std::int64_t end_ns = 0;
  std::uint64_t sequence = 0;  ///< issue and run: of the collective; step, micro_batch: its number
  std::uint64_t bytes = 0;     ///< issue: sent by this rank
  SubjectId subject = no_subject;
  Activity activity = Activity::all_gather;
  SpanKind kind = SpanKind::step;
};

/// Everything that one rank wrote down.
struct Rank {
  int rank = 0;
  int world = 1;
  std::string strategy;
  std::string backend;
  int processors = 0;         ///< of the rank's machine; 0: unknown
  bool asynchronous = false;  ///< host's spans of the kinds issue and scalar have the host's times
  bool overlap = true;
  int prefetch = 0;
  std::uint64_t bucket_bytes = 0;

  std::uint64_t steps = 0;        ///< that ended
  std::uint64_t timed_steps = 0;  ///< without those that warm up: what counters and sums are of
  std::uint64_t collectives = 0;  ///< of parameters and gradients in timed steps
  std::uint64_t payload = 0;      ///< bytes of the whole buffers of these
  std::int64_t least_run_ns = 0;  ///< the shortest of these; 0: none ran
  Step sum;                       ///< of the timed steps, from 0 on: begin_ns is 0
  std::vector<Subject> subjects;  ///< by SubjectId
  std::vector<Step> history;      ///< evenly thinned out where there were many
  std::vector<LedgerPoint> ledger;
  Peak peak;
  std::vector<Span> host;           ///< of the host and the compute stream: the last ones
  std::vector<Span> communication;  ///< of the communication stream
  std::int64_t clock_ns = 0;        ///< this rank's clock at an instant that all ranks share
};

}  // namespace shardwise::inline v0_1::monitor
