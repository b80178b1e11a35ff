#pragma once

#include <cstddef>
#include <cstdint>

#include "../core/dtype.hpp"
#include "../core/host_device.hpp"
#include "pack.hpp"

namespace shardwise::inline v0_1::detail {

/// Infinite or NaN, by the exponent's bits: no option of a compiler assumes this away.
[[nodiscard]] SHARDWISE_HOST_DEVICE constexpr bool is_special(double value) noexcept {
  constexpr std::uint64_t exponent = std::uint64_t{0x7ff} << 52;
  return (__builtin_bit_cast(std::uint64_t, value) & exponent) == exponent;
}
[[nodiscard]] SHARDWISE_HOST_DEVICE constexpr bool is_special(float value) noexcept {
  constexpr std::uint32_t exponent = std::uint32_t{0xff} << 23;
  return (__builtin_bit_cast(std::uint32_t, value) & exponent) == exponent;
}
[[nodiscard]] SHARDWISE_HOST_DEVICE constexpr bool is_special(bf16 value) noexcept {
  return (value.bits & 0x7f80u) == 0x7f80u;
}
[[nodiscard]] SHARDWISE_HOST_DEVICE constexpr bool is_special(f16 value) noexcept {
  return (value.bits & 0x7c00u) == 0x7c00u;
}

struct IsSpecial {
  template <FloatingElement T>
  [[nodiscard]] SHARDWISE_HOST_DEVICE static constexpr bool test(T value) noexcept {
    return is_special(value);
  }
};
struct IsNotPoison {
  [[nodiscard]] SHARDWISE_HOST_DEVICE static constexpr bool test(std::uint8_t value) noexcept {
    return value != 0xff;
  }
};

/// A functor for launch: *found = 1 where Test::test says so of any element; else it stays.
template <class T, class Test>
struct Find {
  const T* values;
  std::uint32_t* found;

  static constexpr std::size_t block_width = detail::block_width<T>();
  template <std::size_t Width>
  [[nodiscard]] bool aligned(std::size_t first) const noexcept {
    return is_aligned_for<Width>(values + first);
  }
  template <std::size_t Width>
  SHARDWISE_HOST_DEVICE void run_block(std::size_t first) const {
    Block<T, Width> in;
    in.load(values + first);
    bool any = false;
    for (std::size_t k = 0; k < Width; ++k) any = any || Test::test(in.values[k]);
    if (any) *found = 1;  // all who write it write the same
  }
  template <std::size_t Width>
  SHARDWISE_HOST_DEVICE void run(std::size_t first) const {
    for (std::size_t k = 0; k < Width; ++k) run_block<1>(first + k);
  }
};

}  // namespace shardwise::inline v0_1::detail
