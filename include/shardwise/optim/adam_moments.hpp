#pragma once

#include <cstdint>

#include "../core/math.hpp"
#include "optimizer.hpp"

namespace shardwise::inline v0_1::detail {

/// What Adam and AdamW have in common: the moments m and v of the gradient, and the step along m.
/// Computed in double and rounded once.
template <class Real>
struct AdamMoments {
  Real beta1, beta2, one_minus_beta1, one_minus_beta2, step_size, inverse_root, epsilon;

  /// At step t = 1, 2, ... with this learning rate.
  [[nodiscard]] static AdamMoments at(std::uint64_t step, double rate, double beta1, double beta2,
                                      double epsilon) {
    const auto t = static_cast<double>(step);
    return {static_cast<Real>(beta1),
            static_cast<Real>(beta2),
            static_cast<Real>(1 - beta1),
            static_cast<Real>(1 - beta2),
            static_cast<Real>(rate / (1 - power(beta1, t))),
            static_cast<Real>(1 / square_root(1 - power(beta2, t))),
            static_cast<Real>(epsilon)};
  }

  template <class Value>
  SHARDWISE_HOST_DEVICE void update(Value& p, Value g, Value& m, Value& v) const {
    m = beta1 * m + one_minus_beta1 * g;
    v = beta2 * v + one_minus_beta2 * (g * g);
    p = p - step_size * (m / (square_root(v) * inverse_root + epsilon));
  }
};

}  // namespace shardwise::inline v0_1::detail
