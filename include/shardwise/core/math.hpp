#pragma once

#include "host_device.hpp"

/// @file
/// The few functions of `<cmath>` that the library calls: the rest of it, special functions above
/// all, costs whoever includes these headers more compile time than any of ours.
namespace shardwise::inline v0_1 {

/// The correctly rounded square root; NaN below 0.
SHARDWISE_HOST_DEVICE inline float square_root(float x) noexcept { return __builtin_sqrtf(x); }
SHARDWISE_HOST_DEVICE inline double square_root(double x) noexcept { return __builtin_sqrt(x); }

namespace detail {

/// std::pow.
[[nodiscard]] inline double power(double base, double exponent) noexcept {
  return __builtin_pow(base, exponent);
}

/// Neither infinite nor NaN.
[[nodiscard]] constexpr bool is_finite(double x) noexcept { return __builtin_isfinite(x); }

}  // namespace detail
}  // namespace shardwise::inline v0_1
