#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <shardwise/device/host.hpp>
#include <shardwise/kernels/cast_elements.hpp>
#include <type_traits>
#include <vector>

#include "support/floating.hpp"

using namespace shardwise;
using test::normal_values;
using test::same_bits;

namespace {

constexpr std::size_t counts[] = {0, 1, 2, 15, 16, 17, 31, 32, 33, 47, 64, 1000};

// Calls f.operator()<From, To>() for all pairs.
template <class F>
void for_each_pair(F&& f) {
  for (const DType from : {DType::f64, DType::f32, DType::bf16, DType::f16}) {
    for (const DType to : {DType::f64, DType::f32, DType::bf16, DType::f16}) {
      dispatch_floating(from, [&]<class From>() {
        dispatch_floating(to, [&]<class To>() { f.template operator()<From, To>(); });
      });
    }
  }
}

template <class From, class To>
std::vector<To> expected_cast(const std::vector<From>& from) {
  std::vector<To> to;
  for (const From value : from) to.push_back(cast_element<To>(value));
  return to;
}

/// The To nearest to `value`: the best of those next to its twofold rounding; even where two are as
/// near.
template <class To>
std::uint16_t nearest(double value) {
  const To guess(static_cast<float>(value));
  std::uint16_t best = guess.bits;
  double best_distance = std::numeric_limits<double>::infinity();
  for (int step = -1; step <= 1; ++step) {
    To candidate;
    candidate.bits = static_cast<std::uint16_t>(guess.bits + step);
    const double distance = std::abs(static_cast<double>(static_cast<float>(candidate)) - value);
    const bool is_better =
        distance < best_distance || (distance == best_distance && candidate.bits % 2 == 0);
    if (is_better) {
      best = candidate.bits;
      best_distance = distance;
    }
  }
  return best;
}

template <class To>
void check_single_rounding() {
  std::size_t wrong = 0;
  std::size_t twice = 0;  // cases in which rounding by way of float goes wrong
  for (std::uint32_t bits = 0x0400; bits < 0x7000; ++bits) {
    To low;
    To high;
    low.bits = static_cast<std::uint16_t>(bits);
    high.bits = static_cast<std::uint16_t>(bits + 1);
    const double middle = (static_cast<double>(static_cast<float>(low)) +
                           static_cast<double>(static_cast<float>(high))) /
                          2;
    const double above = std::nextafter(static_cast<float>(middle), INFINITY);
    const double below = std::nextafter(static_cast<float>(middle), 0.0f);
    for (const double value :
         {middle, std::nextafter(middle, 1e300), std::nextafter(middle, 0.0), above, below,
          middle + 0.2 * (above - middle), middle + 0.8 * (above - middle),
          middle + 0.2 * (below - middle), middle + 0.8 * (below - middle)}) {
      for (const double sign : {1.0, -1.0}) {
        wrong += cast_element<To>(sign * value).bits == nearest<To>(sign * value) ? 0u : 1u;
        twice += To(static_cast<float>(sign * value)).bits == nearest<To>(sign * value) ? 0u : 1u;
      }
    }
  }
  CHECK(wrong == 0);
  CHECK(twice > 1000);  // the check can fail
}

}  // namespace

TEST_CASE("casting elements keeps what fits and rounds once") {
  for_each_pair([]<class From, class To>() {
    for (const float value : {0.0f, -0.0f, 1.0f, -1.5f, 0.25f, INFINITY, -INFINITY}) {
      const auto from = static_cast<From>(value);
      const To to = cast_element<To>(from);
      CHECK(static_cast<double>(to) == static_cast<double>(value));
      CHECK(std::signbit(static_cast<double>(to)) == std::signbit(value));
    }
    const auto nan = static_cast<From>(std::numeric_limits<float>::quiet_NaN());
    CHECK(std::isnan(static_cast<double>(cast_element<To>(nan))));
  });
  check_single_rounding<bf16>();
  check_single_rounding<f16>();
  CHECK(cast_element<bf16>(1e300).bits == 0x7f80);
  CHECK(cast_element<f16>(-1e300).bits == 0xfc00);
  CHECK(cast_element<f16>(1e-300).bits == 0);
  CHECK(cast_element<f16>(-1e-300).bits == 0x8000);
}

TEST_CASE("cast_elements casts every element and touches nothing beyond") {
  for_each_pair([]<class From, class To>() {
    for (const std::size_t count : counts) {
      const auto from = normal_values<From>(count, 7);
      const auto guard = cast_element<To>(42.0f);
      std::vector<To> to(count + 2, guard);
      cast_elements(from.data(), dtype_of<From>, to.data() + 1, dtype_of<To>, count);
      CHECK(static_cast<float>(to.front()) == 42);
      CHECK(static_cast<float>(to.back()) == 42);
      CHECK(
          same_bits(std::vector<To>(to.begin() + 1, to.end() - 1), expected_cast<From, To>(from)));
    }
  });
}

TEST_CASE("cast_elements works in place, narrowing and widening") {
  for_each_pair([]<class From, class To>() {
    for (const std::size_t count : counts) {
      if (count == 0) continue;
      const auto from = normal_values<From>(count, 8);
      std::vector<double> buffer(count);  // room for the larger type
      std::memcpy(buffer.data(), from.data(), count * sizeof(From));
      cast_elements(buffer.data(), dtype_of<From>, buffer.data(), dtype_of<To>, count);
      std::vector<To> to(count);
      std::memcpy(static_cast<void*>(to.data()), buffer.data(), count * sizeof(To));
      CHECK(same_bits(to, expected_cast<From, To>(from)));
    }
  });
}

TEST_CASE("Cast and Fill run over any range of a stream") {
  HostStream stream;
  const auto from = normal_values<float>(100, 9);
  std::vector<bf16> to(100);
  HostDevice::launch(stream, 37, Cast<float, bf16>{from.data(), to.data()});
  HostDevice::launch(stream, 63, Cast<float, bf16>{from.data() + 37, to.data() + 37});
  CHECK(same_bits(to, expected_cast<float, bf16>(from)));

  HostDevice::launch(stream, 50, Fill<bf16>{to.data() + 10, bf16(3.0f)});
  for (std::size_t i = 0; i < to.size(); ++i) {
    const bool is_inside = i >= 10 && i < 60;
    CHECK(to[i].bits == (is_inside ? bf16(3.0f).bits : bf16(from[i]).bits));
  }
  STATIC_REQUIRE(std::is_trivially_copyable_v<Cast<f16, double>>);
}
