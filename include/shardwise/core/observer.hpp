#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "state_kind.hpp"

namespace shardwise::inline v0_1 {

/// A parameter, or a call that belongs to none (a norm, a loss's mean), by the number that its
/// Context gave it: 0, 1, ... in the order in which it met them.
using SubjectId = std::uint32_t;
inline constexpr SubjectId no_subject = ~SubjectId{0};

/// What a Context does.
enum class Activity : std::uint8_t {
  all_gather,      ///< of parameters
  reduce_scatter,  ///< of gradients
  all_reduce,      ///< of gradients
  scalar,          ///< a group scalar, norm or flag, which the host waits for
  update           ///< an optimizer's step over one parameter
};

/// All of them, in order.
inline constexpr std::array<Activity, 5> activities{Activity::all_gather, Activity::reduce_scatter,
                                                    Activity::all_reduce, Activity::scalar,
                                                    Activity::update};

/// "all_gather", "reduce_scatter", "all_reduce", "scalar" or "update".
[[nodiscard]] constexpr std::string_view name_of(Activity activity) noexcept {
  constexpr std::string_view names[] = {"all_gather", "reduce_scatter", "all_reduce", "scalar",
                                        "update"};
  return names[static_cast<std::size_t>(activity)];
}

/// The share of one parameter in a collective.
struct ActivityPart {
  SubjectId subject;
  std::uint64_t wire_bytes;  ///< by the formula of Traffic; all parts add up to the collective's
};

/// Something that was issued (collectives of parameters and gradients) or done (the rest).
struct ActivityRecord {
  using TimePoint = std::chrono::steady_clock::time_point;

  Activity activity;
  SubjectId subject;         ///< the first of a bucket's
  std::uint64_t sequence;    ///< of collectives of parameters and gradients: 1, 2, ...; else 0
  std::uint64_t bytes;       ///< of the whole buffer, in the type on the wire
  std::uint64_t wire_bytes;  ///< that this rank sends, by the formula of Traffic
  bool blocking;             ///< it ran between begin and end, and the host stood still for it
  TimePoint begin;           ///< when the host entered the call
  TimePoint end;             ///< when the host left it
  std::span<const ActivityPart> parts = {};  ///< valid during the call
};

/// The compute stream (on CPUs the host) stood still until an earlier collective had run.
struct WaitRecord {
  SubjectId subject;  ///< whose collective had not run: of what is wanted, or what has its slot
  Activity awaited;   ///< which one
  ActivityRecord::TimePoint begin;
  ActivityRecord::TimePoint end;
};

/// When a collective ran on the communication stream, arrival of the other ranks included.
struct RunRecord {
  std::uint64_t sequence;  ///< of its ActivityRecord, which may come later
  Activity activity;
  SubjectId subject;
  ActivityRecord::TimePoint begin;
  ActivityRecord::TimePoint end;
};

/// What the host says of its progress, or does with leases.
enum class Mark : std::uint8_t {
  step,             ///< a step begins
  micro_batch,      ///< a micro-batch begins
  step_announced,   ///< told at once, before `step`: what was issued since the last step is of none
  step_issued,      ///< told at once, before end_step(): what was issued so far is of this step
  parameter_open,   ///< a parameter was lent
  parameter_close,  ///< its last lease ended
  gradient_open,    ///< a gradient was lent
  gradient_close    ///< its last lease ended
};

struct MarkRecord {
  Mark mark;
  SubjectId subject;               ///< of leases
  ActivityRecord::TimePoint time;  ///< when the compute stream came there
};

/// What the host says at the end of a step.
struct StepResult {
  double loss = 0;
  std::uint64_t tokens = 0;  ///< (or samples) of all ranks together
};

/// The ledger of a Context changed.
struct LedgerRecord {
  StateKind kind;
  std::int64_t change;  ///< bytes
  SubjectId subject;    ///< which parameter it was for: the first user, where that is a slot
};

/// What a Context is, told once.
struct ObservedContext {
  int rank;
  int world;
  std::string_view strategy;  ///< its name; texts are valid during the call
  std::string_view backend;
  bool overlap;
  int prefetch;
  std::size_t bucket_bytes;
  /// The host runs ahead of the compute stream (a GPU's): marks, waits, updates and ends of steps
  /// have the stream's times and are told later, in its order, as ran() is; issues and scalars have
  /// the host's.
  bool asynchronous;
};

/// A monitor implements this. A Context calls it on the thread that does what is reported, in
/// program order: the host's, but for ran(), which comes from the thread of the communication
/// stream and at the same time as anything else. It must return soon, and must not call back into
/// the Context. One observer for one Context.
class Observer {
 public:
  virtual ~Observer() = default;

  virtual void attach(const ObservedContext& /*context*/) noexcept {}
  /// A subject that is about to appear. `is_parameter`: or a call. `bytes`: of the whole parameter
  /// in the lease type.
  virtual void introduce(SubjectId /*subject*/, std::string_view /*name*/, bool /*is_parameter*/,
                         std::size_t /*bytes*/) noexcept {}
  virtual void record(const ActivityRecord& record) noexcept = 0;
  virtual void waited(const WaitRecord& /*record*/) noexcept {}
  virtual void ran(const RunRecord& /*record*/) noexcept {}
  virtual void mark(const MarkRecord& /*record*/) noexcept {}
  virtual void end_step(const StepResult& /*result*/, ActivityRecord::TimePoint /*time*/) noexcept {
  }
  virtual void hold(const LedgerRecord& /*record*/) noexcept {}
};

}  // namespace shardwise::inline v0_1
