#pragma once

#include <concepts>
#include <cstddef>

#include "../core/host_device.hpp"
#include "../core/math.hpp"

#if defined(__SSE2__) && !defined(__CUDA_ARCH__)
#include <emmintrin.h>
#elif defined(__aarch64__) && !defined(__CUDA_ARCH__)
#include <arm_neon.h>
#endif

namespace shardwise::inline v0_1 {

/// 16 bytes of values that are computed at once. Operators work lane by lane, also with one scalar
/// of the same type, and round as scalars do. A plain -O2 does not vectorise what calls std::sqrt
/// (it may set errno); arithmetic written for both a scalar and lanes needs no vectoriser.
using FloatLanes [[gnu::vector_size(16)]] = float;
using DoubleLanes [[gnu::vector_size(16)]] = double;

namespace detail {
template <class Real>
struct LanesOf {};
template <>
struct LanesOf<float> {
  using type = FloatLanes;
};
template <>
struct LanesOf<double> {
  using type = DoubleLanes;
};
}  // namespace detail

/// The lanes of float or double.
template <std::floating_point Real>
using Lanes = typename detail::LanesOf<Real>::type;

/// square_root of core/math.hpp, in each lane.
#if defined(__SSE2__) && !defined(__CUDA_ARCH__)
inline FloatLanes square_root(FloatLanes x) noexcept { return _mm_sqrt_ps(x); }
inline DoubleLanes square_root(DoubleLanes x) noexcept { return _mm_sqrt_pd(x); }
#elif defined(__aarch64__) && !defined(__CUDA_ARCH__)
inline FloatLanes square_root(FloatLanes x) noexcept {
  return reinterpret_cast<FloatLanes>(vsqrtq_f32(reinterpret_cast<float32x4_t>(x)));
}
inline DoubleLanes square_root(DoubleLanes x) noexcept {
  return reinterpret_cast<DoubleLanes>(vsqrtq_f64(reinterpret_cast<float64x2_t>(x)));
}
#else
inline FloatLanes square_root(FloatLanes x) noexcept {
  for (std::size_t i = 0; i < sizeof(x) / sizeof(x[0]); ++i) x[i] = square_root(x[i]);
  return x;
}
inline DoubleLanes square_root(DoubleLanes x) noexcept {
  for (std::size_t i = 0; i < sizeof(x) / sizeof(x[0]); ++i) x[i] = square_root(x[i]);
  return x;
}
#endif

/// -1, 0 or 1; 0 for NaN.
SHARDWISE_HOST_DEVICE constexpr float sign(float x) noexcept {
  return static_cast<float>((x > 0) - (x < 0));
}
SHARDWISE_HOST_DEVICE constexpr double sign(double x) noexcept {
  return static_cast<double>((x > 0) - (x < 0));
}
// A true lane of a comparison is -1.
inline FloatLanes sign(FloatLanes x) noexcept {
  return __builtin_convertvector((x < 0.0f) - (x > 0.0f), FloatLanes);
}
inline DoubleLanes sign(DoubleLanes x) noexcept {
  const DoubleLanes one = {1, 1};
  const auto ones = reinterpret_cast<decltype(x < 0.0)>(one);
  return reinterpret_cast<DoubleLanes>((x > 0.0) & ones) -
         reinterpret_cast<DoubleLanes>((x < 0.0) & ones);
}

}  // namespace shardwise::inline v0_1
