#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../context.hpp"
#include "../layout.hpp"
#include "../loss_scaler.hpp"
#include "../sharded_optimizer_state.hpp"
#include "../sharded_parameter.hpp"
#include "optimizer_settings.hpp"
#include "state_tensor.hpp"

namespace shardwise::inline v0_1 {

namespace detail {

/// Elements [begin, begin + count) of a flat buffer.
struct FlatRange {
  std::size_t begin = 0;
  std::size_t count = 0;
};

/// What `rank` writes of a flat parameter and of its optimizer's values: one of the layout's
/// shards, so that over all ranks every element is written once, also where groups of ranks hold
/// copies. Where everything is replicated the shard counts, too: of a copy only that is sure to be
/// up to date.
template <class Device>
[[nodiscard]] FlatRange written_range(const FlatParameter<Device>& parameter, int rank) {
  const Layout& layout = parameter.layout;
  return {layout.shard_begin(parameter.layout_shard_of(rank)), layout.shard_size()};
}
/// What it stores of the parameter, and must get back.
template <class Device>
[[nodiscard]] FlatRange stored_range(const FlatParameter<Device>& parameter) noexcept {
  if (parameter.storage_is_whole()) return {0, parameter.layout.padded_size()};
  return {parameter.shard_begin, parameter.shard_size()};
}

}  // namespace detail

/// What a checkpoint holds of a training: a list of parameters, optimizer states and tensors of the
/// host's, in the same order on all ranks. It refers to them: they must outlive it and stay where
/// they are. Names are those of tensors, and unique; an optimizer's values are named after them
/// ("w.exp_avg").
template <class Device = HostDevice>
class TrainingState {
 public:
  explicit TrainingState(Context<Device>& context) : context_(&context) {}
  TrainingState(const TrainingState&) = delete;
  TrainingState& operator=(const TrainingState&) = delete;

  /// In the storage type: master weights, where leases are of a smaller one.
  template <FloatingElement T>
  void add(ShardedParameter<T, Device>& parameter) {
    auto& flat = parameter.flat();
    require_context(&parameter.context(), parameter.name());
    const detail::FlatRange stored = detail::stored_range(flat);
    add_tensors(flat, "", dtype_of<T>, stored, std::nullopt,
                [&](const Layout::Segment& segment) { return flat.stored(segment); });
    parameters_.push_back(&flat);
  }

  /// Its values, steps and settings.
  template <ElementwiseOptimizer Optimizer>
  void add(ShardedOptimizerState<Optimizer, Device>& state) {
    auto& flat = state.flat_parameter();
    const auto index = static_cast<std::uint32_t>(optimizers_.size());
    for (const Layout::Tensor& tensor : flat.layout.tensors()) {
      const auto found = names_.find(tensor.name);
      if (found == names_.end()) {
        raise("the optimizer of parameter '{}' comes to a training state after the parameter",
              flat.name());
      }
      tensors_[found->second].optimizer = index;
    }
    const detail::FlatRange owned{flat.owned_begin(), flat.owned_count()};
    [&]<class... S>(StateTypes<S...>) {
      std::size_t i = 0;
      (add_values<S>(state, Optimizer::state_names[i++], owned, index), ...);
    }(typename Optimizer::States());
    optimizers_.push_back({detail::optimizer_kind<Optimizer>(), flat.name(),
                           [&state] { return state.steps(); },
                           [&state] { return detail::hyperparameters_of(state.optimizer); },
                           [&state](std::uint64_t steps) { state.restore_steps(steps); },
                           [&state](const CheckpointValues& values) {
                             detail::restore_hyperparameters(state.optimizer, values);
                           }});
  }

  void add(LossScaler& scaler) { scaler_ = &scaler; }

  /// A tensor of the host's memory that is equal on all ranks; a load fills it on each.
  template <Element T>
  void add_replicated(std::string name, std::span<T> values, std::vector<Dimension> shape = {}) {
    detail::StateTensor tensor = of_host(std::move(name), values);
    if (!shape.empty()) {
      tensor.shape.assign(shape.begin(), shape.end());
      std::size_t count = 1;
      for (const std::uint64_t extent : tensor.shape) {
        count = checked_multiply(count, static_cast<std::size_t>(extent), tensor.name.c_str());
      }
      if (count != values.size()) {
        raise("tensor '{}' has {} elements, but its shape has {}", tensor.name, values.size(),
              count);
      }
    }
    const auto ranks = static_cast<std::uint64_t>(context_->world());
    const auto rank = static_cast<std::uint64_t>(context_->rank());
    const std::uint64_t part = (tensor.count + ranks - 1) / ranks;
    tensor.write_first = std::min(rank * part, tensor.count);
    tensor.write_count = std::min(part, tensor.count - tensor.write_first);
    append(std::move(tensor));
  }

  /// A tensor of the host's memory that each rank has for itself: rank r's is saved as "name@r". It
  /// comes back at the same number of ranks; at another one LoadOptions must say what is to happen.
  template <Element T>
  void add_by_rank(const std::string& name, std::span<T> values) {
    for (int rank = 0; rank < context_->world(); ++rank) {
      const bool is_mine = rank == context_->rank();
      detail::StateTensor tensor =
          of_host(name + '@' + std::to_string(rank), is_mine ? values : std::span<T>());
      tensor.only_rank = rank;
      tensor.write_count = tensor.count;
      append(std::move(tensor));
    }
  }

  [[nodiscard]] Context<Device>& context() const noexcept { return *context_; }

  /// The library's own side; not for hosts.
  [[nodiscard]] const std::vector<detail::StateTensor>& tensors() const noexcept {
    return tensors_;
  }
  [[nodiscard]] const std::vector<detail::StateOptimizer>& optimizers() const noexcept {
    return optimizers_;
  }
  [[nodiscard]] LossScaler* loss_scaler() const noexcept { return scaler_; }
  [[nodiscard]] const std::vector<detail::FlatParameter<Device>*>& parameters() const noexcept {
    return parameters_;
  }

 private:
  using Flat = detail::FlatParameter<Device>;

  void require_context(const Context<Device>* other, const std::string& name) const {
    if (other == context_) return;
    raise("parameter '{}' belongs to another context than this training state", name);
  }

  template <class S, class State>
  void add_values(State& state, std::string_view slot, const detail::FlatRange& owned,
                  std::uint32_t index) {
    auto* const values = reinterpret_cast<std::byte*>(state.template values<S>(slot).data());
    add_tensors(state.flat_parameter(), '.' + std::string(slot), dtype_of<S>, owned, index,
                [&](const Layout::Segment& segment) {
                  return values + (segment.offset - owned.begin) * sizeof(S);
                });
  }

  // address(segment) of what is held of `held`.
  template <class Address>
  void add_tensors(Flat& flat, const std::string& suffix, DType dtype,
                   const detail::FlatRange& held, std::optional<std::uint32_t> optimizer,
                   const Address& address) {
    const Layout& layout = flat.layout;
    const std::size_t base = tensors_.size();
    for (const Layout::Tensor& source : layout.tensors()) {
      detail::StateTensor tensor{source.name + suffix, dtype};
      tensor.shape.assign(source.shape.begin(), source.shape.end());
      tensor.count = source.count;
      tensor.optimizer = optimizer;
      tensor.on_device = Device::memory != MemoryKind::host;
      append(std::move(tensor));
    }
    layout.for_each_segment(held.begin, held.begin + held.count,
                            [&](const Layout::Segment& segment) {
                              detail::StateTensor& tensor = tensors_[base + segment.tensor];
                              tensor.first = segment.tensor_offset;
                              tensor.held = segment.count;
                              tensor.data = address(segment);
                            });
    const detail::FlatRange written = detail::written_range(flat, context_->rank());
    layout.for_each_segment(written.begin, written.begin + written.count,
                            [&](const Layout::Segment& segment) {
                              detail::StateTensor& tensor = tensors_[base + segment.tensor];
                              tensor.write_first = segment.tensor_offset;
                              tensor.write_count = segment.count;
                            });
  }

  template <class T>
  [[nodiscard]] static detail::StateTensor of_host(std::string name, std::span<T> values) {
    detail::StateTensor tensor{std::move(name), dtype_of<T>};
    tensor.count = values.size();
    tensor.shape = {tensor.count};
    tensor.held = tensor.count;
    tensor.data = reinterpret_cast<std::byte*>(values.data());
    return tensor;
  }

  void append(detail::StateTensor tensor) {
    if (tensor.name.empty()) raise("a tensor of a training state has no name");
    if (!names_.emplace(tensor.name, tensors_.size()).second) {
      raise("the training state has two tensors of the name '{}'; names of a checkpoint are unique",
            tensor.name);
    }
    tensors_.push_back(std::move(tensor));
  }

  Context<Device>* context_;
  std::vector<detail::StateTensor> tensors_;
  std::vector<detail::StateOptimizer> optimizers_;
  std::vector<Flat*> parameters_;
  std::map<std::string, std::size_t, std::less<>> names_;  // -> index in tensors_
  LossScaler* scaler_ = nullptr;
};

}  // namespace shardwise::inline v0_1
