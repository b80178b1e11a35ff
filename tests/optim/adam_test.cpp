#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <shardwise/core/error.hpp>
#include <shardwise/optim/adam.hpp>
#include <shardwise/optim/adamw.hpp>
#include <vector>

#include "optim/stepping.hpp"

using namespace shardwise;
using test::same_bits;
using test::Stepping;

namespace {

/// The same optimizer with state in double, for parameters of doubles.
struct WideAdam : Adam {
  using States = StateTypes<double, double>;
};

/// Algorithm 1 of the paper, with the L2 term in the gradient.
template <class Real, class Optimizer>
long double worst_difference_from_paper(const Adam& o) {
  Stepping<Optimizer, Real, Real> mine(150, {o});
  const std::size_t count = mine.parameter.size();
  std::vector<long double> p(mine.parameter.begin(), mine.parameter.end());
  std::vector<long double> m(count);
  std::vector<long double> v(count);
  for (std::uint64_t t = 1; t <= 200; ++t) {
    const auto gradient = mine.gradient(t);
    mine.step(t);
    for (std::size_t i = 0; i < count; ++i) {
      const long double g = gradient[i] + o.weight_decay * p[i];
      m[i] = o.beta1 * m[i] + (1 - o.beta1) * g;
      v[i] = o.beta2 * v[i] + (1 - o.beta2) * g * g;
      const long double m_hat = m[i] / (1 - std::pow(o.beta1, static_cast<long double>(t)));
      const long double v_hat = v[i] / (1 - std::pow(o.beta2, static_cast<long double>(t)));
      p[i] -= o.learning_rate * m_hat / (std::sqrt(v_hat) + o.epsilon);
    }
  }
  long double worst = 0;
  for (std::size_t i = 0; i < count; ++i)
    worst = std::max(worst, std::abs(p[i] - mine.parameter[i]));
  return worst;
}

}  // namespace

TEST_CASE("Adam follows the paper, its weight decay in the gradient") {
  for (const Adam& settings :
       {Adam{}, Adam{.learning_rate = 1e-2, .weight_decay = 0.1},
        Adam{.learning_rate = 3e-2, .beta1 = 0.8, .beta2 = 0.95, .epsilon = 1e-3}}) {
    CHECK(worst_difference_from_paper<float, Adam>(settings) < 3e-5L);
    CHECK(worst_difference_from_paper<double, WideAdam>(settings) < 1e-13L);
  }
}

TEST_CASE("without weight decay Adam has the values of AdamW") {
  Stepping<Adam> adam(100, {.weight_decay = 0});
  Stepping<AdamW> adamw(100, {.weight_decay = 0});
  for (std::uint64_t t = 1; t <= 50; ++t) {
    adam.step(t);
    adamw.step(t);
  }
  CHECK(same_bits(adam.parameter, adamw.parameter));

  Stepping<Adam> undecayed(100, {.weight_decay = 0.1}, {.weight_decay = 0});
  for (std::uint64_t t = 1; t <= 50; ++t) undecayed.step(t);
  CHECK(same_bits(adam.parameter, undecayed.parameter));
}

TEST_CASE("any split of a range gives the same bits of Adam") {
  CHECK(test::split_changes_nothing<Adam>({.weight_decay = 0.1}));
  CHECK(test::split_changes_nothing<Adam, double, bf16>({.weight_decay = 0.1}));
}

TEST_CASE("Adam refuses hyperparameters that make no sense") {
  CHECK_NOTHROW(Adam{}.validate());
  CHECK_THROWS_AS(Adam{.learning_rate = -1}.validate(), UsageError);
  CHECK_THROWS_AS(Adam{.beta1 = 1}.validate(), UsageError);
  CHECK_THROWS_AS(Adam{.beta2 = 1.5}.validate(), UsageError);
  CHECK_THROWS_AS(Adam{.epsilon = NAN}.validate(), UsageError);
  CHECK_THROWS_AS(Adam{.weight_decay = INFINITY}.validate(), UsageError);
}
