#pragma once

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include <concepts>
#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "../context.hpp"
#include "../sharded_gradient.hpp"
#include "../sharded_optimizer_state.hpp"
#include "../sharded_parameter.hpp"
#include "torch/model.hpp"

namespace shardwise::inline v0_1 {

/// A module of libtorch, called as before. Its parameters are gathered before its forward and
/// released after it; where the graph is recorded they are gathered again before its part of
/// backward, reduced when all their gradients are there, and released. Copyable; made by
/// TorchAdapter::wrap, and of no use after the adapter.
///
/// What goes in and out as tensors, or as tuples, optionals and containers of tensors, is seen. A
/// tensor that needs a gradient must not go in or out by another way (a member, a capture).
template <FloatingElement T, class Forward>
class TorchWrapped {
 public:
  TorchWrapped(std::weak_ptr<detail::TorchModel<T>> model, std::size_t unit, Forward forward)
      : model_(std::move(model)), unit_(unit), forward_(std::move(forward)) {}

  /// Calls the module with copies of the arguments. All ranks call it. UsageError in backward, and
  /// after an adapter's end; the first call of any wrapped module does what TorchAdapter::prepare
  /// does.
  template <class... Arguments>
  auto operator()(Arguments&&... arguments) {
    const auto model = model_.lock();
    if (!model) raise("a wrapped module is called, but its TorchAdapter is gone");
    model->prepare();
    detail::TorchUnit<T>& unit = model->begin_forward(unit_);
    std::tuple<std::decay_t<Arguments>...> inputs(std::forward<Arguments>(arguments)...);
    if (!torch::GradMode::is_enabled()) {
      const detail::TorchUse<T> use(unit);
      return std::apply(forward_, std::move(inputs));
    }
    const auto call = enter(model->pass(), unit, inputs);
    const detail::TorchUse<T> use(unit);
    auto output = std::apply(forward_, std::move(inputs));
    static_assert(detail::torch_tensors_are_seen<decltype(output)>(),
                  "a wrapped module returns a tensor, or tuples, optionals and containers of them");
    const auto gather_before_backward = [&](torch::Tensor& tensor) {
      if (tensor.requires_grad() && !tensor.is_leaf()) {
        tensor.register_hook([call](const torch::Tensor& /*gradient*/) { call->enter(); });
      }
    };
    detail::for_each_torch_tensor(output, gather_before_backward);
    return output;
  }

 private:
  // Puts TorchEntry on the inputs that need a gradient.
  template <class Inputs>
  static c10::intrusive_ptr<detail::TorchCall> enter(detail::TorchPass<T>& pass,
                                                     detail::TorchUnit<T>& unit, Inputs& inputs) {
    std::vector<torch::Tensor*> places;
    const auto collect = [&](torch::Tensor& tensor) {
      if (tensor.requires_grad()) places.push_back(&tensor);
    };
    detail::for_each_torch_tensor(inputs, collect);
    const auto call = pass.make_call(unit, !places.empty());
    if (places.empty()) return call;
    std::vector<torch::Tensor> tensors;
    for (const torch::Tensor* place : places) tensors.push_back(*place);
    const auto entered = detail::TorchEntry::apply(call, at::TensorList(tensors));
    for (std::size_t i = 0; i < places.size(); ++i) *places[i] = entered[i];
    return call;
  }

  std::weak_ptr<detail::TorchModel<T>> model_;
  std::size_t unit_;
  Forward forward_;
};

/// Shards a model of libtorch's C++ modules: wrap the modules that are to be gathered together (the
/// blocks of a transformer, as a rule), call what wrap() returns instead of them, and give the
/// optimizer shards() instead of the model's parameters:
///
///     shardwise::TorchAdapter adapter(context, *model);
///     auto blocks = adapter.wrap(model->blocks);        // also one module, or several as one
///     torch::optim::AdamW optimizer(adapter.shards(), options);
///     for (...) {
///       for (auto& block : blocks) x = block(x);
///       loss_of(x).backward();
///       adapter.step([&] { optimizer.step(); });
///     }
///
/// Every parameter must be in a wrapped module. One in several (a tied embedding) is gathered for
/// each and reduced once, when the last of its uses has added to it; one with requires_grad = false
/// has no gradient. Buffers are left alone. T is the type of all parameters.
///
/// The model's tensors stay the objects that they are; from prepare() on they lie in an Arena,
/// where values are only between gather and release (to read them all, save the model or call it
/// unwrapped: full_parameters(context)). They are empty after the adapter. It belongs to a context,
/// which, as the model, must outlive it; optimizers over its shards must not be used after it.
///
/// backward() runs the collectives on the thread that calls it, in an order that the graph gives:
/// all ranks must record the same one. An exception of a collective comes out of backward(); no
/// other pass is possible then. Gradients of one pass are reduced to the mean over ranks and added
/// to those of earlier passes since the last step.
///
/// Where ranks are threads of one process, some of torch is common to them: the default generator
/// (models are initialised one after the other; dropout draws in the order in which ranks come) and
/// the number of threads that an operation uses (at::set_num_threads). Gradient mode is each
/// thread's own.
template <FloatingElement T = float>
class TorchAdapter {
 public:
  explicit TorchAdapter(Context<>& context, const torch::nn::Module& model,
                        TorchOptions options = {})
      : model_(std::make_shared<detail::TorchModel<T>>(context, model, std::move(options))) {}
  TorchAdapter(const TorchAdapter&) = delete;
  TorchAdapter& operator=(const TorchAdapter&) = delete;

  /// A module (a holder such as torch::nn::Linear, or a shared_ptr) and all below it, gathered
  /// together. In the order of execution, before prepare(). UsageError where it has a parameter
  /// that is none of the model's.
  template <class M>
  [[nodiscard]] auto wrap(const std::shared_ptr<M>& module) {
    return wrap({module}, [module](auto&&... arguments) {
      return module->forward(std::forward<decltype(arguments)>(arguments)...);
    });
  }
  template <class M>
  [[nodiscard]] auto wrap(const torch::nn::ModuleHolder<M>& module) {
    return wrap(module.ptr());
  }
  /// The same for each of several modules of one type: a vector.
  template <class M>
  [[nodiscard]] auto wrap(const std::vector<M>& modules) {
    std::vector<decltype(wrap(modules.front()))> wrapped;
    for (const M& module : modules) wrapped.push_back(wrap(module));
    return wrapped;
  }
  /// Several modules as one, and what to call: forward(arguments...) may use all of their
  /// parameters.
  template <class Forward>
  [[nodiscard]] auto wrap(const std::vector<std::shared_ptr<torch::nn::Module>>& modules,
                          Forward forward) {
    return TorchWrapped<T, Forward>(model_, model_->add_unit(modules), std::move(forward));
  }

  /// Makes the sharded parameters of what is wrapped, with the initial values of rank
  /// TorchOptions::root, and drops the model's own memory. The first use of the adapter or of a
  /// wrapped module does it where the host does not. All ranks call it. UsageError that lists the
  /// parameters that no wrap covers.
  void prepare() { model_->prepare(); }

  /// This rank's part of all parameters that learn, for an optimizer of the host's own: a tensor of
  /// one dimension for each contiguous part of a parameter, over the library's memory. They have
  /// gradients, and may be written, within step() alone. Only element-wise optimizers fit.
  [[nodiscard]] std::vector<torch::Tensor> shards() {
    return shards([](const Layout::Tensor& /*parameter*/) { return true; });
  }
  /// Those of the parameters that `choose` picks by name, shape and options, e.g. to make groups of
  /// what decays and what does not.
  template <std::predicate<const Layout::Tensor&> Choose>
  [[nodiscard]] std::vector<torch::Tensor> shards(Choose&& choose) {
    prepare();
    std::vector<torch::Tensor> chosen;
    for (const auto& parameter : model_->parameters()) {
      for (const auto& shard : parameter->shards) {
        if (choose(*shard.source)) chosen.push_back(shard.values);
      }
    }
    return chosen;
  }

  /// For an optimizer over shards(): gives them their gradients, multiplied by what
  /// clip_gradient_norm or a loss scale set, calls update(), and takes them away: the next pass
  /// starts from zero. Shards of parameters that no backward came to since the last step have none.
  /// All ranks call it. UsageError in backward.
  template <std::invocable Update>
  void step(Update&& update) {
    begin_step();
    const Gradients gradients(*this);
    write(0, update);
    for (const auto& parameter : model_->parameters()) {
      if (std::exchange(parameter->has_gradient, false)) parameter->gradient->consume();
    }
  }

  /// For an optimizer of the library's: one state for each parameter that learns, in the order of
  /// gradients(). To be destroyed before the adapter.
  template <ElementwiseOptimizer Optimizer>
  [[nodiscard]] std::vector<ShardedOptimizerState<Optimizer>> optimizer_states(
      const Optimizer& settings = {}) {
    prepare();
    std::vector<ShardedOptimizerState<Optimizer>> states;
    for (const auto& parameter : model_->parameters()) {
      if (parameter->gradient) states.emplace_back(parameter->sharded, settings);
    }
    return states;
  }
  /// A step of each, as step(update).
  template <ElementwiseOptimizer Optimizer>
  void step(std::vector<ShardedOptimizerState<Optimizer>>& states) {
    begin_step();
    auto state = states.begin();
    for (const auto& parameter : model_->parameters()) {
      if (!parameter->gradient) continue;
      if (state == states.end()) raise("step: {} states are not optimizer_states()", states.size());
      if (std::exchange(parameter->has_gradient, false)) {
        state->step(parameter->sharded, *parameter->gradient);
      }
      ++state;
    }
  }

  /// true: backward passes leave the gradients whole where autograd puts them; the first one after
  /// accumulate(false) reduces the sum. Costs a whole gradient on each rank.
  void accumulate(bool on) { model_->pass().accumulates = on; }

  /// For batches of different sizes: the following backward passes count with this rank's weight
  /// (Context::weigh; all ranks call it). Until the next call.
  void weigh(double weight) { model_->pass().weight = model_->context().weigh(weight); }

  /// What is below: to save, to count, to read.
  [[nodiscard]] std::vector<std::reference_wrapper<ShardedParameter<T>>> parameters() {
    prepare();
    std::vector<std::reference_wrapper<ShardedParameter<T>>> result;
    for (const auto& parameter : model_->parameters()) result.emplace_back(parameter->sharded);
    return result;
  }
  [[nodiscard]] std::vector<std::reference_wrapper<ShardedGradient<T>>> gradients() {
    prepare();
    std::vector<std::reference_wrapper<ShardedGradient<T>>> result;
    for (const auto& parameter : model_->parameters()) {
      if (parameter->gradient) result.emplace_back(*parameter->gradient);
    }
    return result;
  }

 private:
  /// The time in which shards have gradients.
  struct Gradients {
    explicit Gradients(TorchAdapter& of) : adapter(of) {
      const torch::NoGradGuard no_grad;
      for (const auto& parameter : adapter.model_->parameters()) {
        if (!parameter->has_gradient) continue;
        static_cast<void>(parameter->gradient->shard());  // its values are complete
        const float coefficient = parameter->gradient->coefficient();
        for (auto& shard : parameter->shards) {
          // In place: consume() lets the next reduction overwrite them.
          if (coefficient != 1) shard.gradient.mul_(coefficient);
          shard.values.mutable_grad() = shard.gradient;
        }
      }
    }
    Gradients(const Gradients&) = delete;
    Gradients& operator=(const Gradients&) = delete;
    ~Gradients() {
      for (const auto& parameter : adapter.model_->parameters()) {
        for (auto& shard : parameter->shards) shard.values.mutable_grad().reset();
      }
    }
    TorchAdapter& adapter;
  };

  void begin_step() {
    prepare();
    model_->pass().require_ended("step");
  }

  // Calls update() within the update of all parameters that learn, from `first` on.
  template <class Update>
  void write(std::size_t first, Update& update) {
    const auto parameters = model_->parameters();
    while (first < parameters.size() && !parameters[first]->gradient) ++first;
    if (first == parameters.size()) return static_cast<void>(update());
    parameters[first]->sharded.update_segments([&](auto) { write(first + 1, update); });
  }

  std::shared_ptr<detail::TorchModel<T>> model_;
};

}  // namespace shardwise::inline v0_1
