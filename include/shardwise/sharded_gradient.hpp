#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <utility>

#include "context.hpp"
#include "lease.hpp"
#include "sharded_parameter.hpp"

namespace shardwise::inline v0_1 {

/// The gradient of one ShardedParameter, stored as type G: whole or this rank's shard, as the
/// strategy says. Leases lend the whole gradient in the gradient lease type; reducing one adds the
/// mean over ranks to what is stored, summed in float in the canonical order and rounded once to G.
/// A parameter without a gradient is frozen. Movable; the parameter must outlive it.
template <FloatingElement G, class Device = HostDevice>
class ShardedGradient {
 public:
  using value_type = G;

  /// UsageError where the parameter has a gradient already.
  template <FloatingElement T>
  explicit ShardedGradient(ShardedParameter<T, Device>& parameter)
      : context_(&parameter.context()) {
    auto& flat = parameter.flat();
    if (flat.gradient) raise("parameter '{}' has a gradient already", flat.name);
    flat_ = std::make_unique<detail::FlatGradient<Device>>(context_->engine(), flat, dtype_of<G>);
    context_->gradient_store().add(*flat_);
    flat.gradient = dtype_of<G>;
  }
  ShardedGradient(ShardedGradient&&) noexcept = default;
  ShardedGradient& operator=(ShardedGradient&&) = delete;
  ~ShardedGradient() {
    if (flat_ == nullptr) return;
    context_->engine().quiesce();
    context_->gradient_store().remove(*flat_);
    flat_->parameter.gradient.reset();
  }

  [[nodiscard]] const std::string& name() const noexcept { return flat_->parameter.name; }
  [[nodiscard]] const Layout& layout() const noexcept { return flat_->parameter.layout; }
  [[nodiscard]] Context<Device>& context() const noexcept { return *context_; }

  /// Lends the whole gradient, zeroed, to be added to. While one is open a second one (a tied
  /// parameter) lends the same memory as it is; the reduction follows when the last one is reduced.
  /// L must be Strategy::gradient_lease (the lease type unless set). UsageError, on all ranks,
  /// where no slot is free.
  template <FloatingElement L = G>
  [[nodiscard]] GradientLease<L, Device> lease() {
    require_lease_type(dtype_of<L>);
    context_->gradient_store().open(*flat_);
    return {*context_, *flat_};
  }

  /// The plain form under lease(): idempotent until reduce() or discard(), for hosts that call from
  /// hooks.
  template <FloatingElement L = G>
  detail::FlatView<L> ensure_open() {
    require_lease_type(dtype_of<L>);
    if (!flat_->held) {
      context_->gradient_store().open(*flat_);
      flat_->held = true;
    }
    return {reinterpret_cast<L*>(flat_->whole()), layout()};
  }
  /// Ends ensure_open() with a reduction. Idempotent.
  void reduce() { end_open(std::nullopt); }
  /// The same for batches of different sizes: see Context::weigh.
  void reduce(ReductionWeight weight) { end_open(weight); }
  /// Ends ensure_open() without a contribution. Idempotent.
  void discard() noexcept {
    if (std::exchange(flat_->held, false)) context_->gradient_store().discard(*flat_);
  }

  /// Stored gradient of what this rank's optimizer updates, laid out as ShardedParameter::shard(),
  /// not yet multiplied by coefficient(); zeros where nothing was reduced since the last update.
  /// The context's stream waits for the reduction. UsageError while a lease is open.
  [[nodiscard]] std::span<const G> shard() {
    context_->gradient_store().settle(*flat_, "shard()");
    return {reinterpret_cast<const G*>(flat_->owned()), flat_->parameter.owned_count()};
  }
  /// What an update multiplies the stored gradient by: clipping and loss scale. 1 after each
  /// update.
  [[nodiscard]] float coefficient() const noexcept { return flat_->coefficient; }

  /// For a host's own optimizer, after its update: the next reduction overwrites what is stored.
  /// ShardedOptimizerState::step does it itself.
  void consume() noexcept { context_->gradient_store().consume(*flat_); }

  /// The library's own side; not for hosts.
  [[nodiscard]] detail::FlatGradient<Device>& flat() const noexcept { return *flat_; }

  void require_lease_type(DType lease) const {
    const DType expected = flat_->parameter.gradient_lease;
    if (lease == expected) return;
    raise(
        "the gradient of '{}' is leased as {}, but its leases are {}: call lease<{}>(), or set "
        "Strategy::gradient_lease = DType::{} (slots are planned by it)",
        name(), name_of(lease), name_of(expected), name_of(expected), name_of(lease));
  }

 private:
  void end_open(std::optional<ReductionWeight> weight) {
    if (!flat_->held) return;
    context_->gradient_store().check_reduction(*flat_, weight);
    flat_->held = false;
    context_->gradient_store().reduce(*flat_, weight);
  }

  Context<Device>* context_;
  std::unique_ptr<detail::FlatGradient<Device>> flat_;
};

template <FloatingElement T, class Device>
ShardedGradient(ShardedParameter<T, Device>&) -> ShardedGradient<T, Device>;

}  // namespace shardwise::inline v0_1
