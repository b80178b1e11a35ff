#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <shardwise/core/error.hpp>
#include <shardwise/optim/sgd.hpp>
#include <vector>

#include "optim/stepping.hpp"

using namespace shardwise;
using test::same_bits;
using test::Stepping;

namespace {

/// The same optimizer with state in double, for parameters of doubles.
struct WideSgdMomentum : SgdMomentum {
  using States = StateTypes<double>;
};

/// The algorithm in torch.optim.SGD's documentation, branch by branch.
template <class Real, class Optimizer>
long double worst_difference_from_torch(const SgdMomentum& o) {
  Stepping<Optimizer, Real, Real> mine(150, {o});
  const std::size_t count = mine.parameter.size();
  std::vector<long double> p(mine.parameter.begin(), mine.parameter.end());
  std::vector<long double> buffer(count);
  for (std::uint64_t t = 1; t <= 100; ++t) {
    const auto gradient = mine.gradient(t);
    mine.step(t);
    for (std::size_t i = 0; i < count; ++i) {
      long double g = gradient[i];
      if (o.weight_decay != 0) g += o.weight_decay * p[i];
      if (t > 1) {
        buffer[i] = o.momentum * buffer[i] + (1 - o.dampening) * g;
      } else {
        buffer[i] = g;
      }
      if (o.nesterov) {
        g += o.momentum * buffer[i];
      } else {
        g = buffer[i];
      }
      p[i] -= o.learning_rate * g;
    }
  }
  long double worst = 0;
  for (std::size_t i = 0; i < count; ++i)
    worst = std::max(worst, std::abs(p[i] - mine.parameter[i]));
  return worst;
}

}  // namespace

TEST_CASE("SGD without momentum subtracts the gradient, and has no state") {
  const Sgd settings{.learning_rate = 0.1, .weight_decay = 0.01};
  Stepping<Sgd> mine(100, settings);
  auto p = mine.parameter;
  for (std::uint64_t t = 1; t <= 50; ++t) {
    const auto g = mine.gradient(t);
    mine.step(t, {}, 0.5f);
    for (std::size_t i = 0; i < p.size(); ++i) {
      p[i] = p[i] - 0.1f * (g[i] * 0.5f + 0.01f * p[i]);
    }
  }
  CHECK(same_bits(mine.parameter, p));
  STATIC_REQUIRE(Sgd::States::count == 0);
  STATIC_REQUIRE(ElementwiseOptimizer<Sgd>);
}

TEST_CASE("SGD with momentum follows PyTorch") {
  for (const SgdMomentum& settings :
       {SgdMomentum{}, SgdMomentum{.learning_rate = 0.05, .weight_decay = 0.01},
        SgdMomentum{.learning_rate = 0.05, .dampening = 0.3},
        SgdMomentum{.learning_rate = 0.05, .nesterov = true, .weight_decay = 0.01},
        SgdMomentum{.learning_rate = 0.05, .momentum = 0}}) {
    CHECK(worst_difference_from_torch<float, SgdMomentum>(settings) < 1e-5L);
    CHECK(worst_difference_from_torch<double, WideSgdMomentum>(settings) < 1e-13L);
  }
}

TEST_CASE("the first step of momentum takes the gradient, dampened or not") {
  Stepping<SgdMomentum> mine(40, {.dampening = 0.9});
  std::get<0>(mine.states).assign(40, 5.0f);  // whatever was there
  mine.step(1);
  CHECK(same_bits(std::get<0>(mine.states), mine.gradient(1)));
}

TEST_CASE("momentum has the bits of the documented expression") {
  for (const bool nesterov : {false, true}) {
    Stepping<SgdMomentum> mine(100, {.learning_rate = 0.05, .nesterov = nesterov});
    auto p = mine.parameter;
    std::vector<float> b(p.size());
    for (std::uint64_t t = 1; t <= 50; ++t) {
      const auto g = mine.gradient(t);
      mine.step(t);
      for (std::size_t i = 0; i < p.size(); ++i) {
        b[i] = t == 1 ? g[i] : 0.9f * b[i] + 1.0f * g[i];
        p[i] = p[i] - 0.05f * (nesterov ? g[i] + 0.9f * b[i] : b[i]);
      }
    }
    CHECK(same_bits(mine.parameter, p));
    CHECK(same_bits(std::get<0>(mine.states), b));
  }
}

TEST_CASE("any split of a range gives the same bits of SGD") {
  CHECK(test::split_changes_nothing<Sgd>());
  CHECK(test::split_changes_nothing<Sgd, bf16, f16>({.weight_decay = 0.1}));
  CHECK(test::split_changes_nothing<SgdMomentum>({.weight_decay = 0.1}));
  CHECK(test::split_changes_nothing<SgdMomentum, double, double>({.nesterov = true}));
}

TEST_CASE("SGD refuses hyperparameters that make no sense") {
  CHECK_NOTHROW(Sgd{}.validate());
  CHECK_THROWS_AS(Sgd{.learning_rate = -1}.validate(), UsageError);
  CHECK_THROWS_AS(Sgd{.weight_decay = NAN}.validate(), UsageError);
  CHECK_NOTHROW(SgdMomentum{}.validate());
  CHECK_NOTHROW(SgdMomentum{.nesterov = true}.validate());
  CHECK_NOTHROW(SgdMomentum{.momentum = 0, .dampening = 1}.validate());
  CHECK_THROWS_AS(SgdMomentum{.learning_rate = -1}.validate(), UsageError);
  CHECK_THROWS_AS(SgdMomentum{.momentum = -0.5}.validate(), UsageError);
  CHECK_THROWS_AS(SgdMomentum{.dampening = 1.5}.validate(), UsageError);
  CHECK_THROWS_AS((SgdMomentum{.momentum = 0, .nesterov = true}.validate()), UsageError);
  CHECK_THROWS_AS((SgdMomentum{.dampening = 0.1, .nesterov = true}.validate()), UsageError);
}
