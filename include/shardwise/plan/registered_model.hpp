#pragma once

#include <algorithm>
#include <cstddef>
#include <functional>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "../context.hpp"
#include "../core/checked.hpp"
#include "../detail/flat_parameter.hpp"
#include "../detail/in_place.hpp"
#include "../detail/pages.hpp"
#include "memory.hpp"

namespace shardwise::inline v0_1 {

/// What a live context's host has registered, as a plan has it: the same model with another
/// strategy, in another world, on another backend.
struct RegisteredModel {
  std::vector<PlannedParameter> parameters;  ///< in order of registration
  /// Where they are registered now. `backend.like` borrows the context's communicator.
  PlanOptions options;
};

namespace detail {

[[nodiscard]] inline PlannedParameter planned_from(const Registration& entry) {
  PlannedParameter planned;
  for (const Layout::Tensor& tensor : entry.layout.tensors()) {
    TensorSpec spec{tensor.name, {}, tensor.options};
    spec.shape.assign(tensor.shape.begin(), tensor.shape.end());
    planned.tensors.push_back(std::move(spec));
  }
  planned.options.name = entry.name();
  if (entry.own_strategy != nullptr) planned.options.strategy = *entry.own_strategy;
  planned.options.tied = entry.tied;
  planned.options.residency = entry.own_residency;
  planned.storage = entry.storage;
  planned.gradient = entry.gradient;
  planned.state = entry.state.list();
  planned.gradient_residency = entry.gradient_residency;
  planned.late = entry.late;
  planned.gradient_late = entry.gradient_late;
  return planned;
}

/// Arenas of a context, one behind the other in one range of elements.
template <class Device>
class RegisteredArenas {
 public:
  /// A beginning at such a multiple of elements is one of pages and granules, whatever the type.
  explicit RegisteredArenas(std::size_t granule) : step_(8 * std::max(granule, page_size())) {}

  /// Elements from the beginning to each of the parameter's tensors.
  [[nodiscard]] std::vector<std::size_t> offsets_of(const FlatParameter<Device>& parameter) {
    const std::size_t size = size_of(parameter.lease);
    const std::size_t begin = parameter.arena() == nullptr ? 0 : begin_of(*parameter.arena(), size);
    std::vector<std::size_t> offsets;
    for (const Piece& piece : parameter.pieces()) {
      const bool is_placed = parameter.arena() != nullptr && piece.count > 0;
      offsets.push_back(
          is_placed
              ? begin + static_cast<std::size_t>(piece.data - parameter.arena()->data()) / size
              : 0);
    }
    return offsets;
  }
  [[nodiscard]] std::size_t elements() const noexcept { return end_; }

 private:
  struct Known {
    const RangeOf<Device>* range;
    std::size_t begin;
  };

  [[nodiscard]] std::size_t begin_of(const RangeOf<Device>& range, std::size_t size) {
    for (const Known& known : known_) {
      if (known.range == &range) return known.begin;
    }
    known_.push_back({&range, end_});
    end_ += round_up(range.size() / size + 1, step_);
    return known_.back().begin;
  }

  std::size_t step_;
  std::size_t end_ = 0;
  std::vector<Known> known_;
};

/// Bytes that this device maps at once; 0 where arenas are of pages.
template <class Device>
[[nodiscard]] std::size_t granule_of_device() {
  if constexpr (MapsMemory<Device>) {
    return typename Device::VirtualMemory().granule();
  } else {
    return 0;
  }
}

}  // namespace detail

/// What is registered in this context now: plan_memory(model.parameters, Strategy::zero3(),
/// model.options) tells what the host's own model would cost otherwise. State that an optimizer of
/// the host's own keeps is not known here: add its types to PlannedParameter::state.
template <class Device>
[[nodiscard]] RegisteredModel registered_model(Context<Device>& context) {
  RegisteredModel model;
  model.options.world = context.world();
  model.options.context = context.engine().options;
  model.options.backend.like = &context.communicator();
  const auto parameters = context.parameter_store().parameters();
  const bool in_place = std::any_of(parameters.begin(), parameters.end(), [](const auto* entry) {
    return entry->residency == Residency::in_place || entry->in_shared_arena;
  });
  if (in_place) model.options.granule = detail::granule_of_device<Device>();
  detail::RegisteredArenas<Device> arenas(model.options.granule);
  for (const detail::FlatParameter<Device>* parameter : parameters) {
    PlannedParameter planned = detail::planned_from(*parameter);
    if (parameter->residency == Residency::in_place || parameter->in_shared_arena)
      planned.offsets = arenas.offsets_of(*parameter);
    model.parameters.push_back(std::move(planned));
  }
  model.options.arena_elements = arenas.elements();
  return model;
}

/// What each rank would hold of what is registered in this context, with this strategy, in a world
/// of so many ranks (0: this one's). What ParameterOptions said of a parameter stays said.
template <class Device>
[[nodiscard]] MemoryPlan plan_memory(Context<Device>& context, const Strategy& strategy,
                                     int world = 0) {
  RegisteredModel model = registered_model(context);
  if (world > 0) model.options.world = world;
  return plan_memory(model.parameters, strategy, model.options);
}

}  // namespace shardwise::inline v0_1
