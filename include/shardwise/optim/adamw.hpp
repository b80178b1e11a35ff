#pragma once

#include <array>
#include <cstdint>

#include "adam_moments.hpp"
#include "optimizer.hpp"

namespace shardwise::inline v0_1 {

/// AdamW (Loshchilov and Hutter, Decoupled weight decay regularization, 2019), as PyTorch has it.
/// At step t, with lr and wd after the tensor's multipliers:
///
///     p = p * (1 - lr * wd)
///     m = beta1 * m + (1 - beta1) * g
///     v = beta2 * v + (1 - beta2) * (g * g)
///     p = p - lr / (1 - beta1^t) * (m / (sqrt(v) * (1 / sqrt(1 - beta2^t)) + epsilon))
///
/// What does not depend on the element is computed in double and rounded once; the rest is in the
/// parameter's accumulator type, as it is written.
struct AdamW {
  double learning_rate = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 0.01;

  using States = StateTypes<float, float>;
  static constexpr std::array state_names{"exp_avg", "exp_avg_sq"};
  static constexpr bool in_lanes = true;

  template <class Real>
  struct Constants {
    Real decay;
    detail::AdamMoments<Real> moments;
  };

  template <class Real>
  [[nodiscard]] Constants<Real> constants(std::uint64_t step, const TensorOptions& options) const {
    const double rate = learning_rate * options.learning_rate;
    return {static_cast<Real>(1 - rate * (weight_decay * options.weight_decay)),
            detail::AdamMoments<Real>::at(step, rate, beta1, beta2, epsilon)};
  }

  template <class Real, class Value>
  SHARDWISE_HOST_DEVICE static void update(const Constants<Real>& c, Value& p, Value g, Value& m,
                                           Value& v) {
    p = p * c.decay;
    c.moments.update(p, g, m, v);
  }

  /// UsageError unless learning_rate, epsilon and weight_decay are not negative and the betas in
  /// [0, 1).
  template <class Thrown = UsageError>
  void validate() const {
    detail::require_magnitude<Thrown>("AdamW::learning_rate", learning_rate);
    detail::require_fraction<Thrown>("AdamW::beta1", beta1);
    detail::require_fraction<Thrown>("AdamW::beta2", beta2);
    detail::require_magnitude<Thrown>("AdamW::epsilon", epsilon);
    detail::require_magnitude<Thrown>("AdamW::weight_decay", weight_decay);
  }
};

}  // namespace shardwise::inline v0_1
