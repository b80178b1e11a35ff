#pragma once

#include <array>
#include <cstdint>

#include "adam_moments.hpp"
#include "optimizer.hpp"

namespace shardwise::inline v0_1 {

/// Adam (Kingma and Ba, 2015), as PyTorch has it: weight decay is an L2 term of the gradient. At
/// step t, with lr and wd after the tensor's multipliers:
///
///     g = g + wd * p
///     m = beta1 * m + (1 - beta1) * g
///     v = beta2 * v + (1 - beta2) * (g * g)
///     p = p - lr / (1 - beta1^t) * (m / (sqrt(v) * (1 / sqrt(1 - beta2^t)) + epsilon))
///
/// Rounding as in AdamW.
struct Adam {
  double learning_rate = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 0;

  using States = StateTypes<float, float>;
  static constexpr std::array state_names{"exp_avg", "exp_avg_sq"};
  static constexpr bool in_lanes = true;

  template <class Real>
  struct Constants {
    Real weight_decay;
    detail::AdamMoments<Real> moments;
  };

  template <class Real>
  [[nodiscard]] Constants<Real> constants(std::uint64_t step, const TensorOptions& options) const {
    const double rate = learning_rate * options.learning_rate;
    return {static_cast<Real>(weight_decay * options.weight_decay),
            detail::AdamMoments<Real>::at(step, rate, beta1, beta2, epsilon)};
  }

  template <class Real, class Value>
  SHARDWISE_HOST_DEVICE static void update(const Constants<Real>& c, Value& p, Value g, Value& m,
                                           Value& v) {
    g = g + c.weight_decay * p;
    c.moments.update(p, g, m, v);
  }

  /// UsageError unless learning_rate, epsilon and weight_decay are not negative and the betas in
  /// [0, 1).
  template <class Thrown = UsageError>
  void validate() const {
    detail::require_magnitude<Thrown>("Adam::learning_rate", learning_rate);
    detail::require_fraction<Thrown>("Adam::beta1", beta1);
    detail::require_fraction<Thrown>("Adam::beta2", beta2);
    detail::require_magnitude<Thrown>("Adam::epsilon", epsilon);
    detail::require_magnitude<Thrown>("Adam::weight_decay", weight_decay);
  }
};

}  // namespace shardwise::inline v0_1
