#include <algorithm>
#include <bit>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <shardwise/kernels/octet.hpp>
#include <type_traits>
#include <vector>

#include "support/floating.hpp"

using namespace shardwise;

namespace {

constexpr std::size_t octet = detail::octet;

/// Octets that are converted otherwise than cast_element converts elements. A NaN that is widened
/// and narrowed again may be quiet or not: compilers skip scalar conversions of this kind.
template <class Real, class From, class To>
std::size_t differences(const std::vector<From>& values) {
  constexpr bool any_nan = std::is_same_v<Real, double> && !std::is_same_v<From, double>;
  std::size_t wrong = 0;
  for (std::size_t i = 0; i + octet <= values.size(); i += octet) {
    To got[octet];
    To expected[octet];
    detail::store_octet(got, detail::load_octet<Real>(values.data() + i));
    for (std::size_t k = 0; k < octet; ++k) {
      expected[k] = cast_element<To>(cast_element<Real>(values[i + k]));
      if (any_nan && std::isnan(cast_element<double>(expected[k])) &&
          std::isnan(cast_element<double>(got[k]))) {
        expected[k] = got[k];
      }
    }
    wrong += std::memcmp(got, expected, sizeof(got)) == 0 ? 0u : 1u;
  }
  return wrong;
}

template <class From>
void check_from(std::vector<From> values) {
  // So that a NaN is alone in its octet, too.
  std::shuffle(values.begin(), values.end(), std::mt19937(7));
  const auto check_to = [&]<class Real>(Real) {
    CHECK(differences<Real, From, double>(values) == 0);
    CHECK(differences<Real, From, float>(values) == 0);
    CHECK(differences<Real, From, bf16>(values) == 0);
    CHECK(differences<Real, From, f16>(values) == 0);
  };
  check_to(float{});
  check_to(double{});
}

template <class T>
std::vector<T> all_patterns() {
  std::vector<T> values(1u << 16);
  for (std::size_t i = 0; i < values.size(); ++i) values[i].bits = static_cast<std::uint16_t>(i);
  return values;
}

}  // namespace

TEST_CASE("octets convert every bf16 and every f16 as elements are converted") {
  check_from(all_patterns<bf16>());
  check_from(all_patterns<f16>());
}

TEST_CASE("octets convert floats and doubles as elements are converted, at all edges of rounding") {
  std::vector<float> floats;
  // All upper halves, with the lower halves next to ties, and next to nothing.
  for (std::uint32_t high = 0; high < 1u << 16; ++high) {
    for (const std::uint32_t low : {0u, 1u, 0x0fffu, 0x1000u, 0x1001u, 0x7fffu, 0x8000u, 0xffffu}) {
      floats.push_back(std::bit_cast<float>(high << 16 | low));
    }
  }
  check_from(floats);
  std::vector<double> doubles(floats.begin(), floats.end());
  for (double& value : doubles) value *= 1 + 0x1p-30;
  check_from(doubles);
}

TEST_CASE("octets add and multiply lane by lane") {
  const auto check_real = []<class Real>(Real factor) {
    const auto x = test::normal_values<Real>(octet, 1);
    const auto y = test::normal_values<Real>(octet, 2);
    Real got[octet];
    detail::store_octet(
        got, detail::load_octet<Real>(x.data()) + detail::load_octet<Real>(y.data()) * factor);
    for (std::size_t k = 0; k < octet; ++k) CHECK(got[k] == x[k] + y[k] * factor);
  };
  check_real(0.3f);
  check_real(0.3);
}

TEST_CASE("octets that go past the caches arrive") {
  alignas(16) float to[octet];
  const auto from = test::normal_values<float>(octet, 3);
  detail::store_octet<true>(to, detail::load_octet<float>(from.data()));
  CHECK(std::memcmp(to, from.data(), sizeof(to)) == 0);
}
