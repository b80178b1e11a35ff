#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <shardwise/core/error.hpp>
#include <shardwise/optim/lion.hpp>
#include <vector>

#include "optim/stepping.hpp"

using namespace shardwise;
using test::same_bits;
using test::Stepping;

namespace {

/// Program 1 of the paper, whose weight decay is lr * wd * p beside the sign.
long double worst_difference_from_paper(const Lion& o) {
  Stepping<Lion, double, double> mine(150, o);
  const std::size_t count = mine.parameter.size();
  std::vector<long double> p(mine.parameter.begin(), mine.parameter.end());
  std::vector<double> m(count);
  for (std::uint64_t t = 1; t <= 100; ++t) {
    const auto g = mine.gradient(t);
    mine.step(t);
    for (std::size_t i = 0; i < count; ++i) {
      const double c = o.beta1 * m[i] + (1 - o.beta1) * g[i];
      const int direction = c > 0 ? 1 : c < 0 ? -1 : 0;
      p[i] -= o.learning_rate * (direction + o.weight_decay * p[i]);
      // Its state is float, so the reference's is rounded alike: else signs may differ.
      m[i] = static_cast<double>(static_cast<float>(o.beta2 * m[i] + (1 - o.beta2) * g[i]));
    }
  }
  long double worst = 0;
  for (std::size_t i = 0; i < count; ++i)
    worst = std::max(worst, std::abs(p[i] - mine.parameter[i]));
  return worst;
}

template <class Real>
std::vector<Real> signs(const std::vector<Real>& values) {
  constexpr std::size_t lanes = sizeof(Lanes<Real>) / sizeof(Real);
  std::vector<Real> result(values.size());
  for (std::size_t i = 0; i + lanes <= values.size(); i += lanes) {
    Lanes<Real> x;
    std::memcpy(&x, values.data() + i, sizeof(x));
    x = sign(x);
    std::memcpy(result.data() + i, &x, sizeof(x));
  }
  return result;
}

}  // namespace

TEST_CASE("Lion follows the paper") {
  CHECK(worst_difference_from_paper({}) < 1e-14L);
  CHECK(worst_difference_from_paper({.learning_rate = 1e-2, .weight_decay = 0.1}) < 1e-13L);
  CHECK(worst_difference_from_paper({.beta1 = 0.5, .beta2 = 0.8}) < 1e-14L);
}

TEST_CASE("where the direction is 0, Lion stands still") {
  Stepping<Lion> mine(37, {.learning_rate = 0.5});
  const auto before = mine.parameter;
  std::vector<float> g(37, 0.0f);
  g[3] = 1e-30f;
  g[20] = -2;
  UpdateOf<Lion, float, float> functor{mine.parameter.data(),
                                       g.data(),
                                       {std::get<0>(mine.states).data()},
                                       1,
                                       mine.optimizer.constants<float>(1, {})};
  HostDevice::run(37, functor);
  for (std::size_t i = 0; i < 37; ++i) {
    const float step = i == 3 ? -0.5f : i == 20 ? 0.5f : 0.0f;
    CHECK(mine.parameter[i] == before[i] + step);
  }
}

TEST_CASE("sign is -1, 0 or 1 in lanes and alone") {
  const std::vector<float> floats{1e-45f, -1e-45f, 0.0f, -0.0f, NAN, INFINITY, -INFINITY, 3};
  const std::vector<double> doubles(floats.begin(), floats.end());
  const auto from_floats = signs(floats);
  const auto from_doubles = signs(doubles);
  const float expected[] = {1, -1, 0, 0, 0, 1, -1, 1};
  for (std::size_t i = 0; i < floats.size(); ++i) {
    CHECK(from_floats[i] == expected[i]);
    CHECK(from_doubles[i] == static_cast<double>(expected[i]));
    CHECK(sign(floats[i]) == expected[i]);
    CHECK(sign(doubles[i]) == static_cast<double>(expected[i]));
    CHECK_FALSE(std::signbit(from_floats[i] + 1));
    CHECK(std::signbit(from_floats[i]) == (expected[i] < 0));
    CHECK(std::signbit(from_doubles[i]) == (expected[i] < 0));
  }
}

TEST_CASE("any split of a range gives the same bits of Lion") {
  CHECK(test::split_changes_nothing<Lion>({.weight_decay = 0.1}));
  CHECK(test::split_changes_nothing<Lion, double, bf16>());
  CHECK(test::split_changes_nothing<Lion, f16, f16>());
}

TEST_CASE("Lion refuses hyperparameters that make no sense") {
  CHECK_NOTHROW(Lion{}.validate());
  CHECK_THROWS_AS(Lion{.learning_rate = -1}.validate(), UsageError);
  CHECK_THROWS_AS(Lion{.beta1 = 1}.validate(), UsageError);
  CHECK_THROWS_AS(Lion{.beta2 = NAN}.validate(), UsageError);
  CHECK_THROWS_AS(Lion{.weight_decay = -1}.validate(), UsageError);
}
