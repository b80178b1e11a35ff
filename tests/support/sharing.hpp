#pragma once

#include <catch2/catch_test_macros.hpp>
#include <cstddef>
#include <shardwise/shardwise.hpp>
#include <vector>

#include "device.hpp"
#include "toy.hpp"

namespace shardwise::test {

inline Strategy shared(Strategy strategy) {
  strategy.residency = Residency::shared;
  return strategy;
}

/// Strategies whose parameters can be shared.
inline std::vector<Strategy> sharing_strategies() {
  Strategy gathered_at_once = Strategy::zero3();
  gathered_at_once.bucket_bytes = 6000;
  gathered_at_once.prefetch = 2;
  Strategy persistent = Strategy::zero3();
  persistent.persistence_threshold = 70;
  persistent.prefetch = 0;
  Strategy whole_gradients = Strategy::zero3();
  whole_gradients.gradients = Placement::replicated;
  return {Strategy::zero1(), Strategy::zero2(), Strategy::zero3(), Strategy::zero3_no_reshard(),
          gathered_at_once,  persistent,        whole_gradients};
}

/// What ranks share, in place or not, has the bits of slots and the traffic by the formula, and its
/// bytes are planned.
inline void check_trained_as(const ToyResult& slots, const ToyResult& result) {
  CHECK(result.hash == slots.hash);
  CHECK(result.norms == slots.norms);
  CHECK(result.traffic == slots.traffic);
  CHECK(result.held == result.plan.bytes);
  CHECK(result.peak == result.plan.peak());
}

/// Elements that all ranks hold of the toy's parameters together, were each held once.
inline std::size_t toy_elements(int world) {
  std::size_t elements = 0;
  for (const auto& tensors : toy_layers()) elements += Layout(tensors, world).padded_size();
  return elements;
}

/// Two layers of a model whose weights say which step wrote them.
struct SharedLayers {
  SharedLayers(Communicator& communicator, const Strategy& strategy,
               ContextOptions options = {.overlap_from = 0})
      : context(communicator, strategy, options) {
    for (const char* name : {"a", "b"}) {
      parameters.emplace_back(context, std::vector<TensorSpec>{{name, {4099}}});
      write(parameters.back(), 0);
    }
  }
  static float value(std::size_t element, int step) {
    return static_cast<float>(step * 8 + static_cast<int>(element % 7));
  }
  static void write(Parameter<float>& parameter, int step) {
    parameter.initialize([&](const auto&, std::size_t element) { return value(element, step); });
  }
  template <class L>
  static std::size_t wrong(Parameter<float>& parameter, int step) {
    const auto lease = parameter.gather<L>();
    std::size_t count = 0;
    for (std::size_t i = 0; i < lease[0].size(); ++i) {
      if (static_cast<float>(lease[0][i]) != value(i, step)) ++count;
    }
    return count;
  }

  Context<Device> context;
  std::vector<Parameter<float>> parameters;
};

}  // namespace shardwise::test
