#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <shardwise/core/error.hpp>
#include <shardwise/optim/adamw.hpp>
#include <vector>

#include "optim/stepping.hpp"

using namespace shardwise;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::MessageMatches;
using test::same_bits;
using test::Stepping;

namespace {

/// The documented expression, written for one float after the other.
struct Plain {
  std::vector<float> p, m, v;

  void step(const std::vector<float>& gradient, const AdamW& o, std::uint64_t t, float coefficient,
            float decay_multiplier) {
    const auto decay =
        static_cast<float>(1 - o.learning_rate * (o.weight_decay * decay_multiplier));
    const auto beta1 = static_cast<float>(o.beta1);
    const auto beta2 = static_cast<float>(o.beta2);
    const auto one_minus_beta1 = static_cast<float>(1 - o.beta1);
    const auto one_minus_beta2 = static_cast<float>(1 - o.beta2);
    const auto step_size =
        static_cast<float>(o.learning_rate / (1 - std::pow(o.beta1, static_cast<double>(t))));
    const auto inverse_root =
        static_cast<float>(1 / std::sqrt(1 - std::pow(o.beta2, static_cast<double>(t))));
    const auto epsilon = static_cast<float>(o.epsilon);
    for (std::size_t i = 0; i < p.size(); ++i) {
      const float g = gradient[i] * coefficient;
      p[i] = p[i] * decay;
      m[i] = beta1 * m[i] + one_minus_beta1 * g;
      v[i] = beta2 * v[i] + one_minus_beta2 * (g * g);
      p[i] = p[i] - step_size * (m[i] / (std::sqrt(v[i]) * inverse_root + epsilon));
    }
  }
};

/// Algorithm 2 of the paper (schedule multiplier 1, weight decay lr * wd as in PyTorch).
struct Paper {
  long double p, m = 0, v = 0;

  void step(long double g, long double lr, long double beta1, long double beta2,
            long double epsilon, long double wd, int t) {
    m = beta1 * m + (1 - beta1) * g;
    v = beta2 * v + (1 - beta2) * g * g;
    const long double m_hat = m / (1 - std::pow(beta1, static_cast<long double>(t)));
    const long double v_hat = v / (1 - std::pow(beta2, static_cast<long double>(t)));
    p = p - lr * m_hat / (std::sqrt(v_hat) + epsilon) - lr * wd * p;
  }
};

/// The same optimizer with state in double, for parameters of doubles.
struct WideAdamW : AdamW {
  using States = StateTypes<double, double>;
};

template <class Real, class Optimizer>
long double worst_difference_from_paper(const AdamW& settings, int steps) {
  Stepping<Optimizer, Real, Real> mine(150, {settings});
  std::vector<Paper> paper;
  for (const Real p : mine.parameter) paper.push_back({p});
  for (int t = 1; t <= steps; ++t) {
    const auto g = mine.gradient(static_cast<std::uint64_t>(t));
    mine.step(static_cast<std::uint64_t>(t));
    for (std::size_t i = 0; i < g.size(); ++i) {
      paper[i].step(g[i], settings.learning_rate, settings.beta1, settings.beta2, settings.epsilon,
                    settings.weight_decay, t);
    }
  }
  long double worst = 0;
  for (std::size_t i = 0; i < paper.size(); ++i) {
    worst = std::max(worst, std::abs(paper[i].p - static_cast<long double>(mine.parameter[i])));
  }
  return worst;
}

}  // namespace

TEST_CASE("AdamW has the bits of the documented expression") {
  for (const float multiplier : {1.0f, 0.0f, 0.5f}) {
    for (const std::size_t count : {1u, 15u, 16u, 203u}) {
      const AdamW settings{.learning_rate = 3e-3, .weight_decay = 0.1};
      Stepping<AdamW> mine(count, settings, {.weight_decay = multiplier});
      Plain plain{mine.parameter, std::vector<float>(count), std::vector<float>(count)};
      for (std::uint64_t t = 1; t <= 100; ++t) {
        const float coefficient = t % 3 == 0 ? 1.0f : 0.37f;
        plain.step(mine.gradient(t), settings, t, coefficient, multiplier);
        mine.step(t, {}, coefficient);
      }
      CHECK(same_bits(mine.parameter, plain.p));
      CHECK(same_bits(std::get<0>(mine.states), plain.m));
      CHECK(same_bits(std::get<1>(mine.states), plain.v));
    }
  }
}

TEST_CASE("AdamW follows the paper") {
  for (const AdamW& settings :
       {AdamW{}, AdamW{.learning_rate = 1e-2, .weight_decay = 0},
        AdamW{.learning_rate = 3e-2, .beta1 = 0.8, .beta2 = 0.95, .epsilon = 1e-3},
        AdamW{.beta1 = 0, .beta2 = 0.5, .weight_decay = 0.5}}) {
    CHECK(worst_difference_from_paper<float, AdamW>(settings, 200) < 2e-5L);
    CHECK(worst_difference_from_paper<double, WideAdamW>(settings, 200) < 1e-13L);
  }
}

TEST_CASE("any split of a range gives the same bits of AdamW") {
  CHECK(test::split_changes_nothing<AdamW>());
  CHECK(test::split_changes_nothing<AdamW, float, bf16>());
  CHECK(test::split_changes_nothing<AdamW, bf16, bf16>());
  CHECK(test::split_changes_nothing<AdamW, f16, float>());
  CHECK(test::split_changes_nothing<AdamW, double, float>());
  CHECK(test::split_changes_nothing<AdamW, double, double>());
}

TEST_CASE("a tensor's multipliers scale AdamW's learning rate and decay") {
  const AdamW settings{.learning_rate = 1e-2, .weight_decay = 0.1};
  const auto run = [](AdamW with, TensorOptions options) {
    Stepping<AdamW> stepping(40, with, options);
    for (std::uint64_t t = 1; t <= 5; ++t) stepping.step(t);
    return stepping.parameter;
  };
  const auto half = run(settings, {.learning_rate = 0.5f});
  CHECK(same_bits(half, run({.learning_rate = 5e-3, .weight_decay = 0.1}, {})));
  const auto undecayed = run(settings, {.weight_decay = 0});
  CHECK(same_bits(undecayed, run({.learning_rate = 1e-2, .weight_decay = 0}, {})));
  CHECK_FALSE(same_bits(undecayed, run(settings, {})));
  CHECK(same_bits(run(settings, {.learning_rate = 0}), Stepping<AdamW>(40).parameter));
}

TEST_CASE("a bad value in a gradient stays in its element") {
  Stepping<AdamW> stepping(64);
  auto g = stepping.gradient(1);
  Plain plain{stepping.parameter, std::vector<float>(64), std::vector<float>(64)};
  g[5] = std::numeric_limits<float>::quiet_NaN();
  g[20] = std::numeric_limits<float>::infinity();
  g[21] = 1e30f;  // its square is infinite
  UpdateOf<AdamW, float, float> functor{
      stepping.parameter.data(),
      g.data(),
      {std::get<0>(stepping.states).data(), std::get<1>(stepping.states).data()},
      1,
      stepping.optimizer.constants<float>(1, {})};
  HostDevice::run(64, functor);
  plain.step(g, AdamW{}, 1, 1, 1);
  for (std::size_t i = 0; i < 64; ++i) {
    const bool is_nan = i == 5 || i == 20;
    CHECK(std::isnan(stepping.parameter[i]) == is_nan);
    if (!is_nan) CHECK(stepping.parameter[i] == plain.p[i]);
  }
}

TEST_CASE("AdamW refuses hyperparameters that make no sense") {
  CHECK_NOTHROW(AdamW{}.validate());
  CHECK_NOTHROW(AdamW{.learning_rate = 3e-4f, .epsilon = 0}.validate());
  CHECK_THROWS_MATCHES(AdamW{.beta1 = 1}.validate(), UsageError,
                       MessageMatches(ContainsSubstring("AdamW::beta1 is 1.0")));
  CHECK_THROWS_AS(AdamW{.beta2 = -0.1}.validate(), UsageError);
  CHECK_THROWS_AS(AdamW{.learning_rate = NAN}.validate(), UsageError);
  CHECK_THROWS_AS(AdamW{.learning_rate = INFINITY}.validate(), UsageError);
  CHECK_THROWS_AS(AdamW{.epsilon = -1}.validate(), UsageError);
  CHECK_THROWS_AS(AdamW{.weight_decay = -1}.validate(), UsageError);
}
