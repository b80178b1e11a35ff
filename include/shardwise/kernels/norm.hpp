#pragma once

#include <algorithm>
#include <cstddef>

#include "../core/dtype.hpp"
#include "cast.hpp"
#include "lanes.hpp"

namespace shardwise::inline v0_1 {

/// Elements whose squares are added in one go, and tiles whose sums are: tiles run at once where a
/// device has many lanes, and so do groups of so many tiles.
inline constexpr std::size_t norm_tile = 2048;

namespace detail {
[[nodiscard]] inline double sum_of_lanes(const double (&lane)[8]) noexcept {
  return ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]));
}
}  // namespace detail

/// The sum of squares of `count` elements of one tile, in double and in one fixed order: lane j of
/// eight adds the squares of elements i with i % 8 == j in ascending order, and the lanes are added
/// as ((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7)).
template <FloatingElement T>
[[nodiscard]] double tile_sum_of_squares(const T* elements, std::size_t count) noexcept {
  constexpr std::size_t width = 8;
  // Four variables and not an array: -O2 would keep an array in memory.
  DoubleLanes ab{}, cd{}, ef{}, gh{};
  std::size_t first = 0;
  for (; first + width <= count; first += width) {
    double x[width];
    for (std::size_t j = 0; j < width; ++j) x[j] = cast_element<double>(elements[first + j]);
    const DoubleLanes p{x[0], x[1]}, q{x[2], x[3]}, r{x[4], x[5]}, s{x[6], x[7]};
    ab += p * p;
    cd += q * q;
    ef += r * r;
    gh += s * s;
  }
  double lane[width] = {ab[0], ab[1], cd[0], cd[1], ef[0], ef[1], gh[0], gh[1]};
  for (std::size_t j = 0; first + j < count; ++j) {
    const auto value = cast_element<double>(elements[first + j]);
    lane[j] += value * value;
  }
  return detail::sum_of_lanes(lane);
}

/// The sum of squares of `count` elements: the sums of its tiles are added in groups, in the order
/// in which tiles add their squares, and the sums of groups in ascending order.
template <FloatingElement T>
[[nodiscard]] double sum_of_squares(const T* elements, std::size_t count) noexcept {
  double sum = 0;
  for (std::size_t first = 0; first < count;) {
    double lane[8] = {};
    for (std::size_t tile = 0; tile < norm_tile && first < count; ++tile, first += norm_tile) {
      lane[tile % 8] += tile_sum_of_squares(elements + first, std::min(norm_tile, count - first));
    }
    sum += detail::sum_of_lanes(lane);
  }
  return sum;
}

/// The same for elements of the floating type that `type` names.
[[nodiscard]] inline double sum_of_squares(const void* elements, DType type,
                                           std::size_t count) noexcept {
  return dispatch_floating(
      type, [&]<class T>() { return sum_of_squares(static_cast<const T*>(elements), count); });
}

/// Elements of one floating type whose squares are summed.
struct NormRange {
  const void* values;
  DType type;
  std::size_t count;
};

}  // namespace shardwise::inline v0_1
