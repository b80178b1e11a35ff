#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "../comm/simulated.hpp"
#include "../context.hpp"
#include "../device/simulated.hpp"
#include "../gradient_norm.hpp"
#include "../lease.hpp"
#include "../optim/adam.hpp"
#include "../optim/adamw.hpp"
#include "../optim/lion.hpp"
#include "../optim/sgd.hpp"
#include "../sharded_gradient.hpp"
#include "../sharded_optimizer_state.hpp"
#include "../sharded_parameter.hpp"
#include "../sharded_sequence.hpp"
#include "hardware.hpp"
#include "model.hpp"

namespace shardwise::inline v0_1 {

/// The library's own optimizers, by name.
enum class OptimizerKind : std::uint8_t { adamw, adam, sgd, momentum, lion };

/// Calls `f.template operator()<Optimizer>()`.
template <class F>
decltype(auto) with_optimizer(OptimizerKind kind, F&& f) {
  switch (kind) {
    case OptimizerKind::adam:
      return f.template operator()<Adam>();
    case OptimizerKind::sgd:
      return f.template operator()<Sgd>();
    case OptimizerKind::momentum:
      return f.template operator()<SgdMomentum>();
    case OptimizerKind::lion:
      return f.template operator()<Lion>();
    case OptimizerKind::adamw:
      break;
  }
  return f.template operator()<AdamW>();
}

/// Types of the values that it keeps for each element.
[[nodiscard]] inline std::vector<DType> state_of(OptimizerKind kind) {
  return with_optimizer(kind, []<class Optimizer>() {
    return []<class... State>(StateTypes<State...>) {
      return std::vector<DType>{dtype_of<State>...};
    }(typename Optimizer::States());
  });
}

/// How a step is made.
struct StepOptions {
  int world = 1;
  std::size_t micro_batches = 1;
  OptimizerKind optimizer = OptimizerKind::adamw;
  bool clips = true;  ///< the norm of the gradient is computed
  SimulatedBackend backend = {};
};

/// What a step takes on each rank. Seconds are those of the virtual clock.
struct StepPrediction {
  double seconds = 0;
  double compute = 0;        ///< forward and backward passes
  double update = 0;         ///< optimizer, norms, zeroing, copies and casts
  double communication = 0;  ///< collectives, hidden or not
  double exposed = 0;        ///< of `seconds`, neither compute nor update
  Traffic traffic;
  Bytes bytes;  ///< held; the same as planned
};

namespace detail {

/// Trains a PlannedModel on a simulated device: the calls that a host makes, in its order.
template <FloatingElement L, FloatingElement G, class Optimizer>
class SimulatedTrainer {
 public:
  SimulatedTrainer(const PlannedModel& model, const Strategy& strategy, const Hardware& hardware,
                   const StepOptions& options)
      : model_(model),
        hardware_(hardware),
        options_(options),
        clock_(hardware.processor),
        comm_(clock_, options.world, hardware.topology, options.backend),
        context_(comm_, strategy, context_options()),
        holds_(strategy.accumulation == Accumulation::hold),
        first_visit_(model.parameters.size(), none) {
    parameters_.reserve(model.parameters.size());
    gradients_.reserve(model.parameters.size());
    for (const PlannedParameter& planned : model.parameters) add(planned);
    for (std::size_t visit = model.visits.size(); visit-- > 0;) {
      for (const std::size_t unit : model.visits[visit].parameters) first_visit_[unit] = visit;
    }
  }

  /// The second step: the first one allocates, and has no step before it.
  [[nodiscard]] StepPrediction predict() {
    step();
    context_.reset_statistics();
    const double begin = clock_.now();
    const double compute = clock_.worked(SimulatedWork::compute);
    const double communication = clock_.worked(SimulatedWork::communication);
    const double update = updated();
    step();
    StepPrediction result;
    result.seconds = clock_.now() - begin;
    result.compute = clock_.worked(SimulatedWork::compute) - compute;
    result.update = updated() - update;
    result.communication = clock_.worked(SimulatedWork::communication) - communication;
    result.exposed = std::max(0.0, result.seconds - result.compute - result.update);
    result.traffic = context_.statistics().traffic;
    result.bytes = context_.held();
    return result;
  }

 private:
  static constexpr std::size_t none = std::numeric_limits<std::size_t>::max();
  using Parameter = ShardedParameter<float, SimulatedDevice>;
  using Gradient = ShardedGradient<G, SimulatedDevice>;

  [[nodiscard]] ContextOptions context_options() {
    ContextOptions result;
    result.open_parameters = model_.open_parameters();
    result.stream = clock_.ref();
    result.overlap_from = hardware_.processor.overlap_from;
    return result;
  }
  [[nodiscard]] double updated() const noexcept {
    return clock_.worked(SimulatedWork::update) + clock_.worked(SimulatedWork::memory);
  }

  void add(const PlannedParameter& planned) {
    const Residency residency = planned.options.residency.value_or(context_.strategy().residency);
    const bool elsewhere = residency != Residency::slots && residency != Residency::shared;
    if (elsewhere || !planned.offsets.empty() || planned.storage != DType::f32) {
      raise(
          "a step is simulated for parameters of f32 in slots, or shared; '{}' is planned "
          "otherwise: its bytes are known (plan_memory), its time is not",
          planned.options.name);
    }
    Parameter& parameter = parameters_.emplace_back(context_, planned.tensors, planned.options);
    if (!planned.gradient) {
      gradients_.emplace_back();
      states_.emplace_back();
      sequence_.add(parameter);
      return;
    }
    gradients_.emplace_back(std::in_place, parameter);
    states_.emplace_back(std::in_place, parameter);
    sequence_.add(parameter, !planned.options.tied);
  }

  void step() {
    for (std::size_t micro = 0; micro < options_.micro_batches; ++micro) {
      const bool last_micro = micro + 1 == options_.micro_batches;
      const std::size_t last = model_.visits.size() - 1;
      for (std::size_t visit = 0; visit < last; ++visit) {
        Lent weights = gather(visit);
        compute(model_.visits[visit].forward);
        release(weights);
      }
      Lent kept = gather(last);
      compute(model_.visits[last].forward);
      open(last);
      compute(model_.visits[last].backward);
      release(kept);
      close(last, last_micro);
      for (std::size_t visit = last; visit-- > 0;) {
        open(visit);
        Lent weights;
        if (model_.visits[visit].reads_weights_backwards) weights = gather(visit);
        compute(model_.visits[visit].backward);
        release(weights);
        close(visit, last_micro);
      }
    }
    if (options_.clips) static_cast<void>(clip_gradient_norm(context_, 1.0));
    for (std::size_t unit = 0; unit < parameters_.size(); ++unit) {
      if (states_[unit]) states_[unit]->step(parameters_[unit], *gradients_[unit]);
    }
    context_.stream().synchronize();
    static_cast<void>(context_.mean(0));  // the loss
  }

  using Lent = std::vector<Gathered<L, SimulatedDevice>>;
  [[nodiscard]] Lent gather(std::size_t visit) {
    Lent weights;
    for (const std::size_t unit : model_.visits[visit].parameters) {
      weights.push_back(sequence_.gather(unit));
    }
    return weights;
  }
  // As scopes end: the last one first, which decides whose slot is taken next.
  static void release(Lent& weights) noexcept {
    while (!weights.empty()) weights.pop_back();
  }
  void compute(const PlannedWork& work) { clock_.compute(hardware_.seconds(work)); }

  // The plain forms of leases: the type of a gradient's lease is known at run time alone.
  void open(std::size_t visit) {
    for (const std::size_t unit : model_.visits[visit].parameters) {
      if (!gradients_[unit]) continue;
      dispatch_floating(parameters_[unit].flat().gradient_lease,
                        [&]<class Lease>() { gradients_[unit]->template ensure_open<Lease>(); });
    }
  }
  void close(std::size_t visit, bool last_micro) {
    if (holds_ && !last_micro) return;
    for (const std::size_t unit : model_.visits[visit].parameters) {
      if (gradients_[unit] && first_visit_[unit] == visit) gradients_[unit]->reduce();
    }
  }

  const PlannedModel& model_;
  const Hardware& hardware_;
  StepOptions options_;
  SimulatedClock clock_;
  SimulatedCommunicator comm_;
  Context<SimulatedDevice> context_;
  bool holds_;
  std::vector<std::size_t> first_visit_;
  std::vector<Parameter> parameters_;
  std::vector<std::optional<Gradient>> gradients_;
  std::vector<std::optional<ShardedOptimizerState<Optimizer, SimulatedDevice>>> states_;
  ShardedSequence<float, L, G, L, SimulatedDevice> sequence_;
};

}  // namespace detail

/// What a step of this model takes: the library's own code runs it, on a simulated device and a
/// simulated communicator, for one rank of a world in which all ranks are alike. Types are those of
/// the strategy's leases and of the first gradient. ConfigError where the hardware has
/// no speed or the model no visits; UsageError where the library would refuse.
template <std::same_as<PlannedModel> Model>  // a template, so that only who calls it compiles it
[[nodiscard]] StepPrediction predict_step(const Model& model, const Strategy& strategy,
                                          const Hardware& hardware, const StepOptions& options) {
  if (model.visits.empty()) {
    raise<ConfigError>("the model '{}' says nothing of its use: give it visits", model.name);
  }
  if (!(hardware.flops > 0)) {
    raise<ConfigError>("the hardware '{}' has no flops: step times cannot be predicted",
                       hardware.name);
  }
  const auto run = [&]<class L, class G>() {
    return with_optimizer(options.optimizer, [&]<class Optimizer>() {
      return detail::SimulatedTrainer<L, G, Optimizer>(model, strategy, hardware, options)
          .predict();
    });
  };
  const auto with_gradient = [&]<class L>() {
    const auto trained = std::find_if(model.parameters.begin(), model.parameters.end(),
                                      [](const auto& parameter) { return parameter.gradient; });
    const DType gradient =
        trained == model.parameters.end() ? DType::f32 : trained->gradient.value();
    if (gradient == DType::bf16) return run.template operator()<L, bf16>();
    if (gradient == DType::f16) return run.template operator()<L, f16>();
    return run.template operator()<L, float>();
  };
  const DType lease = strategy.lease.value_or(DType::f32);
  if (lease == DType::bf16) return with_gradient.template operator()<bf16>();
  if (lease == DType::f16) return with_gradient.template operator()<f16>();
  return with_gradient.template operator()<float>();
}

}  // namespace shardwise::inline v0_1
