#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include "context.hpp"
#include "lease.hpp"
#include "sharded_gradient.hpp"
#include "sharded_parameter.hpp"

namespace shardwise::inline v0_1 {

/// Layers in execution order. A visit gathers its layer and starts to gather the next ones
/// (Strategy::prefetch of them), forwards and backwards; those whose gathers the caller runs
/// (ContextOptions::overlap_from) it gathers when it visits them. A tied parameter is added once
/// for every place where it is used: its gradient stays open from the last place to the first and
/// is reduced once (give it ParameterOptions::tied: its gradient has a slot of its own then).
/// Refers to the parameters and gradients, which must outlive it; they may be moved.
///
/// T storage type, L lease type, G stored gradient type, GL gradient lease type, equal for all
/// layers.
template <FloatingElement T, FloatingElement L = T, FloatingElement G = T, FloatingElement GL = L,
          class Device = HostDevice>
class ShardedSequence {
  struct Entry;

 public:
  /// One layer, lent: its whole weights, and backwards its gradient to add to. Move-only.
  class [[nodiscard]] Visit {
   public:
    Gathered<L, Device> weights;
    GradientLease<GL, Device> gradient;  ///< empty in a forward visit and for a frozen layer

    /// Ends the visit: releases the weights, then reduces the gradient where this was its last use
    /// in the pass. `complete = false`: more micro-batches follow before the reduction, the
    /// gradient stays open in the sequence. Idempotent; a forward visit may as well go out of
    /// scope.
    void finish(bool complete = true) {
      weights.release();
      if (!gradient) return;
      if (complete && last_use_) {
        std::move(gradient).reduce();
      } else {
        *kept_ = std::move(gradient);
      }
    }
    /// The same for batches of different sizes: see Context::weigh.
    void finish(ReductionWeight weight) {
      if (gradient && last_use_) std::move(gradient).reduce(weight);
      finish();
    }

   private:
    friend class ShardedSequence;
    GradientLease<GL, Device>* kept_ = nullptr;
    bool last_use_ = false;
  };

  /// Adds the next layer. Where this gradient is in the sequence already, the parameter is tied.
  /// `ahead = false`: this layer is never gathered ahead of use.
  void add(ShardedParameter<T, Device>& parameter, ShardedGradient<G, Device>& gradient,
           bool ahead = true) {
    parameter.require_lease_type(dtype_of<L>);
    gradient.require_lease_type(dtype_of<GL>);
    if (&gradient.flat().parameter != &parameter.flat()) {
      raise("a sequence was given parameter '{}' with the gradient of '{}'", parameter.name(),
            gradient.name());
    }
    std::size_t first = 0;
    while (first < entries_.size() && entries_[first].gradient != &gradient.flat()) ++first;
    entries_.push_back(
        {&parameter.context(), &parameter.flat(), &gradient.flat(), first, ahead, {}});
  }
  /// Adds a frozen layer.
  void add(ShardedParameter<T, Device>& parameter, bool ahead = true) {
    parameter.require_lease_type(dtype_of<L>);
    entries_.push_back(
        {&parameter.context(), &parameter.flat(), nullptr, entries_.size(), ahead, {}});
  }

  [[nodiscard]] std::size_t size() const noexcept { return entries_.size(); }

  /// Layer `index` (below size()) in the forward pass.
  [[nodiscard]] Visit forward(std::size_t index) {
    Visit visit;
    visit.weights = gather(index, true);
    return visit;
  }

  /// Layer `index` in the backward pass: weights and gradient.
  [[nodiscard]] Visit backward(std::size_t index) {
    const Entry& current = entry(index);
    // Gathers that others run go on while the gradient is zeroed; those that the caller runs would
    // push it out of the caches.
    const bool weights_first =
        current.context->parameter_store().gathers_in_caller(*current.parameter);
    Gathered<L, Device> weights;
    if (weights_first) weights = gather(index, false);
    Visit visit = gradient(index);
    visit.weights = weights_first ? std::move(weights) : gather(index, false);
    return visit;
  }

  /// Layer `index` in the backward pass, its gradient alone: for a layer whose backward pass does
  /// not read its weights (an embedding at the beginning), which need not be gathered once more.
  [[nodiscard]] Visit gradient(std::size_t index) {
    Entry& current = entry(index);
    Visit visit;
    if (current.gradient != nullptr) {
      visit.kept_ = &entries_[current.first].kept;
      visit.last_use_ = current.first == index;
      visit.gradient = std::move(*visit.kept_);
      if (!visit.gradient) {
        current.context->gradient_store().open(*current.gradient);
        visit.gradient = {*current.context, *current.gradient};
      }
    }
    return visit;
  }

  /// The weights of layer `index` alone; the next ones are gathered ahead in the direction of
  /// travel, away from the layer of the last visit.
  [[nodiscard]] Gathered<L, Device> gather(std::size_t index) {
    return gather(index, index == last_ ? index == 0 : index > last_);
  }

 private:
  struct Entry {
    Context<Device>* context;
    detail::FlatParameter<Device>* parameter;
    detail::FlatGradient<Device>* gradient;
    std::size_t first;  // index of this gradient's first entry
    bool ahead;
    GradientLease<GL, Device> kept;
  };

  Entry& entry(std::size_t index) {
    if (index >= entries_.size()) {
      raise("layer {} of a sequence of {} layers", index, entries_.size());
    }
    return entries_[index];
  }

  Gathered<L, Device> gather(std::size_t index, bool forwards) {
    const Entry& current = entry(index);
    auto& store = current.context->parameter_store();
    store.open({&current.parameter, 1});
    Gathered<L, Device> weights(store, *current.parameter);
    const auto ahead = static_cast<std::size_t>(current.parameter->strategy.prefetch);
    const std::size_t left = forwards ? entries_.size() - 1 - index : index;
    const auto next = [&](std::size_t i) -> const Entry& {
      return entries_[forwards ? index + i : index - i];
    };
    // Ahead of use the caller would wait as long, and use what the caches have lost meanwhile; but
    // not behind what comes later and is already under way.
    std::size_t last = std::min(ahead, left);
    while (last > 0 && (!next(last).ahead || store.gathers_in_caller(*next(last).parameter)))
      --last;
    for (std::size_t i = 1; i <= last; ++i) {
      if (next(i).ahead) store.prefetch(*next(i).parameter);
    }
    last_ = index;
    return weights;
  }

  std::vector<Entry> entries_;
  std::size_t last_ = 0;  // index of the last visit
};

}  // namespace shardwise::inline v0_1
