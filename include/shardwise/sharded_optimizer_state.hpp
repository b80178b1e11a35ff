#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "context.hpp"
#include "kernels/segments.hpp"
#include "optim/optimizer.hpp"
#include "sharded_gradient.hpp"
#include "sharded_parameter.hpp"

namespace shardwise::inline v0_1 {

/// The element state of an optimizer for one ShardedParameter, and the update. `Optimizer` is an
/// element-wise functor (optim/): AdamW, Adam, Sgd, SgdMomentum, Lion, or the host's own. Movable;
/// the parameter must outlive it.
template <ElementwiseOptimizer Optimizer, class Device = HostDevice>
class ShardedOptimizerState {
 public:
  using States = typename Optimizer::States;

  /// Allocates the state, zeroed. UsageError where the settings make no sense.
  template <FloatingElement T>
  explicit ShardedOptimizerState(ShardedParameter<T, Device>& parameter, Optimizer settings = {})
      : optimizer(settings), parameter_(&parameter.flat()) {
    validate();
    auto& engine = parameter_->context->engine();
    engine.ledger.about(parameter_->subject);
    values_ = Buffer<Device>(engine.ledger, StateKind::optimizer_state, begin_of(States::count));
    Device::zero(engine.compute, values_.data(), values_.size());
    for_each_state([&]<class State>(std::size_t) { parameter_->state.add(dtype_of<State>); });
  }
  ShardedOptimizerState(ShardedOptimizerState&& other) noexcept
      : optimizer(std::move(other.optimizer)),
        parameter_(std::exchange(other.parameter_, nullptr)),
        values_(std::move(other.values_)),
        steps_(other.steps_) {}
  ShardedOptimizerState& operator=(ShardedOptimizerState&&) = delete;
  ~ShardedOptimizerState() {
    if (parameter_ == nullptr) return;
    parameter_->context->engine().quiesce();
    for_each_state([&]<class State>(std::size_t) { parameter_->state.remove(dtype_of<State>); });
  }

  /// Updates what this rank owns of the parameter, from the stored gradient times its coefficient,
  /// tensor by tensor with the options of each, on the context's stream. The gradient is used up:
  /// its next reduction overwrites. UsageError, on all ranks, where a lease of either is open.
  template <FloatingElement T, FloatingElement G>
  void step(ShardedParameter<T, Device>& parameter, ShardedGradient<G, Device>& gradient) {
    auto& flat_parameter = parameter.flat();
    auto& flat_gradient = gradient.flat();
    if (&flat_parameter != parameter_ || &flat_gradient.parameter != parameter_) {
      raise(
          "step: this state belongs to parameter '{}', but was given parameter '{}' and the "
          "gradient of '{}'",
          parameter_->name(), parameter.name(), gradient.name());
    }
    validate();
    auto& engine = parameter_->context->engine();
    // The wait for the reduction is one for all ranks, too.
    parameter_->context->gradient_store().settle(flat_gradient, "step");
    parameter_->context->parameter_store().begin_write(flat_parameter, "step");
    engine.timeline.begin_update();
    ++steps_;
    update<T, G>(flat_gradient);
    parameter_->context->parameter_store().end_write(flat_parameter, false);
    parameter_->context->gradient_store().consume(flat_gradient);
    engine.timeline.end_update(flat_parameter.subject);
  }

  /// Updates so far; restore_steps() where the values come from a run that has made so many, on all
  /// ranks alike.
  [[nodiscard]] std::uint64_t steps() const noexcept { return steps_; }
  void restore_steps(std::uint64_t steps) noexcept { steps_ = steps; }

  /// One of the optimizer's values by name ("exp_avg", ...), laid out as ShardedParameter::shard(),
  /// at an address that never moves. UsageError where there is none of this name and type.
  template <FloatingElement State>
  [[nodiscard]] std::span<State> values(std::string_view name) const {
    std::span<State> result;
    bool found = false;
    for_each_state([&]<class Candidate>(std::size_t index) {
      if (Optimizer::state_names[index] != name || dtype_of<Candidate> != dtype_of<State>) return;
      found = true;
      result = {reinterpret_cast<State*>(values_.data() + begin_of(index)),
                parameter_->owned_count()};
    });
    if (!found) {
      std::string names;
      for_each_state([&]<class Candidate>(std::size_t index) {
        names += detail::format("{}'{}' ({})", names.empty() ? "" : ", ",
                                Optimizer::state_names[index], name_of(dtype_of<Candidate>));
      });
      raise("the optimizer of '{}' has no state '{}' of type {}; it has: {}", parameter_->name(),
            name, name_of(dtype_of<State>), names.empty() ? "none" : names);
    }
    return result;
  }

  /// Settings; may be changed between steps (a learning rate schedule).
  Optimizer optimizer;

  /// The library's own side; not for hosts.
  [[nodiscard]] detail::FlatParameter<Device>& flat_parameter() const noexcept {
    return *parameter_;
  }

 private:
  // f.operator()<State>(index) for each of the optimizer's values.
  template <class F>
  static void for_each_state(F&& f) {
    [&]<class... State>(StateTypes<State...>) {
      std::size_t index = 0;
      (f.template operator()<State>(index++), ...);
    }(States());
  }

  // Bytes of the values before this one.
  [[nodiscard]] std::size_t begin_of(std::size_t value) const noexcept {
    std::size_t size = 0;
    for_each_state([&]<class State>(std::size_t index) {
      if (index < value) size += sizeof(State);
    });
    return parameter_->owned_count() * size;
  }

  void validate() const {
    if constexpr (requires { optimizer.validate(); }) optimizer.validate();
  }

  template <class T, class G>
  void update(const detail::FlatGradient<Device>& gradient) {
    using Step = UpdateOf<Optimizer, T, G>;
    if constexpr (Device::template fuses_cast<Optimizer, T, G>) {
      // A copy in the host's arena is not one flat buffer: the next gather casts it.
      const bool is_flat = parameter_->has_copy() && !parameter_->replicated_in_place();
      if (is_flat && parameter_->lease == DType::bf16) {
        auto* const copy = reinterpret_cast<bf16*>(parameter_->beside->buffer.data());
        run<T, G>(gradient, [copy](const Step& step, std::size_t offset) {
          return UpdateAndCast<Step, bf16>{step, copy + offset};
        });
        parameter_->beside->version = parameter_->version + 1;  // which the write will have made
        return;
      }
    }
    run<T, G>(gradient, [](const Step& step, std::size_t) { return step; });
  }

  // functor_of(step, flat offset) over all that this rank updates, many ranges in one launch.
  template <class T, class G, class FunctorOf>
  void run(const detail::FlatGradient<Device>& gradient, const FunctorOf& functor_of) {
    using Step = UpdateOf<Optimizer, T, G>;
    using Segment =
        detail::ElementSegment<decltype(functor_of(std::declval<const Step&>(), std::size_t{}))>;
    const std::size_t begin = parameter_->owned_begin();
    const std::size_t end = begin + parameter_->owned_count();
    const auto* const gradients = reinterpret_cast<const G*>(gradient.owned());
    std::array<Segment, 32> batch;
    std::size_t batched = 0;
    const auto launch = [&] {
      Device::launch_segments(parameter_->context->engine().compute,
                              std::span<const Segment>(batch.data(), batched));
      batched = 0;
    };
    const auto add = [&](T* values, std::size_t offset, std::size_t count,
                         const TensorOptions& options) {
      const std::size_t at = offset - begin;
      Step step{values,
                gradients + at,
                {},
                gradient.coefficient,
                optimizer.template constants<typename Step::Real>(steps_, options)};
      for_each_state([&]<class S>(std::size_t index) {
        step.states[index] = values_.data() + begin_of(index) + at * sizeof(S);
      });
      batch[batched++] = {functor_of(step, offset), count};
      if (batched == batch.size()) launch();
    };
    const Layout& layout = parameter_->layout;
    if (parameter_->storage_in_place()) {
      layout.for_each_segment(begin, end, [&](const Layout::Segment& segment) {
        add(reinterpret_cast<T*>(parameter_->stored(segment)), segment.offset, segment.count,
            layout.tensors()[segment.tensor].options);
      });
    } else {
      auto* const values = reinterpret_cast<T*>(parameter_->owned());
      layout.for_each_run(begin, end, [&](const Layout::Run& run) {
        add(values + (run.offset - begin), run.offset, run.count, run.options);
      });
    }
    if (batched > 0) launch();
  }

  detail::FlatParameter<Device>* parameter_;
  Buffer<Device> values_;  // one after the other: whole shards begin and end at 64 bytes
  std::uint64_t steps_ = 0;
};

}  // namespace shardwise::inline v0_1
