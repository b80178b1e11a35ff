#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <random>
#include <shardwise/device/host.hpp>
#include <shardwise/optim/optimizer.hpp>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "support/floating.hpp"

namespace shardwise::test {

template <class States>
struct StateVectors {};
template <class... States>
struct StateVectors<StateTypes<States...>> {
  using type = std::tuple<std::vector<States>...>;
};

/// A parameter of random values with an optimizer's state, and the steps over it.
template <class Optimizer, class Parameter = float, class Gradient = float>
struct Stepping {
  using Functor = UpdateOf<Optimizer, Parameter, Gradient>;
  using Real = typename Functor::Real;

  explicit Stepping(std::size_t count, Optimizer settings = {}, TensorOptions tensor = {})
      : optimizer(settings), options(tensor), parameter(normal_values<Parameter>(count, 11)) {
    std::apply([&](auto&... state) { (state.resize(count), ...); }, states);
  }

  /// The gradient of every run's step t.
  [[nodiscard]] std::vector<Gradient> gradient(std::uint64_t t) const {
    return normal_values<Gradient>(parameter.size(), static_cast<unsigned>(100 + t), 0.1);
  }

  /// One step in ranges that end at `cuts` and at the end.
  void step(std::uint64_t t, const std::vector<std::size_t>& cuts = {}, float coefficient = 1) {
    const auto g = gradient(t);
    const auto constants = optimizer.template constants<Real>(t, options);
    std::size_t begin = 0;
    for (std::size_t i = 0; i <= cuts.size(); ++i) {
      const std::size_t end = i < cuts.size() ? cuts[i] : parameter.size();
      Functor functor{parameter.data() + begin, g.data() + begin, {}, coefficient, constants};
      std::size_t index = 0;
      std::apply([&](auto&... state) { ((functor.states[index++] = state.data() + begin), ...); },
                 states);
      HostDevice::run(end - begin, functor);
      begin = end;
    }
  }

  [[nodiscard]] bool same_as(const Stepping& other) const {
    return same_bits(parameter, other.parameter) && same_states(other, states_index());
  }

  using States = typename Optimizer::States;
  using Indices = std::make_index_sequence<States::count>;
  [[nodiscard]] static Indices states_index() { return {}; }
  template <std::size_t... Index>
  [[nodiscard]] bool same_states(const Stepping& other, std::index_sequence<Index...>) const {
    return (same_bits(std::get<Index>(states), std::get<Index>(other.states)) && ...);
  }

  Optimizer optimizer;
  TensorOptions options;
  std::vector<Parameter> parameter;
  typename StateVectors<States>::type states;
};

/// Whole, one by one, and cut at random: the same bits.
template <class Optimizer, class Parameter = float, class Gradient = float>
[[nodiscard]] bool split_changes_nothing(Optimizer settings = {}) {
  constexpr std::size_t count = 203;
  using Run = Stepping<Optimizer, Parameter, Gradient>;
  Run whole(count, settings);
  Run single(count, settings);
  Run cut(count, settings);
  std::vector<std::size_t> each;
  for (std::size_t i = 1; i < count; ++i) each.push_back(i);
  std::mt19937 random(17);
  for (std::uint64_t t = 1; t <= 20; ++t) {
    std::vector<std::size_t> cuts;
    for (std::size_t at = random() % 40; at < count; at += random() % 40) cuts.push_back(at);
    whole.step(t, {}, 0.7f);
    single.step(t, each, 0.7f);
    cut.step(t, cuts, 0.7f);
  }
  return whole.same_as(single) && whole.same_as(cut);
}

}  // namespace shardwise::test
