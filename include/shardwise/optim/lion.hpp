#pragma once

#include <array>
#include <cstdint>

#include "optimizer.hpp"

namespace shardwise::inline v0_1 {

/// Lion (Chen et al., Symbolic discovery of optimization algorithms, 2023, program 1). With lr and
/// wd after the tensor's multipliers, and sign(0) = 0:
///
///     p = p * (1 - lr * wd)
///     p = p - lr * sign(beta1 * m + (1 - beta1) * g)
///     m = beta2 * m + (1 - beta2) * g
struct Lion {
  double learning_rate = 1e-4;
  double beta1 = 0.9;
  double beta2 = 0.99;
  double weight_decay = 0;

  using States = StateTypes<float>;
  static constexpr std::array state_names{"exp_avg"};
  static constexpr bool in_lanes = true;

  template <class Real>
  struct Constants {
    Real decay, beta1, beta2, one_minus_beta1, one_minus_beta2, learning_rate;
  };

  template <class Real>
  [[nodiscard]] Constants<Real> constants(std::uint64_t /*step*/,
                                          const TensorOptions& options) const {
    const double rate = learning_rate * options.learning_rate;
    return {static_cast<Real>(1 - rate * (weight_decay * options.weight_decay)),
            static_cast<Real>(beta1),
            static_cast<Real>(beta2),
            static_cast<Real>(1 - beta1),
            static_cast<Real>(1 - beta2),
            static_cast<Real>(rate)};
  }

  template <class Real, class Value>
  SHARDWISE_HOST_DEVICE static void update(const Constants<Real>& c, Value& p, Value g, Value& m) {
    p = p * c.decay;
    p = p - c.learning_rate * sign(c.beta1 * m + c.one_minus_beta1 * g);
    m = c.beta2 * m + c.one_minus_beta2 * g;
  }

  /// UsageError unless learning_rate and weight_decay are finite and not negative and the betas in
  /// [0, 1).
  template <class Thrown = UsageError>
  void validate() const {
    detail::require_magnitude<Thrown>("Lion::learning_rate", learning_rate);
    detail::require_fraction<Thrown>("Lion::beta1", beta1);
    detail::require_fraction<Thrown>("Lion::beta2", beta2);
    detail::require_magnitude<Thrown>("Lion::weight_decay", weight_decay);
  }
};

}  // namespace shardwise::inline v0_1
