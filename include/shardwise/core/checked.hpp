#pragma once

#include <concepts>
#include <cstddef>
#include <utility>

#include "error.hpp"

namespace shardwise::inline v0_1 {

/// a * b; UsageError that names `what` where the product does not fit.
[[nodiscard]] constexpr std::size_t checked_multiply(std::size_t a, std::size_t b,
                                                     const char* what) {
  std::size_t result = 0;
  if (__builtin_mul_overflow(a, b, &result)) {
    raise("{}: {} x {} does not fit in {} bits", what, a, b, sizeof(std::size_t) * 8);
  }
  return result;
}

/// a + b; UsageError that names `what` where the sum does not fit.
[[nodiscard]] constexpr std::size_t checked_add(std::size_t a, std::size_t b, const char* what) {
  std::size_t result = 0;
  if (__builtin_add_overflow(a, b, &result)) {
    raise("{}: {} + {} does not fit in {} bits", what, a, b, sizeof(std::size_t) * 8);
  }
  return result;
}

/// The least multiple of `step` that is not below `value`; `step` must not be 0.
[[nodiscard]] constexpr std::size_t round_up(std::size_t value, std::size_t step) {
  return checked_multiply(value / step + (value % step != 0 ? 1 : 0), step, "round_up");
}

/// One extent of a shape, made from any integer type: a host's `int d` and a `size_t` both work
/// without a cast. A negative value is a UsageError.
class Dimension {
 public:
  template <std::integral Integer>
  constexpr Dimension(Integer value) : value_(static_cast<std::size_t>(value)) {
    if (std::cmp_less(value, 0)) {
      raise("a dimension is negative: {}", static_cast<long long>(value));
    }
  }
  [[nodiscard]] constexpr operator std::size_t() const noexcept { return value_; }

 private:
  std::size_t value_;
};

}  // namespace shardwise::inline v0_1
