#pragma once

#include <cstddef>
#include <cstdint>

#include "../core/dtype.hpp"
#include "../core/host_device.hpp"
#include "cast.hpp"
#include "norm.hpp"
#include "pack.hpp"

namespace shardwise::inline v0_1::detail {

/// Ranges of elements whose tiles are numbered through; a kernel's argument.
struct NormTable {
  static constexpr std::size_t capacity = 64;

  const void* values[capacity];
  std::size_t count[capacity];
  std::size_t begin[capacity + 1];  ///< tiles of the ranges before
  std::size_t ranges;

  [[nodiscard]] static constexpr std::size_t tiles_of(std::size_t count) noexcept {
    return count / norm_tile + (count % norm_tile != 0 ? 1 : 0);
  }
  [[nodiscard]] std::size_t tiles() const noexcept { return begin[ranges]; }

  void clear() noexcept {
    *this = NormTable{};  // kernels' arguments carry no pointer that is not theirs
  }
  void add(const void* pointer, std::size_t elements) noexcept {
    values[ranges] = pointer;
    count[ranges] = elements;
    begin[ranges + 1] = begin[ranges] + tiles_of(elements);
    ++ranges;
  }
  /// The range that holds a tile.
  [[nodiscard]] SHARDWISE_HOST_DEVICE std::size_t range_of(std::size_t tile) const noexcept {
    std::size_t low = 0;
    std::size_t high = ranges;
    while (high - low > 1) {
      const std::size_t middle = (low + high) / 2;
      (begin[middle] <= tile ? low : high) = middle;
    }
    return low;
  }
};

/// A functor for launch_tiles: partials[tile] = tile_sum_of_squares of kernels/norm.hpp, bit by
/// bit; without `squares`, the values are sums already.
template <FloatingElement T, bool squares = true>
struct NormTiles {
  static constexpr unsigned lanes = 8;
  struct State {};
  using Partial = double;

  NormTable table;
  double* partials;

  SHARDWISE_HOST_DEVICE double load(std::size_t tile, unsigned lane, State&) const {
    const std::size_t range = table.range_of(tile);
    const std::size_t first = (tile - table.begin[range]) * norm_tile;
    const std::size_t rest = table.count[range] - first;
    const T* const elements = static_cast<const T*>(table.values[range]) + first;
    double sum = 0;
    if (rest >= norm_tile) {
      // The loads of a batch do not wait for the additions before them.
      constexpr std::size_t batch = 16;
      for (std::size_t i = lane; i < norm_tile; i += batch * lanes) {
        T values[batch];
        for (std::size_t k = 0; k < batch; ++k) values[k] = elements[i + k * lanes];
        for (const T value : values) add(value, sum);
      }
    } else {
      for (std::size_t i = lane; i < rest; i += lanes) add(elements[i], sum);
    }
    return sum;
  }
  SHARDWISE_HOST_DEVICE static double combine(double a, double b) { return a + b; }
  SHARDWISE_HOST_DEVICE void store(std::size_t tile, unsigned lane, const State&,
                                   double total) const {
    if (lane == 0) partials[tile] = total;
  }

 private:
  SHARDWISE_HOST_DEVICE static void add(T element, double& sum) {
    const auto value = cast_element<double>(element);
    sum += squares ? value * value : value;
  }
};

/// A functor for launch: results[r] = the sum of the partials of range r's tiles, in ascending
/// order.
struct NormSums {
  NormTable table;
  const double* partials;
  double* results;

  template <std::size_t Width>
  SHARDWISE_HOST_DEVICE void run(std::size_t first) const {
    for (std::size_t range = first; range < first + Width; ++range) {
      double sum = 0;
      std::size_t tile = table.begin[range];
      const std::size_t end = table.begin[range + 1];
      constexpr std::size_t batch = 16;
      for (; tile + batch <= end; tile += batch) {
        double values[batch];
        for (std::size_t i = 0; i < batch; ++i) values[i] = partials[tile + i];
        for (const double value : values) sum += value;
      }
      for (; tile < end; ++tile) sum += partials[tile];
      results[range] = sum;
    }
  }
};

}  // namespace shardwise::inline v0_1::detail
