#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstdint>
#include <shardwise/core/dtype.hpp>
#include <span>
#include <vector>

#include "gpt_problem.hpp"

namespace {

using namespace train_gpt;
using shardwise::bf16;
using shardwise::f16;

/// The slope of the loss along a direction of one tensor, by central differences.
double slope(Problem& problem, std::span<float> tensor, const std::vector<double>& direction) {
  constexpr double step = 1e-2;
  const Gpt<float> model(problem.shape);
  Activations a(problem.shape, 3);
  const std::vector<float> kept(tensor.begin(), tensor.end());
  const auto loss_at = [&](double distance) {
    for (std::size_t i = 0; i < tensor.size(); ++i) {
      tensor[i] = static_cast<float>(static_cast<double>(kept[i]) + distance * direction[i]);
    }
    return problem.forward(model, problem.weights, a);
  };
  const double result = (loss_at(step) - loss_at(-step)) / (2 * step);
  std::copy(kept.begin(), kept.end(), tensor.begin());
  return result;
}

void require_slopes(const GptShape& shape) {
  Problem problem(shape);
  Values<float> gradient(shape);
  problem.backward(problem.weights, gradient);

  const std::vector<Unit> units = shape.units();
  for (std::size_t unit = 0; unit < units.size(); ++unit) {
    for (std::size_t t = 0; t < units[unit].tensors.size(); ++t) {
      INFO(units[unit].tensors[t].name);
      const std::span<float> g = gradient.units[unit][t];
      double squares = 0;
      for (const float value : g)
        squares += static_cast<double>(value) * static_cast<double>(value);
      const double length = std::sqrt(squares);
      REQUIRE(length > 1e-4);

      // Along the gradient the slope is its length; along any direction it is the projection.
      for (const std::uint64_t random : {0u, 1u, 2u}) {
        std::vector<double> direction(g.size());
        double size = 0;
        for (std::size_t i = 0; i < g.size(); ++i) {
          direction[i] = random == 0 ? static_cast<double>(g[i]) : normal(random, i);
          size += direction[i] * direction[i];
        }
        double expected = 0;
        for (std::size_t i = 0; i < g.size(); ++i) {
          direction[i] /= std::sqrt(size);
          expected += direction[i] * static_cast<double>(g[i]);
        }
        const double found = slope(problem, problem.weights.units[unit][t], direction);
        CAPTURE(random, expected, found);
        CHECK(std::abs(found - expected) < 2e-3 * length + 1e-4);
      }
    }
  }
}

template <class W>
void require_same_mathematics() {
  const GptShape shape{.layers = 2, .width = 16, .heads = 2, .sequence = 6};
  const Problem problem(shape);
  Values<W> narrow(shape);
  Values<float> widened(shape);
  for (std::size_t i = 0; i < narrow.elements.size(); ++i) {
    narrow.elements[i] = static_cast<W>(problem.weights.elements[i]);
    widened.elements[i] = static_cast<float>(narrow.elements[i]);
  }
  Values<float> expected(shape);
  Values<float> in_float(shape);
  problem.backward(widened, expected);
  problem.backward(narrow, in_float);
  CHECK(in_float.elements == expected.elements);

  // The token table is written twice, by the head and by the embedding, and rounded twice.
  Values<W> rounded(shape);
  problem.backward(narrow, rounded);
  bool same = true;
  const std::size_t tied = GptShape::vocabulary * shape.width;
  for (std::size_t i = tied; i < expected.elements.size(); ++i) {
    same = same && rounded.elements[i].bits == W(0.0f + expected.elements[i]).bits;
  }
  CHECK(same);
}

}  // namespace

TEST_CASE("the backward pass is the slope of the loss") {
  SECTION("small") { require_slopes({.layers = 2, .width = 16, .heads = 2, .sequence = 6}); }
  SECTION("one head, one layer") {
    require_slopes({.layers = 1, .width = 24, .heads = 1, .sequence = 9});
  }
}

TEST_CASE("narrow weights go through the same mathematics as their values in float") {
  SECTION("bf16") { require_same_mathematics<bf16>(); }
  SECTION("f16") { require_same_mathematics<f16>(); }
}

TEST_CASE("a gradient adds to what is there") {
  const GptShape shape{.layers = 1, .width = 8, .heads = 2, .sequence = 4};
  const Problem problem(shape);
  Values<float> once(shape);
  Values<float> twice(shape);
  problem.backward(problem.weights, once);
  problem.backward(problem.weights, twice);
  problem.backward(problem.weights, twice);
  const std::size_t tied = GptShape::vocabulary * shape.width;
  bool doubled = true;
  for (std::size_t i = tied; i < once.elements.size(); ++i) {
    doubled = doubled && twice.elements[i] == 2 * once.elements[i];
  }
  CHECK(doubled);
}

TEST_CASE("an initial value depends on name, element and seed alone") {
  const GptShape shape{.layers = 2, .width = 8, .heads = 2, .sequence = 4};
  CHECK(shape.initial_value("blocks.0.mlp.up.weight", 5, 1) ==
        shape.initial_value("blocks.0.mlp.up.weight", 5, 1));
  CHECK(shape.initial_value("blocks.0.mlp.up.weight", 5, 1) !=
        shape.initial_value("blocks.1.mlp.up.weight", 5, 1));
  CHECK(shape.initial_value("blocks.0.mlp.up.weight", 5, 1) !=
        shape.initial_value("blocks.0.mlp.up.weight", 6, 1));
  CHECK(shape.initial_value("blocks.0.mlp.up.weight", 5, 1) !=
        shape.initial_value("blocks.0.mlp.up.weight", 5, 2));
  CHECK(shape.initial_value("blocks.0.norm1.weight", 5, 1) == 1);
  CHECK(shape.initial_value("blocks.0.norm1.bias", 5, 1) == 0);
  CHECK(shape.initial_value("final_norm.weight", 5, 1) == 1);
}
