#include <array>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <shardwise/kernels/update.hpp>
#include <shardwise/optim/adam.hpp>
#include <shardwise/optim/adamw.hpp>
#include <shardwise/optim/lion.hpp>
#include <shardwise/optim/sgd.hpp>
#include <type_traits>
#include <vector>

#include "optim/stepping.hpp"

using namespace shardwise;
using test::normal_values;
using test::same_bits;
using test::Stepping;

namespace {

/// A host's own optimizer: momentum kept in bf16.
struct ShortMomentum {
  double learning_rate = 1e-2;
  using States = StateTypes<bf16>;
  static constexpr std::array state_names{"momentum"};
  template <class Real>
  struct Constants {
    Real learning_rate;
  };
  template <class Real>
  Constants<Real> constants(std::uint64_t /*step*/, const TensorOptions& options) const {
    return {static_cast<Real>(learning_rate * options.learning_rate)};
  }
  template <class Real>
  static void update(const Constants<Real>& c, Real& p, Real g, Real& m) {
    m = Real(0.5) * m + g;
    p -= c.learning_rate * (m > 0 ? m : m / 2);
  }
};

/// Shows which value is which, in three types of state.
struct Recorder {
  using States = StateTypes<float, bf16, double>;
  static constexpr std::array state_names{"first", "second", "third"};
  template <class Real>
  struct Constants {
    Real step;
  };
  template <class Real>
  Constants<Real> constants(std::uint64_t step, const TensorOptions& /*options*/) const {
    return {static_cast<Real>(step)};
  }
  template <class Real>
  static void update(const Constants<Real>& c, Real& p, Real g, Real& a, Real& b, Real& d) {
    a += 1;
    b += 2;
    d += g;
    p += 100 * c.step;
  }
};

struct NoNames {
  using States = StateTypes<float>;
  static constexpr std::array<const char*, 0> state_names{};
  template <class Real>
  struct Constants {};
  template <class Real>
  Constants<Real> constants(std::uint64_t, const TensorOptions&) const {
    return {};
  }
  template <class Real>
  static void update(const Constants<Real>&, Real&, Real, Real&) {}
};
struct TooFewStates : NoNames {
  using States = StateTypes<>;
};

}  // namespace

TEST_CASE("what is an element-wise optimizer, and what is not") {
  STATIC_REQUIRE(ElementwiseOptimizer<AdamW>);
  STATIC_REQUIRE(ElementwiseOptimizer<Adam>);
  STATIC_REQUIRE(ElementwiseOptimizer<Sgd>);
  STATIC_REQUIRE(ElementwiseOptimizer<SgdMomentum>);
  STATIC_REQUIRE(ElementwiseOptimizer<Lion>);
  STATIC_REQUIRE(ElementwiseOptimizer<ShortMomentum>);
  STATIC_REQUIRE(ElementwiseOptimizer<Recorder>);
  STATIC_REQUIRE_FALSE(ElementwiseOptimizer<int>);
  STATIC_REQUIRE_FALSE(ElementwiseOptimizer<NoNames>);
  STATIC_REQUIRE_FALSE(ElementwiseOptimizer<TooFewStates>);
}

TEST_CASE("functors are copied into streams") {
  STATIC_REQUIRE(std::is_trivially_copyable_v<UpdateOf<AdamW, float, bf16>>);
  STATIC_REQUIRE(std::is_trivially_copyable_v<UpdateOf<Sgd, bf16, bf16>>);
  STATIC_REQUIRE(std::is_trivially_copyable_v<UpdateOf<Recorder, double, float>>);
}

TEST_CASE("a host's own optimizer with short state") {
  Stepping<ShortMomentum> mine(100);
  auto p = mine.parameter;
  std::vector<bf16> m(p.size());
  for (std::uint64_t t = 1; t <= 30; ++t) {
    const auto g = mine.gradient(t);
    mine.step(t);
    for (std::size_t i = 0; i < p.size(); ++i) {
      const float now = 0.5f * static_cast<float>(m[i]) + g[i];
      p[i] = p[i] - 0.01f * (now > 0 ? now : now / 2);
      m[i] = bf16(now);
    }
  }
  CHECK(same_bits(mine.parameter, p));
  CHECK(same_bits(std::get<0>(mine.states), m));
  CHECK(test::split_changes_nothing<ShortMomentum>());
  CHECK(test::split_changes_nothing<ShortMomentum, bf16, float>());
  CHECK(test::split_changes_nothing<ShortMomentum, double, f16>());
}

TEST_CASE("states keep their order, types and values") {
  Stepping<Recorder, float, float> mine(50);
  const auto before = mine.parameter;
  const auto g1 = mine.gradient(1);
  const auto g2 = mine.gradient(2);
  mine.step(1);
  mine.step(2, {}, 0.25f);
  for (std::size_t i = 0; i < 50; ++i) {
    CHECK(std::get<0>(mine.states)[i] == 2);
    CHECK(static_cast<float>(std::get<1>(mine.states)[i]) == 4);
    CHECK(std::get<2>(mine.states)[i] == static_cast<double>(g1[i] + g2[i] * 0.25f));
    CHECK(mine.parameter[i] == (before[i] + 100) + 200);
  }
}

TEST_CASE("the coefficient multiplies the gradient, and 1 changes no bit") {
  Stepping<AdamW> scaled(100);
  Stepping<AdamW> plain(100);
  scaled.step(1, {}, 0.125f);
  auto g = plain.gradient(1);
  for (float& value : g) value *= 0.125f;
  UpdateOf<AdamW, float, float> functor{
      plain.parameter.data(),
      g.data(),
      {std::get<0>(plain.states).data(), std::get<1>(plain.states).data()},
      1,
      plain.optimizer.constants<float>(1, {})};
  HostDevice::run(100, functor);
  CHECK(scaled.same_as(plain));
}

TEST_CASE("bf16 parameters and gradients are computed with as floats and rounded once") {
  Stepping<AdamW, bf16, bf16> mine(70);
  Stepping<AdamW, float, float> wide(70);
  for (std::size_t i = 0; i < 70; ++i) wide.parameter[i] = static_cast<float>(mine.parameter[i]);
  const auto short_gradient = mine.gradient(1);
  const std::vector<float> g(short_gradient.begin(), short_gradient.end());
  mine.step(1);
  UpdateOf<AdamW, float, float> functor{
      wide.parameter.data(),
      g.data(),
      {std::get<0>(wide.states).data(), std::get<1>(wide.states).data()},
      1,
      wide.optimizer.constants<float>(1, {})};
  HostDevice::run(70, functor);
  for (std::size_t i = 0; i < 70; ++i) {
    CHECK(mine.parameter[i].bits == bf16(wide.parameter[i]).bits);
  }
  CHECK(same_bits(std::get<0>(mine.states), std::get<0>(wide.states)));
  CHECK(same_bits(std::get<1>(mine.states), std::get<1>(wide.states)));
}

TEST_CASE("an update touches its range and nothing else, wherever that begins") {
  for (std::size_t begin = 0; begin < 20; ++begin) {
    for (const std::size_t count : {0u, 1u, 15u, 16u, 17u, 40u}) {
      std::vector<float> p(80, 1.0f);
      std::vector<float> m(80, 2.0f);
      std::vector<float> v(80, 3.0f);
      const std::vector<float> g(80, 0.5f);
      UpdateOf<AdamW, float, float> functor{p.data() + begin,
                                            g.data() + begin,
                                            {m.data() + begin, v.data() + begin},
                                            1,
                                            AdamW{}.constants<float>(1, {})};
      HostDevice::run(count, functor);
      std::size_t wrong = 0;
      for (std::size_t i = 0; i < 80; ++i) {
        const bool is_inside = i >= begin && i < begin + count;
        wrong += (p[i] != 1) == is_inside ? 0u : 1u;
        wrong += (m[i] != 2) == is_inside ? 0u : 1u;
        wrong += (v[i] != 3) == is_inside ? 0u : 1u;
      }
      CHECK(wrong == 0);
    }
  }
}

TEST_CASE("square_root is correctly rounded in lanes and alone") {
  const auto values = normal_values<float>(4000, 21);
  std::size_t wrong = 0;
  for (std::size_t i = 0; i + 4 <= values.size(); i += 4) {
    const FloatLanes x{std::abs(values[i]), std::abs(values[i + 1]), std::abs(values[i + 2]), 0.0f};
    const FloatLanes root = square_root(x);
    const DoubleLanes wide = square_root(DoubleLanes{static_cast<double>(x[0]), 2.0});
    for (std::size_t j = 0; j < 4; ++j) wrong += root[j] == std::sqrt(x[j]) ? 0u : 1u;
    wrong += wide[0] == std::sqrt(static_cast<double>(x[0])) && wide[1] == std::sqrt(2.0) ? 0u : 1u;
    wrong += square_root(x[0]) == std::sqrt(x[0]) ? 0u : 1u;
  }
  CHECK(wrong == 0);
}
