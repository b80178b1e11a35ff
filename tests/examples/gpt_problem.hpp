#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>
#include <span>
#include <vector>

#include "../../examples/train_gpt/model.hpp"
#include "../../examples/train_gpt/random.hpp"

namespace train_gpt {

inline double normal(std::uint64_t key, std::uint64_t index) {
  const double radius = to_unit_interval(random_bits(key, index, 0));
  const double angle = to_unit_interval(random_bits(key, index, 1));
  return std::sqrt(-2 * std::log(radius)) * std::cos(2 * std::numbers::pi * angle);
}

/// A value for each element of the model, as [unit][tensor] spans.
template <class T>
struct Values {
  explicit Values(const GptShape& shape) : elements(shape.parameters()) {
    T* next = elements.data();
    for (const Unit& unit : shape.units()) {
      auto& spans = units.emplace_back();
      for (const Tensor& tensor : unit) {
        spans.emplace_back(next, tensor.size());
        next += tensor.size();
      }
    }
  }
  std::vector<T> elements;
  std::vector<std::vector<std::span<T>>> units;
};

/// A model whose values are far from the ones it starts with, so that every path carries something,
/// and three sequences.
struct Problem {
  explicit Problem(const GptShape& size)
      : shape(size), inputs(3 * size.sequence), targets(inputs.size()), weights(size) {
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      inputs[i] = static_cast<std::uint8_t>(random_bits(1, i) % 7);  // repeated: rows add up
      targets[i] = static_cast<std::uint8_t>(random_bits(2, i) % 7);
    }
    std::size_t unit = 0;
    for (const auto& [tensors, tied] : shape.units()) {
      for (std::size_t t = 0; t < tensors.size(); ++t) {
        for (std::size_t i = 0; i < tensors[t].size(); ++i) {
          weights.units[unit][t][i] =
              static_cast<float>(shape.initial_value(tensors[t].name, i, 3) +
                                 0.3 * normal(key_of(tensors[t].name), i));
        }
      }
      ++unit;
    }
  }

  template <class W, class G = W>
  double forward(const Gpt<W, G>& model, const Values<W>& values, Activations& a) const {
    model.embed_forward(values.units.front(), inputs, a);
    for (std::size_t layer = 0; layer < shape.layers; ++layer) {
      model.block_forward(layer, values.units[1 + layer], a);
    }
    model.head_forward(values.units.front(), values.units.back(), a);
    return model.loss(targets, 1.0 / static_cast<double>(targets.size()), a);
  }

  template <class W, class G = W>
  void backward(const Values<W>& values, Values<G>& gradient) const {
    const Gpt<W, G> model(shape);
    Activations a(shape, 3);
    forward(model, values, a);
    const auto& w = values.units;
    const auto& g = gradient.units;
    model.head_backward(w.front(), w.back(), g.front(), g.back(), a);
    for (std::size_t layer = shape.layers; layer-- > 0;) {
      model.block_backward(layer, w[1 + layer], g[1 + layer], a);
    }
    model.embed_backward(g.front(), a);
  }

  GptShape shape;
  std::vector<std::uint8_t> inputs;
  std::vector<std::uint8_t> targets;
  Values<float> weights;
};

}  // namespace train_gpt
