#pragma once

#include <concepts>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>
#include <variant>

#include "../core/error.hpp"
#include "../optim/adam.hpp"
#include "../optim/adamw.hpp"
#include "../optim/lion.hpp"
#include "../optim/sgd.hpp"
#include "value.hpp"

namespace shardwise::inline v0_1::detail {

/// What a checkpoint calls an optimizer: a host's own says it by `static constexpr std::string_view
/// checkpoint_name`, else it is "custom".
template <class Optimizer>
[[nodiscard]] std::string optimizer_kind() {
  if constexpr (requires { std::string(Optimizer::checkpoint_name); }) {
    return std::string(Optimizer::checkpoint_name);
  } else if constexpr (std::same_as<Optimizer, AdamW>) {
    return "adamw";
  } else if constexpr (std::same_as<Optimizer, Adam>) {
    return "adam";
  } else if constexpr (std::same_as<Optimizer, Sgd>) {
    return "sgd";
  } else if constexpr (std::same_as<Optimizer, SgdMomentum>) {
    return "sgd_momentum";
  } else if constexpr (std::same_as<Optimizer, Lion>) {
    return "lion";
  } else {
    return "custom";
  }
}

/// f(name, value) for each hyperparameter: a host's own optimizer has its own under these names, or
/// in a member `void checkpoint_hyperparameters(f)`.
template <class Optimizer, class F>
void for_each_hyperparameter(Optimizer& optimizer, F&& f) {
  if constexpr (requires { optimizer.checkpoint_hyperparameters(f); }) {
    optimizer.checkpoint_hyperparameters(f);
  } else {
    if constexpr (requires { optimizer.learning_rate; })
      f("learning_rate", optimizer.learning_rate);
    if constexpr (requires { optimizer.beta1; }) f("beta1", optimizer.beta1);
    if constexpr (requires { optimizer.beta2; }) f("beta2", optimizer.beta2);
    if constexpr (requires { optimizer.epsilon; }) f("epsilon", optimizer.epsilon);
    if constexpr (requires { optimizer.momentum; }) f("momentum", optimizer.momentum);
    if constexpr (requires { optimizer.dampening; }) f("dampening", optimizer.dampening);
    if constexpr (requires { optimizer.nesterov; }) f("nesterov", optimizer.nesterov);
    if constexpr (requires { optimizer.weight_decay; }) f("weight_decay", optimizer.weight_decay);
  }
}

template <class Optimizer>
[[nodiscard]] CheckpointValues hyperparameters_of(const Optimizer& optimizer) {
  CheckpointValues values;
  for_each_hyperparameter(optimizer, [&](std::string_view name, const auto& value) {
    values.emplace(name, CheckpointValue(value));
  });
  return values;
}

/// UsageError where one is missing or of another kind.
template <class Optimizer>
void restore_hyperparameters(Optimizer& optimizer, const CheckpointValues& values) {
  for_each_hyperparameter(optimizer, [&](std::string_view name, auto& value) {
    using Value = std::remove_reference_t<decltype(value)>;
    const auto found = values.find(name);
    if (found == values.end()) {
      raise("the checkpoint has no hyperparameter '{}' of this optimizer", name);
    }
    if constexpr (std::same_as<Value, bool>) {
      value = found->second.template as<bool>();
    } else if constexpr (std::floating_point<Value>) {
      value = static_cast<Value>(found->second.template as<double>());
    } else if constexpr (std::unsigned_integral<Value>) {
      value = static_cast<Value>(found->second.template as<std::uint64_t>());
    } else {
      value = static_cast<Value>(found->second.template as<std::int64_t>());
    }
  });
}

}  // namespace shardwise::inline v0_1::detail
