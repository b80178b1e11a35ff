#pragma once

#include <dlib/dnn/core.h>
#include <dlib/dnn/layers.h>

#include <concepts>
#include <cstddef>
#include <iostream>
#include <memory>
#include <optional>
#include <shardwise/shardwise.hpp>
#include <sstream>
#include <string>
#include <utility>

#include "bias.hpp"
#include "layer_shard.hpp"

namespace callback_host {

/// A layer of dlib (fc_, con_) whose parameters are spread over the ranks. Its own tensor is empty,
/// its memory given back, except while forward or backward computes; the mathematics is LAYER's.
///
/// One net for each rank, shard(net, context) before its first forward, a ShardedSolver for its
/// updates. All ranks call the net in the same order. The first forward draws the parameters on
/// rank 0, as LAYER does it: by std::rand(), which the threads of a process share. Apart from that,
/// dlib's layers share nothing on a CPU, so that ranks may be threads.
///
/// Not for dlib::dnn_trainer: it copies nets, and lowers the learning rate by the losses that it
/// sees, which are those of one rank.
template <class LAYER>
class Sharded : public LAYER {
  static_assert(
      !requires(LAYER & layer, const dlib::tensor& in, dlib::tensor& out) {
        layer.forward_inplace(in, out);
      },
      "layers that compute in place have other functions than Sharded gathers for");

 public:
  using LAYER::LAYER;

  /// See shard(net, context).
  void attach(shardwise::Context<>& context, const std::string& name) {
    if (shard_) shardwise::raise("layer '{}' has a context already", name);
    shard_ = std::make_unique<LayerShard>(context, name);
  }

  [[nodiscard]] LayerShard& shard() const {
    if (!shard_) shardwise::raise("a sharded layer has no context: call shard(net, context) first");
    return *shard_;
  }

  /// dlib calls it in the first forward. The other ranks take rank 0's layer, without its
  /// parameters, so that nobody but rank 0 draws any, or ever holds all of them.
  template <class SUBNET>
  void setup(const SUBNET& sub) {
    dlib::resizable_tensor drawn;
    dlib::alias_tensor shape;
    std::ostringstream given;
    if (shard().context().rank() == 0) {
      LAYER::setup(sub);
      drawn.swap(own());
      shape = shape_of(drawn);
      serialize(shape, given);
      serialize(layer(), given);
    }
    std::istringstream taken(shard().broadcast(given.str()));
    deserialize(shape, taken);
    deserialize(layer(), taken);
    make(shape, drawn);
  }

  template <class SUBNET>
  void forward(const SUBNET& sub, dlib::resizable_tensor& output) {
    const GatheredLayer gathered(shard(), own());
    compute_forward(sub, output);
  }

  template <class SUBNET>
  void backward(const dlib::tensor& gradient_input, SUBNET& sub, dlib::tensor& params_grad) {
    shard().require_unchanged(multipliers());
    dlib::resizable_tensor gradient;
    {
      const GatheredLayer gathered(shard(), own());
      gradient.copy_size(own());
      compute_backward(gradient_input, sub, gradient);
    }
    if (shard().learns()) shard().reduce(gradient);
    params_grad = 0;
  }

  /// For dlib a sharded layer has one parameter, which nobody reads: where there are none, dlib
  /// calls no solver. Its own solvers, who ask a const layer, would only update that one, and do
  /// not compile.
  dlib::tensor& get_layer_params() { return stand_in_; }
  const dlib::tensor& get_layer_params() const = delete;

  /// Elements in the layer's own tensor: none unless it computes.
  [[nodiscard]] std::size_t held() const { return LAYER::get_layer_params().size(); }

  /// Calls f(const dlib::tensor&) with the whole parameters, none before the first forward. All
  /// ranks call it.
  template <class F>
  void visit_gathered(F&& f) {
    const GatheredLayer gathered(shard(), own());
    f(std::as_const(own()));
  }

  /// What LAYER would have written, so that a net of dlib's own layers can read it. All ranks call
  /// it, each with a stream of its own.
  friend void serialize(const Sharded& item, std::ostream& out) {
    LAYER copy(item);
    const GatheredLayer gathered(item.shard(), own(copy));
    serialize(copy, out);
  }
  /// Reads that, or what a net of dlib's own layers wrote, in place of the first forward; after
  /// shard(net, context). All ranks call it; the parameters are those that rank 0 reads.
  friend void deserialize(Sharded& item, std::istream& in) {
    LAYER& layer = item;
    deserialize(layer, in);
    dlib::resizable_tensor read;
    read.swap(item.own());
    if (read.size() > 0) item.make(shape_of(read), read);
  }

 protected:
  /// LAYER's mathematics, for layers that derive from this one: gathering is theirs. UsageError
  /// that names the layer where they have not; dlib may end the process.
  template <class SUBNET>
  void compute_forward(const SUBNET& sub, dlib::resizable_tensor& output) {
    shard().require_gathered(own());
    LAYER::forward(sub, output);
  }
  template <class SUBNET>
  void compute_backward(const dlib::tensor& gradient_input, SUBNET& sub,
                        dlib::tensor& params_grad) {
    shard().require_gathered(own());
    LAYER::backward(gradient_input, sub, params_grad);
  }

  dlib::resizable_tensor& own() { return own(*this); }

 private:
  static dlib::resizable_tensor& own(LAYER& layer) {
    return dynamic_cast<dlib::resizable_tensor&>(layer.LAYER::get_layer_params());
  }
  LAYER& layer() { return *this; }

  static dlib::alias_tensor shape_of(const dlib::tensor& tensor) {
    return {tensor.num_samples(), tensor.k(), tensor.nr(), tensor.nc()};
  }

  [[nodiscard]] LayerMultipliers multipliers() const {
    const double rate = this->get_learning_rate_multiplier();
    const double decay = this->get_weight_decay_multiplier();
    const double bias_rate = rate * this->get_bias_learning_rate_multiplier();
    const double bias_decay = decay * this->get_bias_weight_decay_multiplier();
    return {{static_cast<float>(decay), static_cast<float>(rate)},
            {static_cast<float>(bias_decay), static_cast<float>(bias_rate)}};
  }

  void make(const dlib::alias_tensor& shape, const dlib::tensor& initial) {
    shard().make(shape, bias_count<LAYER>(*this), multipliers(), initial);
    stand_in_.set_size(1);
    stand_in_ = 0;
  }

  std::unique_ptr<LayerShard> shard_;
  dlib::resizable_tensor stand_in_;
};

/// Layers as dlib::fc and dlib::con, sharded.
template <unsigned long outputs, class SUBNET>
using sharded_fc = dlib::add_layer<Sharded<dlib::fc_<outputs, dlib::FC_HAS_BIAS>>, SUBNET>;
template <long filters, long rows, long columns, int stride_y, int stride_x, class SUBNET>
using sharded_con =
    dlib::add_layer<Sharded<dlib::con_<filters, rows, columns, stride_y, stride_x>>, SUBNET>;

/// Sharded, or derived from it.
template <class LAYER>
concept ShardedLayer = requires(const LAYER& layer) {
  { layer.shard() } -> std::same_as<LayerShard&>;
};

/// Before a net's first forward: gives its sharded layers the context, and names after their kind
/// and number ("fc.1" is dlib::layer<1>(net)). The context must outlive the net.
template <class NET>
void shard(NET& net, shardwise::Context<>& context) {
  dlib::visit_computational_layers(net, [&](std::size_t number, auto& layer) {
    if constexpr (ShardedLayer<decltype(layer)>) {
      std::stringstream text;
      text << layer;
      std::string kind;
      text >> kind;
      layer.attach(context, fmt::format("{}.{}", kind, number));
    }
  });
}

/// Calls f(layer) with each sharded layer, the net's last one first.
template <class NET, class F>
void visit_sharded(NET& net, F&& f) {
  dlib::visit_computational_layers(net, [&](auto& layer) {
    if constexpr (ShardedLayer<decltype(layer)>) f(layer);
  });
}

/// Calls f(const dlib::tensor&) with the parameters of each sharded layer, gathered one after the
/// other, as dlib::visit_layer_parameters would. All ranks call it.
template <class NET, class F>
void visit_gathered(NET& net, F&& f) {
  visit_sharded(net, [&](auto& layer) { layer.visit_gathered(f); });
}

/// A solver as dlib has them, one for each layer of a net: updates this rank's part of the layer by
/// one of the library's optimizers and tells dlib of no change. The learning rate is the one that
/// dlib passes, not that of `settings`.
template <shardwise::ElementwiseOptimizer Optimizer>
class ShardedSolver {
 public:
  explicit ShardedSolver(const Optimizer& settings = {}) : settings_(settings) {}
  ShardedSolver(ShardedSolver&&) noexcept = default;
  /// A copy begins anew; UsageError where that would lose something.
  ShardedSolver(const ShardedSolver& other) : settings_(other.settings_) {
    if (other.state_) shardwise::raise("a ShardedSolver that has been used cannot be copied");
  }
  ShardedSolver& operator=(const ShardedSolver&) = delete;

  template <class LAYER>
  const dlib::tensor& operator()(double learning_rate, const LAYER& layer,
                                 const dlib::tensor& gradient) {
    if constexpr (ShardedLayer<LAYER>) {
      LayerShard& shard = layer.shard();
      if (!state_) state_.emplace(shard.parameter(), settings_);
      state_->optimizer.learning_rate = learning_rate;
      state_->step(shard.parameter(), shard.gradient());
    } else {
      std::ostringstream text;
      text << layer;
      shardwise::raise(
          "a layer that is not sharded has {} parameters, whose gradients nobody reduces: {}",
          gradient.size(), text.str());
    }
    no_change_.copy_size(gradient);
    no_change_ = 0;
    return no_change_;
  }

 private:
  Optimizer settings_;
  std::optional<shardwise::ShardedOptimizerState<Optimizer>> state_;
  dlib::resizable_tensor no_change_;
};

}  // namespace callback_host
