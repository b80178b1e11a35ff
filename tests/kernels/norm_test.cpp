#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstddef>
#include <shardwise/kernels/norm.hpp>
#include <vector>

#include "support/floating.hpp"
#include "support/vectors.hpp"

using namespace shardwise;
using test::normal_values;

namespace {

/// The sums of runs of `norm_tile` values, each one lane after the other.
std::vector<double> sums_by_lanes(const std::vector<double>& values) {
  std::vector<double> sums;
  for (std::size_t begin = 0; begin < values.size(); begin += norm_tile) {
    const std::size_t end = std::min(begin + norm_tile, values.size());
    double lane[8];
    for (std::size_t j = 0; j < 8; ++j) {
      lane[j] = 0;
      for (std::size_t i = begin + j; i < end; i += 8) lane[j] += values[i];
    }
    sums.push_back(((lane[0] + lane[1]) + (lane[2] + lane[3])) +
                   ((lane[4] + lane[5]) + (lane[6] + lane[7])));
  }
  return sums;
}

/// The documented order: tiles of elements, groups of tiles, and groups as they come.
template <class T>
double by_lanes(const std::vector<T>& values) {
  std::vector<double> squares;
  for (const T value : values) {
    squares.push_back(static_cast<double>(value) * static_cast<double>(value));
  }
  double sum = 0;
  for (const double group : sums_by_lanes(sums_by_lanes(squares))) sum += group;
  return sum;
}

template <class T>
void check_type() {
  for (const std::size_t count :
       {0u, 1u, 2u, 7u, 8u, 9u, 15u, 16u, 17u, 100u, 1003u, 2047u, 2048u, 2049u, 5003u}) {
    for (unsigned seed = 1; seed <= 20; ++seed) {
      const auto values = normal_values<T>(count, seed);
      const double expected = by_lanes(values);
      CHECK(sum_of_squares(values.data(), count) == expected);
      CHECK(sum_of_squares(static_cast<const void*>(values.data()), dtype_of<T>, count) ==
            expected);
    }
  }
}

}  // namespace

TEST_CASE("the sum of squares is taken tile by tile in eight lanes in double") {
  check_type<double>();
  check_type<float>();
  check_type<bf16>();
  check_type<f16>();
  CHECK(sum_of_squares(static_cast<const float*>(nullptr), 0) == 0);
}

TEST_CASE("the sums of many tiles are added in groups") {
  for (const std::size_t tiles : {9u, 100u, 2047u, 2048u, 2049u, 4099u}) {
    const auto values = normal_values<float>(tiles * norm_tile - 3, 1);
    CHECK(sum_of_squares(values.data(), values.size()) == by_lanes(values));
  }
}

TEST_CASE("all vectors give the same sums of squares") {
  const auto check = []<class T>(T) {
    for (const std::size_t count : {4 * norm_tile - 1, 4 * norm_tile, 11 * norm_tile + 5,
                                    norm_tile * norm_tile + 5 * norm_tile}) {
      const auto values = normal_values<T>(count + 1, 3);
      const std::vector<T> unaligned(values.begin() + 1, values.end());
      const double expected = by_lanes(unaligned);
      for (const detail::Vectors vectors : test::all_vectors()) {
        CHECK(sum_of_squares(values.data() + 1, count, vectors) == expected);
      }
    }
    // The smallest and the largest, and what is no number.
    for (const float extreme : {1e-45f, 3e38f, INFINITY, NAN}) {
      std::vector<T> values = normal_values<T>(4 * norm_tile, 4);
      values[3 * norm_tile + 13] = T(extreme);
      const double expected =
          sum_of_squares(values.data(), values.size(), detail::Vectors::baseline);
      for (const detail::Vectors vectors : test::all_vectors()) {
        const double found = sum_of_squares(values.data(), values.size(), vectors);
        CHECK((std::isnan(expected) ? std::isnan(found) : found == expected));
      }
    }
  };
  check(float{});
  check(bf16{});
  check(f16{});
  check(double{});
}

TEST_CASE("the sum of squares does not overflow where floats would") {
  const std::vector<float> values(9, 1e30f);
  const double each = static_cast<double>(1e30f) * static_cast<double>(1e30f);
  CHECK(std::abs(sum_of_squares(values.data(), 9) - 9 * each) <= 1e-15 * 9 * each);
  const std::vector<float> bad{1, 2, NAN, 4};
  CHECK(std::isnan(sum_of_squares(bad.data(), 4)));
  const std::vector<f16> infinite(20, f16(INFINITY));
  CHECK(std::isinf(sum_of_squares(infinite.data(), 20)));
}

TEST_CASE("the order matters to the bits, so the test above sees a wrong one") {
  auto values = normal_values<float>(1000, 5);
  const double before = sum_of_squares(values.data(), values.size());
  std::reverse(values.begin(), values.end());
  const double after = sum_of_squares(values.data(), values.size());
  CHECK(before != after);
  CHECK(std::abs(before - after) < 1e-9 * before);
}
