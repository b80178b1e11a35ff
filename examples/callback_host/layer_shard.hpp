#pragma once

#include <dlib/cuda/tensor.h>

#include <array>
#include <cstddef>
#include <optional>
#include <shardwise/shardwise.hpp>
#include <span>
#include <string>
#include <utility>

namespace callback_host {

/// What solvers multiply learning rate and weight decay by. A layer whose learning rate is
/// multiplied by 0 is frozen: it has no gradient.
struct LayerMultipliers {
  shardwise::TensorOptions of_weights, of_biases;

  [[nodiscard]] bool operator==(const LayerMultipliers&) const = default;
};

/// What a layer keeps from one call to the next: this rank's part of its parameters and gradient.
/// The whole parameters are there from gather() to release(), in a tensor of the layer's.
class LayerShard {
 public:
  LayerShard(shardwise::Context<>& context, std::string name)
      : context_(context), name_(std::move(name)) {}

  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] shardwise::Context<>& context() const { return context_; }

  /// Rank 0's bytes, on every rank.
  [[nodiscard]] std::string broadcast(std::string bytes) const;
  /// Allocates the shards, on all ranks in the middle of a step: a layer learns its size from its
  /// first input. The layer's tensor has this shape, and the last `biases` elements are biases.
  /// `initial`, the tensor, is read on rank 0 alone.
  void make(const dlib::alias_tensor& shape, std::size_t biases,
            const LayerMultipliers& multipliers, const dlib::tensor& initial);

  /// Allocates `whole` and gathers the parameters into it; nothing before make(). Idempotent.
  void gather(dlib::resizable_tensor& whole);
  /// Frees it again. Idempotent.
  void release(dlib::resizable_tensor& whole) noexcept;
  /// UsageError that names the layer where `whole` is not what gather() made.
  void require_gathered(const dlib::tensor& whole) const;

  /// UsageError where they are not those that make() was given: the optimizer would not notice.
  void require_unchanged(const LayerMultipliers& multipliers) const;

  /// The mean over ranks becomes the gradient, instead of what it was.
  void reduce(dlib::tensor& whole);

  /// Whether there is a gradient.
  [[nodiscard]] bool learns() const { return gradient_.has_value(); }
  [[nodiscard]] shardwise::ShardedParameter<float>& parameter() { return parameter_.value(); }
  [[nodiscard]] shardwise::ShardedGradient<float>& gradient() { return gradient_.value(); }

 private:
  // Where the parameter's tensors lie in the layer's.
  [[nodiscard]] std::span<float* const> parts(float* whole);

  shardwise::Context<>& context_;
  std::string name_;
  dlib::alias_tensor shape_;
  std::size_t biases_ = 0;
  LayerMultipliers multipliers_;
  std::array<float*, 2> parts_{};
  std::optional<shardwise::ShardedParameter<float>> parameter_;
  std::optional<shardwise::ShardedGradient<float>> gradient_;
};

/// Gathers for as long as it lives.
class GatheredLayer {
 public:
  GatheredLayer(LayerShard& shard, dlib::resizable_tensor& whole) : shard_(shard), whole_(whole) {
    shard_.gather(whole_);
  }
  GatheredLayer(const GatheredLayer&) = delete;
  GatheredLayer& operator=(const GatheredLayer&) = delete;
  ~GatheredLayer() { shard_.release(whole_); }

 private:
  LayerShard& shard_;
  dlib::resizable_tensor& whole_;
};

}  // namespace callback_host
