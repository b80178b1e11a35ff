#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "arena.hpp"
#include "context.hpp"
#include "detail/host_place.hpp"
#include "host_tensor.hpp"
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

  /// Leases lend slots of the library. UsageError where the parameter has a gradient already.
  template <FloatingElement T>
  explicit ShardedGradient(ShardedParameter<T, Device>& parameter)
      : ShardedGradient(parameter, Residency::slots) {}

  /// Residency in_place: the host writes the gradient through its own pointers into `arena`, where
  /// each tensor has the offset, in elements, that it has in the arena of its parameter. It is
  /// readable and zeroed from lease() or ensure_open() on and gone after the reduction. UsageError
  /// where the parameter is in no arena, ranks share `arena`, or gradients travel in another type
  /// than they are written in.
  template <FloatingElement T>
  ShardedGradient(ShardedParameter<T, Device>& parameter, DeviceArena<Device>& arena) {
    auto& flat = parameter.flat();
    begin(flat, Residency::in_place);
    if (flat.residency != Residency::in_place && !flat.in_shared_arena) {
      raise(
          "the gradient of '{}' was given an arena, but the parameter is {}: only tensors of one "
          "arena have their place in another",
          flat.name(), name_of(flat.residency));
    }
    if (arena.range(*flat.context)->ranks() != nullptr) {
      raise(
          "the gradient of '{}' was given an arena that ranks share, but each rank writes a "
          "gradient of its own: make that arena without ArenaOptions::shared",
          flat.name());
    }
    std::vector<HostTensor> tensors;
    for (std::size_t i = 0; i < flat.pieces().size(); ++i) {
      const Layout::Tensor& tensor = flat.layout.tensors()[i];
      HostTensor mirrored(tensor.name, static_cast<G*>(nullptr), {tensor.count});
      mirrored.dtype = flat.gradient_lease;
      if (tensor.count > 0) {
        const auto bytes = static_cast<std::size_t>(flat.pieces()[i].data - flat.arena()->data());
        mirrored.data = arena.data() + bytes / size_of(flat.lease) * size_of(flat.gradient_lease);
      }
      tensors.push_back(std::move(mirrored));
    }
    detail::HostPlace<detail::RangeOf<Device>> place = detail::claim_place(
        arena.range(*flat.context), flat.name(), tensors, flat.layout, flat.gradient_lease, true);
    flat.gradient_placed = std::move(place.placed);
    finish(flat, Residency::in_place, std::move(place.pieces), place.arena);
  }

  /// Residency host_buffer: the host makes the gradient itself (autograd does) and contributes it
  /// by reduce_from(); there are no leases. Residency slots: as without.
  template <FloatingElement T>
  ShardedGradient(ShardedParameter<T, Device>& parameter, Residency residency) {
    auto& flat = parameter.flat();
    if (residency == Residency::in_place) {
      raise(
          "the gradient of '{}': residency in_place needs an Arena: ShardedGradient(parameter, "
          "arena)",
          flat.name());
    }
    if (residency == Residency::shared) {
      raise(
          "the gradient of '{}': parameters are shared, but each rank writes a gradient of its "
          "own: leave the residency out, or take slots or host_buffer",
          flat.name());
    }
    begin(flat, residency);
    finish(flat, residency, {}, nullptr);
  }
  ShardedGradient(ShardedGradient&&) noexcept = default;
  ShardedGradient& operator=(ShardedGradient&&) = delete;
  ~ShardedGradient() {
    if (flat_ == nullptr) return;
    auto& parameter = flat_->parameter;
    context().engine().quiesce();
    context().gradient_store().remove(*flat_);
    flat_.reset();
    parameter.gradient.reset();
    parameter.gradient_residency = Residency::slots;
    parameter.gradient_placed = {};
  }

  [[nodiscard]] const std::string& name() const noexcept { return flat_->parameter.name(); }
  [[nodiscard]] const Layout& layout() const noexcept { return flat_->parameter.layout; }
  [[nodiscard]] Context<Device>& context() const noexcept { return *flat_->parameter.context; }

  /// Lends the whole gradient, zeroed, to be added to. While one is open a second one (a tied
  /// parameter) lends the same memory as it is; the reduction follows when the last one is reduced.
  /// L must be Strategy::gradient_lease (the lease type unless set). UsageError, on all ranks,
  /// where no slot is free.
  template <FloatingElement L = G>
  [[nodiscard]] GradientLease<L, Device> lease() {
    require_lease_type(dtype_of<L>);
    context().gradient_store().open(*flat_);
    return {context(), *flat_};
  }

  /// The plain form under lease(): idempotent until reduce() or discard(), for hosts that call from
  /// hooks.
  template <FloatingElement L = G>
  detail::FlatView<L> ensure_open() {
    require_lease_type(dtype_of<L>);
    if (!flat_->held) {
      context().gradient_store().open(*flat_);
      flat_->held = true;
    }
    return detail::view_of<L>(*flat_, layout());
  }
  /// Ends ensure_open() with a reduction. Idempotent.
  void reduce() { end_open(std::nullopt); }
  /// The same for batches of different sizes: see Context::weigh.
  void reduce(ReductionWeight weight) { end_open(weight); }
  /// Ends ensure_open() without a contribution. Idempotent.
  void discard() noexcept {
    if (std::exchange(flat_->held, false)) context().gradient_store().discard(*flat_);
  }

  /// Residency host_buffer: a contribution from the host's own memory, one buffer for each tensor,
  /// without padding, of the gradient lease type L. Reduced over ranks to the mean and added to
  /// what each rank stores, as a lease's reduce() is; once or more in a step. The
  /// context's stream waits: the buffers may be freed or reused in its order, which on the CPU is
  /// when this returns.
  template <FloatingElement L = G>
  void reduce_from(std::span<L* const> buffers,
                   std::optional<ReductionWeight> weight = std::nullopt) {
    require_lease_type(dtype_of<L>);
    context().gradient_store().reduce_from(*flat_, buffers, weight);
  }
  /// The same for a parameter of one tensor.
  template <FloatingElement L = G>
  void reduce_from(L* buffer, std::optional<ReductionWeight> weight = std::nullopt) {
    reduce_from<L>(std::span<L* const>(&buffer, 1), weight);
  }

  /// Stored gradient of what this rank's optimizer updates, laid out as ShardedParameter::shard(),
  /// not yet multiplied by coefficient(); zeros where nothing was reduced since the last update.
  /// The context's stream waits for the reduction. UsageError while a lease is open.
  [[nodiscard]] std::span<const G> shard() {
    context().gradient_store().settle(*flat_, "shard()");
    return {reinterpret_cast<const G*>(flat_->owned()), flat_->parameter.owned_count()};
  }
  /// The same as a list that matches ShardedParameter::segments(), at addresses that never move.
  [[nodiscard]] std::vector<ShardSegment<const G>> segments() {
    const std::span<const G> all = shard();
    const std::size_t begin = flat_->parameter.owned_begin();
    std::vector<ShardSegment<const G>> result;
    layout().for_each_segment(begin, begin + all.size(), [&](const Layout::Segment& segment) {
      result.push_back({&layout().tensors()[segment.tensor], segment.tensor_offset,
                        all.subspan(segment.offset - begin, segment.count)});
    });
    return result;
  }
  /// What an update multiplies the stored gradient by: clipping and loss scale. 1 after each
  /// update.
  [[nodiscard]] float coefficient() const noexcept { return flat_->coefficient; }

  /// For a host's own optimizer, after its update: the next reduction overwrites what is stored.
  /// ShardedOptimizerState::step does it itself.
  void consume() noexcept { context().gradient_store().consume(*flat_); }

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
  using Flat = detail::FlatParameter<Device>;

  static void begin(Flat& parameter, Residency residency) {
    if (parameter.gradient) raise("parameter '{}' has a gradient already", parameter.name());
    if (residency == Residency::slots || parameter.wire == parameter.gradient_lease) return;
    raise(
        "the gradient of '{}' is {}, so it travels as it is written, as {}; Strategy::wire = {} "
        "needs residency slots",
        parameter.name(), name_of(residency), name_of(parameter.gradient_lease),
        name_of(parameter.wire));
  }
  void finish(Flat& parameter, Residency residency, std::vector<Piece> pieces,
              detail::RangeOf<Device>* arena) {
    parameter.gradient_residency = residency;
    flat_ = std::make_unique<detail::FlatGradient<Device>>(parameter, dtype_of<G>,
                                                           std::move(pieces), arena);
    context().gradient_store().add(*flat_);
    parameter.gradient = dtype_of<G>;
  }

  void end_open(std::optional<ReductionWeight> weight) {
    context().gradient_store().reduce_held(*flat_, weight);
  }

  std::unique_ptr<detail::FlatGradient<Device>> flat_;
};

template <FloatingElement T, class Device>
ShardedGradient(ShardedParameter<T, Device>&) -> ShardedGradient<T, Device>;
template <FloatingElement T, class Device>
ShardedGradient(ShardedParameter<T, Device>&, DeviceArena<Device>&) -> ShardedGradient<T, Device>;
template <FloatingElement T, class Device>
ShardedGradient(ShardedParameter<T, Device>&, Residency) -> ShardedGradient<T, Device>;

}  // namespace shardwise::inline v0_1
