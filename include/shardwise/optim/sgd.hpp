#pragma once

#include <array>
#include <cstdint>

#include "optimizer.hpp"

namespace shardwise::inline v0_1 {

/// Stochastic gradient descent without momentum and without state, as PyTorch has it. With lr and
/// wd after the tensor's multipliers:
///
///     g = g + wd * p
///     p = p - lr * g
struct Sgd {
  double learning_rate = 1e-3;
  double weight_decay = 0;

  using States = StateTypes<>;
  static constexpr std::array<const char*, 0> state_names{};
  static constexpr bool in_lanes = true;

  template <class Real>
  struct Constants {
    Real weight_decay, learning_rate;
  };

  template <class Real>
  [[nodiscard]] Constants<Real> constants(std::uint64_t /*step*/,
                                          const TensorOptions& options) const {
    return {static_cast<Real>(weight_decay * options.weight_decay),
            static_cast<Real>(learning_rate * options.learning_rate)};
  }

  template <class Real, class Value>
  SHARDWISE_HOST_DEVICE static void update(const Constants<Real>& c, Value& p, Value g) {
    g = g + c.weight_decay * p;
    p = p - c.learning_rate * g;
  }

  /// UsageError unless both values are finite and not negative.
  template <class Thrown = UsageError>
  void validate() const {
    detail::require_magnitude<Thrown>("Sgd::learning_rate", learning_rate);
    detail::require_magnitude<Thrown>("Sgd::weight_decay", weight_decay);
  }
};

/// Stochastic gradient descent with momentum, as PyTorch has it. With lr and wd after the tensor's
/// multipliers:
///
///     g = g + wd * p
///     b = momentum * b + (1 - dampening) * g     (step 1: b = g)
///     p = p - lr * b                             (nesterov: p - lr * (g + momentum * b))
///
/// (Sutskever et al., On the importance of initialization and momentum, 2013, in PyTorch's form.)
struct SgdMomentum {
  double learning_rate = 1e-3;
  double momentum = 0.9;
  double dampening = 0;
  bool nesterov = false;
  double weight_decay = 0;

  using States = StateTypes<float>;
  static constexpr std::array state_names{"momentum_buffer"};
  static constexpr bool in_lanes = true;

  /// p = p - learning_rate * (of_gradient * g + of_buffer * b): 1 and 0 where they do not take
  /// part, which changes no value that is finite.
  template <class Real>
  struct Constants {
    Real weight_decay, momentum, gain, of_gradient, of_buffer, learning_rate;
  };

  template <class Real>
  [[nodiscard]] Constants<Real> constants(std::uint64_t step, const TensorOptions& options) const {
    const bool is_first = step == 1;
    return {static_cast<Real>(weight_decay * options.weight_decay),
            static_cast<Real>(is_first ? 0 : momentum),
            static_cast<Real>(is_first ? 1 : 1 - dampening),
            static_cast<Real>(nesterov ? 1 : 0),
            static_cast<Real>(nesterov ? momentum : 1),
            static_cast<Real>(learning_rate * options.learning_rate)};
  }

  template <class Real, class Value>
  SHARDWISE_HOST_DEVICE static void update(const Constants<Real>& c, Value& p, Value g, Value& b) {
    g = g + c.weight_decay * p;
    b = c.momentum * b + c.gain * g;
    p = p - c.learning_rate * (c.of_gradient * g + c.of_buffer * b);
  }

  /// UsageError unless all values are finite and not negative, and Nesterov's form has momentum and
  /// no dampening.
  template <class Thrown = UsageError>
  void validate() const {
    detail::require_magnitude<Thrown>("SgdMomentum::learning_rate", learning_rate);
    detail::require_magnitude<Thrown>("SgdMomentum::momentum", momentum);
    detail::require_magnitude<Thrown>("SgdMomentum::weight_decay", weight_decay);
    detail::require_hyperparameter<Thrown>(dampening >= 0 && dampening <= 1,
                                           "SgdMomentum::dampening", dampening,
                                           "at least 0 and at most 1");
    detail::require_hyperparameter<Thrown>(!nesterov || momentum > 0, "SgdMomentum::momentum",
                                           momentum, "above 0 with nesterov");
    detail::require_hyperparameter<Thrown>(!nesterov || dampening == 0, "SgdMomentum::dampening",
                                           dampening, "0 with nesterov");
  }
};

}  // namespace shardwise::inline v0_1
