#pragma once

#include <torch/csrc/autograd/engine.h>
#include <torch/types.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "../../sharded_gradient.hpp"
#include "../../sharded_parameter.hpp"
#include "graph.hpp"

namespace shardwise::inline v0_1::detail {

/// Tensors of a model that the same wraps use, and that all learn or all do not: gathered and
/// reduced together.
template <FloatingElement T>
struct TorchParameter {
  /// A segment of this rank's shard.
  struct Shard {
    const Layout::Tensor* source;
    torch::Tensor values;
    torch::Tensor gradient;
  };

  explicit TorchParameter(ShardedParameter<T> made) : sharded(std::move(made)) {}

  void acquire() {
    if (uses == 0) sharded.ensure_gathered();
    ++uses;
  }
  void release() noexcept {
    if (--uses == 0) sharded.release();
  }

  ShardedParameter<T> sharded;
  std::optional<ShardedGradient<T>> gradient;  // none: frozen
  std::vector<torch::Tensor> tensors;          // the model's
  std::vector<Shard> shards;
  std::size_t uses = 0;       // forwards and backwards that need it now
  std::size_t ready = 0;      // tensors whose gradient waits for those of the others
  std::uint64_t pass = 0;     // the backward pass of its last reduction
  bool has_gradient = false;  // something was reduced since the last update
};

/// What one wrap covers.
template <FloatingElement T>
struct TorchUnit {
  /// `soon`: the unit to gather ahead; or null.
  void acquire(TorchUnit* soon) {
    std::size_t done = 0;
    try {
      for (; done < parameters.size(); ++done) parameters[done]->acquire();
      if (soon != nullptr) soon->prefetch();
    } catch (...) {
      while (done > 0) parameters[--done]->release();
      throw;
    }
  }
  void release() noexcept {
    for (TorchParameter<T>* parameter : parameters) parameter->release();
  }
  void prefetch() {
    for (TorchParameter<T>* parameter : parameters) {
      auto& sharded = parameter->sharded;
      // Debug mode: what is there ahead of time could be read without having been gathered. Nor
      // is anything gained where the caller would run it: see ShardedSequence.
      if (sharded.context().engine().options.debug || sharded.strategy().prefetch == 0 ||
          sharded.context().parameter_store().gathers_in_caller(sharded.flat())) {
        continue;
      }
      sharded.prefetch();
    }
  }

  std::string name;
  std::vector<TorchParameter<T>*> parameters;
  TorchUnit* before = nullptr;  // in the order of the wraps
  TorchUnit* after = nullptr;
};

/// The time of a unit's forward.
template <FloatingElement T>
class TorchUse {
 public:
  explicit TorchUse(TorchUnit<T>& unit) : unit_(unit) { unit.acquire(unit.after); }
  TorchUse(const TorchUse&) = delete;
  TorchUse& operator=(const TorchUse&) = delete;
  ~TorchUse() { unit_.release(); }

 private:
  TorchUnit<T>& unit_;
};

/// The backward passes of a model: gathers and releases around each unit's part of the graph, and
/// reduces each parameter as soon as all its tensors have their gradient. The graph holds weak
/// pointers to it.
template <FloatingElement T>
class TorchPass : public std::enable_shared_from_this<TorchPass<T>> {
 public:
  /// A forward pass of `unit` that the graph records. `has_entry`: TorchEntry will tell when its
  /// backward is over.
  [[nodiscard]] c10::intrusive_ptr<TorchCall> make_call(TorchUnit<T>& unit, bool has_entry) {
    return c10::make_intrusive<Call>(this->weak_from_this(), unit, has_entry);
  }

  /// From now on the parameter's gradients are reduced, as autograd makes them.
  void watch(TorchParameter<T>& parameter) {
    for (torch::Tensor& tensor : parameter.tensors) {
      // The tensor itself only knows of its accumulator.
      accumulators_.push_back(torch::autograd::impl::grad_accumulator(tensor));
      accumulators_.back()->add_post_hook(
          std::make_unique<TorchLeafHook>([weak = this->weak_from_this(), &parameter, &tensor] {
            lock(weak)->add_gradient(parameter, tensor);
          }));
    }
    watched_.push_back(&parameter);
  }

  void require_ended(const char* what) const {
    if (!is_running_) return;
    raise(
        "{} while a backward pass has not ended: either it threw, and then this rank cannot go on, "
        "or the call comes from within it, which is not supported",
        what);
  }

  /// Gradients stay where autograd puts them and are reduced by the first pass that finds this off.
  bool accumulates = false;
  std::optional<ReductionWeight> weight = std::nullopt;

 private:
  struct Call final : TorchCall {
    Call(std::weak_ptr<TorchPass> of, TorchUnit<T>& its_unit, bool with_entry)
        : pass(std::move(of)), unit(its_unit), has_entry(with_entry) {}
    void enter() override { lock(pass)->open(*this); }
    void leave() override { lock(pass)->close(*this); }

    std::weak_ptr<TorchPass> pass;
    TorchUnit<T>& unit;  // lives as long as the pass
    bool has_entry;
    bool is_open = false;
  };

  static std::shared_ptr<TorchPass> lock(const std::weak_ptr<TorchPass>& pass) {
    if (auto locked = pass.lock()) return locked;
    raise("backward through a graph whose TorchAdapter is gone");
  }

  void begin() {
    if (std::exchange(is_running_, true)) return;
    ++number_;
    torch::autograd::Engine::get_default_engine().queue_callback(
        [weak = this->weak_from_this()] { lock(weak)->end(); });
  }
  // Called by the engine when the graph has run, in backward() still.
  void end() {
    while (!open_.empty()) close(*open_.back());
    for (TorchParameter<T>* parameter : watched_) {
      const auto has_gradient = [](const torch::Tensor& tensor) { return tensor.grad().defined(); };
      if (!accumulates &&
          std::any_of(parameter->tensors.begin(), parameter->tensors.end(), has_gradient)) {
        reduce(*parameter);  // backward did not come to all of its tensors
      }
    }
    is_running_ = false;
  }

  void open(Call& call) {
    begin();
    if (call.is_open) return;  // another output
    call.unit.acquire(call.unit.before);
    call.is_open = true;
    open_.push_back(c10::intrusive_ptr<Call>::reclaim_copy(&call));
  }
  void close(Call& call) {
    if (!std::exchange(call.is_open, false)) return;
    call.unit.release();
    std::erase_if(open_, [&](const auto& other) { return other.get() == &call; });
  }

  void add_gradient(TorchParameter<T>& parameter, const torch::Tensor& tensor) {
    begin();
    const torch::Tensor& gradient = tensor.grad();
    if (gradient.layout() != torch::kStrided || gradient.requires_grad()) {
      raise(
          "parameter '{}' got a {}: gradients that are sparse, or that have a graph of their own, "
          "are not supported",
          parameter.sharded.name(),
          gradient.requires_grad() ? "gradient with a graph" : gradient.toString());
    }
    if (accumulates || ++parameter.ready < parameter.tensors.size()) return;
    reduce(parameter);
    // Calls without an entry are over when everything that they could add to is complete.
    const auto is_over = [&](const auto& call) {
      const auto& used = call->unit.parameters;
      return !call->has_entry && std::all_of(used.begin(), used.end(), [&](const auto* other) {
        return !other->gradient || other->pass == number_;
      });
    };
    for (auto call = std::find_if(open_.begin(), open_.end(), is_over); call != open_.end();
         call = std::find_if(open_.begin(), open_.end(), is_over)) {
      close(**call);
    }
  }

  void reduce(TorchParameter<T>& parameter) {
    std::vector<T*> pointers;
    std::vector<torch::Tensor> keep;
    for (const torch::Tensor& tensor : parameter.tensors) {
      const torch::Tensor& gradient = tensor.grad();
      keep.push_back(gradient.defined() ? gradient.contiguous()
                                        : torch::zeros(tensor.sizes(), tensor.options()));
      pointers.push_back(static_cast<T*>(keep.back().data_ptr()));
    }
    const std::span<T* const> buffers(pointers);
    if (weight) {
      parameter.gradient->reduce_from(buffers, *weight);
    } else {
      parameter.gradient->reduce_from(buffers);
    }
    for (torch::Tensor& tensor : parameter.tensors) tensor.mutable_grad().reset();
    parameter.ready = 0;
    parameter.pass = number_;
    parameter.has_gradient = true;
  }

  std::vector<TorchParameter<T>*> watched_;
  // A std::shared_ptr, of which newer versions of libtorch have a kind of their own.
  using Accumulator =
      decltype(torch::autograd::impl::grad_accumulator(std::declval<const torch::Tensor&>()));
  std::vector<Accumulator> accumulators_;
  std::vector<c10::intrusive_ptr<Call>> open_;  // calls whose backward needs their weights
  std::uint64_t number_ = 0;
  bool is_running_ = false;
};

}  // namespace shardwise::inline v0_1::detail
