#pragma once

#include <algorithm>
#include <cstddef>

#include "../core/dtype.hpp"
#include "cast.hpp"
#include "lanes.hpp"
#include "vectors.hpp"
#include "wide.hpp"

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

namespace detail {
/// Whole tiles that are added at once, so that additions wait less for each other. With more, or
/// without fetching ahead, the processor loses sight of the streams (four, 64 MiB: half the speed).
inline constexpr std::size_t norm_tiles_at_once = 2;

/// sums[i] = tile_sum_of_squares of tile i of norm_tiles_at_once, by wide vectors; false where
/// there are none.
template <FloatingElement T>
[[nodiscard]] inline bool sum_tiles_wide(const T* elements, double* sums,
                                         Vectors vectors) noexcept {
  if constexpr (WideElement<T>) {
    double lane[norm_tiles_at_once][8];
    const std::size_t done =
        run_wide<double>(vectors, norm_tile, [&]<class Wide>(std::size_t length) {
          Wide::template add_squares<norm_tiles_at_once>(elements, length, lane[0]);
        });
    if (done == 0) return false;
    for (std::size_t i = 0; i < norm_tiles_at_once; ++i) sums[i] = sum_of_lanes(lane[i]);
    return true;
  } else {
    return false;
  }
}
}  // namespace detail

/// The sum of squares of `count` elements: the sums of its tiles are added in groups, in the order
/// in which tiles add their squares, and the sums of groups in ascending order. `vectors`: for
/// tests; all give the same bits.
template <FloatingElement T>
[[nodiscard]] double sum_of_squares(const T* elements, std::size_t count,
                                    detail::Vectors vectors = detail::widest_vectors()) noexcept {
  constexpr std::size_t at_once = detail::norm_tiles_at_once;
  static_assert(norm_tile % at_once == 0 && 8 % at_once == 0);
  double sum = 0;
  for (std::size_t first = 0; first < count;) {
    double lane[8] = {};
    for (std::size_t tile = 0; tile < norm_tile && first < count;) {
      double sums[at_once];
      if (count - first >= at_once * norm_tile &&
          detail::sum_tiles_wide(elements + first, sums, vectors)) {
        for (std::size_t i = 0; i < at_once; ++i) lane[(tile + i) % 8] += sums[i];
        tile += at_once;
        first += at_once * norm_tile;
      } else {
        const std::size_t length = std::min(norm_tile, count - first);
        lane[tile++ % 8] += tile_sum_of_squares(elements + first, length);
        first += length;
      }
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
