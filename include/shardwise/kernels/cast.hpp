#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>

#include "../core/dtype.hpp"
#include "../core/host_device.hpp"
#include "pack.hpp"

namespace shardwise::inline v0_1 {

/// `value` as a To, rounded once to nearest, ties to even. What is too large becomes infinity; NaN
/// stays NaN. By way of float, a double would be rounded twice to 16 bits, unless the first step
/// rounds to odd (Boldo and Melquiond, 2008).
template <FloatingElement To, FloatingElement From>
[[nodiscard]] SHARDWISE_HOST_DEVICE constexpr To cast_element(From value) noexcept {
  if constexpr (std::same_as<From, To>) {
    return value;
  } else if constexpr (sizeof(From) == 2) {
    return static_cast<To>(static_cast<float>(value));
  } else if constexpr (std::same_as<From, double> && sizeof(To) == 2) {
    const auto nearest = static_cast<float>(value);
    const double back = nearest;
    auto bits = __builtin_bit_cast(std::uint32_t, nearest);
    if (back != value && value == value && (bits & 1u) == 0) {
      const bool is_above = (back < 0 ? -back : back) > (value < 0 ? -value : value);
      bits = is_above ? bits - 1 : bits + 1;
    }
    return To(__builtin_bit_cast(float, bits));
  } else {
    return static_cast<To>(value);
  }
}

/// A functor for Device::launch: to[i] = cast_element<To>(from[i]). The buffers do not overlap.
template <FloatingElement From, FloatingElement To>
struct Cast {
  const From* from;
  To* to;

  template <std::size_t Width>
  SHARDWISE_HOST_DEVICE void run(std::size_t first) const {
    From in[Width];
    To out[Width];
    for (std::size_t i = 0; i < Width; ++i) in[i] = from[first + i];
    for (std::size_t i = 0; i < Width; ++i) out[i] = cast_element<To>(in[i]);
    for (std::size_t i = 0; i < Width; ++i) to[first + i] = out[i];
  }

  static constexpr std::size_t block_width = detail::block_width<From, To>();
  template <std::size_t Width>
  [[nodiscard]] bool aligned(std::size_t first) const noexcept {
    return detail::is_aligned_for<Width>(from + first) && detail::is_aligned_for<Width>(to + first);
  }
  template <std::size_t Width>
  SHARDWISE_HOST_DEVICE void run_block(std::size_t first) const {
    detail::Block<From, Width> in;
    detail::Block<To, Width> out;
    in.load(from + first);
    for (std::size_t i = 0; i < Width; ++i) out.values[i] = cast_element<To>(in.values[i]);
    out.store(to + first);
  }
};

/// A functor for Device::launch: to[i] = value.
template <FloatingElement T>
struct Fill {
  T* to;
  T value;

  template <std::size_t Width>
  SHARDWISE_HOST_DEVICE void run(std::size_t first) const {
    for (std::size_t i = 0; i < Width; ++i) to[first + i] = value;
  }

  static constexpr std::size_t block_width = detail::block_width<T>();
  template <std::size_t Width>
  [[nodiscard]] bool aligned(std::size_t first) const noexcept {
    return detail::is_aligned_for<Width>(to + first);
  }
  template <std::size_t Width>
  SHARDWISE_HOST_DEVICE void run_block(std::size_t first) const {
    detail::Block<T, Width> out;
    for (std::size_t i = 0; i < Width; ++i) out.values[i] = value;
    out.store(to + first);
  }
};

}  // namespace shardwise::inline v0_1
