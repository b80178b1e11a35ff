#pragma once

#include <cstddef>
#include <limits>
#include <span>
#include <string_view>
#include <vector>

#include "comm/collectives.hpp"
#include "comm/communicator.hpp"
#include "core/math.hpp"
#include "core/observer.hpp"
#include "detail/engine.hpp"
#include "detail/gradient_store.hpp"
#include "detail/parameter_store.hpp"
#include "device/host.hpp"
#include "fwd.hpp"
#include "kernels/canonical_sum.hpp"
#include "memory.hpp"
#include "memory_plan.hpp"
#include "statistics.hpp"
#include "strategy.hpp"

namespace shardwise::inline v0_1 {

/// What a trainer makes once on every rank: it joins a communicator, a device's streams, the slots
/// and the ledger of what is held. Parameters, gradients and states belong to one Context and must
/// be destroyed before it. Not thread-safe: one host thread a rank.
///
/// All ranks make the same calls in the same order. The communicator is borrowed and must outlive
/// the Context; calls of the host on it may be mixed in, in the same order on all ranks.
template <class Device>
class Context {
 public:
  /// `strategy` is the default of every parameter. ConfigError or UsageError where it, the device
  /// and the communicator do not fit together.
  explicit Context(Communicator& communicator, const Strategy& strategy = Strategy::zero3(),
                   const ContextOptions& options = {})
      : engine_(communicator, strategy, options), parameters_(engine_), gradients_(engine_) {}
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;
  /// Waits for what this rank issued, also where an exception unwinds; bounded by the time-out.
  ~Context() { engine_.quiesce(); }

  [[nodiscard]] int rank() const noexcept { return engine_.rank(); }
  [[nodiscard]] int world() const noexcept { return engine_.world(); }
  [[nodiscard]] const Strategy& strategy() const noexcept { return engine_.strategy; }
  /// Gathers and reductions of at least so many bytes run beside compute; smaller ones the caller
  /// may run itself. 0: all of them do; the largest value: none does (Strategy::overlap is false,
  /// or measure_overlap() found that none gains by it).
  [[nodiscard]] std::size_t overlap_from() const noexcept { return engine_.overlap_from; }
  [[nodiscard]] Communicator& communicator() const noexcept { return engine_.comm; }
  /// The compute stream. Leases are valid, and writes by the host expected, in its order; on the
  /// host it is inline.
  [[nodiscard]] typename Device::Stream& stream() noexcept { return engine_.compute; }

  /// Group scalars: one collective each, the same bits on all ranks, summed in double in the
  /// canonical order. The host waits for them. More of them, and collectives over spans:
  /// comm/collectives.hpp with communicator().
  [[nodiscard]] double sum(double value, std::string_view name = "sum") {
    return agree(name,
                 [&](const CallInfo& info) { return shardwise::sum(engine_.comm, value, info); });
  }
  [[nodiscard]] double mean(double value, std::string_view name = "mean") {
    return agree(name,
                 [&](const CallInfo& info) { return shardwise::mean(engine_.comm, value, info); });
  }
  /// sum(weight * value) / sum(weight); UsageError where the weights add to 0.
  [[nodiscard]] double weighted_mean(double value, double weight,
                                     std::string_view name = "weighted_mean") {
    return agree(name, [&](const CallInfo& info) {
      return shardwise::weighted_mean(engine_.comm, value, weight, info);
    });
  }
  /// True where any rank says so.
  [[nodiscard]] bool any(bool value, std::string_view name = "any") {
    return agree(name,
                 [&](const CallInfo& info) { return shardwise::any(engine_.comm, value, info); });
  }
  /// True where all ranks say so.
  [[nodiscard]] bool all(bool value, std::string_view name = "all") {
    return agree(name,
                 [&](const CallInfo& info) { return shardwise::all(engine_.comm, value, info); });
  }
  /// Returns once every rank is here.
  void barrier(std::string_view name = "barrier") {
    engine_.check();
    engine_.meet(engine_.info(name));
  }

  /// For batches of different sizes: give what this returns to reduce(), and gradients become
  /// sum(weight * gradient) / sum(weight) over ranks, e.g. with the number of tokens as weight. One
  /// collective. Weights must not be negative; UsageError where all are 0.
  [[nodiscard]] ReductionWeight weigh(double weight, std::string_view name = "weigh") {
    engine_.check();
    const auto all = engine_.exchange({&weight, 1}, name);
    for (std::size_t rank = 0; rank < all.size(); ++rank) {
      if (all[rank] >= 0 && all[rank] < std::numeric_limits<double>::infinity()) continue;
      raise("'{}': rank {} gave the weight {}; weights must be finite and >= 0", name, rank,
            all[rank]);
    }
    const double total = canonical_sum(0, all.size(), [&](std::size_t rank) { return all[rank]; });
    if (total == 0) raise("'{}': the weights of all ranks are 0", name);
    return {weight / total};
  }

  /// What this rank will hold once every slot is allocated, computed from what is registered now.
  [[nodiscard]] MemoryPlan plan() const {
    std::vector<const detail::Registration*> entries(parameters_.parameters().begin(),
                                                     parameters_.parameters().end());
    return detail::plan_memory(entries, engine_.groups, engine_.strategy, engine_.options);
  }
  /// What this rank holds now, counted at each allocation; of what ranks share its part.
  [[nodiscard]] const Bytes& held() const noexcept { return engine_.ledger.held(); }
  /// The highest total so far.
  [[nodiscard]] std::size_t peak_held() const noexcept { return engine_.ledger.peak(); }

  /// Allocates the slots now instead of at the first gather and the first gradient lease;
  /// afterwards nothing is allocated. Register everything first.
  void prepare() {
    engine_.check();
    parameters_.prepare();
    gradients_.prepare();
  }

  [[nodiscard]] const Statistics& statistics() const noexcept { return engine_.statistics; }
  void reset_statistics() noexcept { engine_.statistics = {}; }

  /// What a trainer may say of its progress, for ContextOptions::observer; nothing happens where
  /// there is none, and no rank waits for another. A step lasts to end_step(), from begin_step()
  /// or else from the end of the last one. begin_step() resets the statistics, too.
  void begin_step() noexcept {
    reset_statistics();
    engine_.mark(Mark::step);
  }
  void begin_micro_batch() noexcept { engine_.mark(Mark::micro_batch); }
  void end_step(const StepResult& result = {}) noexcept { engine_.timeline.end_step(result); }
  /// The observer knows all that this rank did when this returns. On devices the host waits for
  /// what it enqueued; on CPUs the observer knows already.
  void flush_observer() noexcept { engine_.timeline.flush(); }

  /// The library's own side of a Context; not for hosts.
  [[nodiscard]] detail::Engine<Device>& engine() noexcept { return engine_; }
  [[nodiscard]] detail::ParameterStore<Device>& parameter_store() noexcept { return parameters_; }
  [[nodiscard]] detail::GradientStore<Device>& gradient_store() noexcept { return gradients_; }

 private:
  template <class Scalar>
  auto agree(std::string_view name, Scalar&& scalar) {
    engine_.check();
    return engine_.agree(name, sizeof(double), [&] { return scalar(engine_.info(name)); });
  }

  detail::Engine<Device> engine_;
  detail::ParameterStore<Device> parameters_;
  detail::GradientStore<Device> gradients_;
};

}  // namespace shardwise::inline v0_1
