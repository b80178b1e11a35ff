#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <shardwise/shardwise.hpp>
#include <span>
#include <string>
#include <vector>

#include "ranks.hpp"
#include "toy_kernels.hpp"

namespace shardwise::test {

/// The layers of the toy model: uneven, tiny, with an empty tensor, one without weight decay, and a
/// scalar that most ranks hold nothing of.
inline std::vector<std::vector<TensorSpec>> toy_layers(bool wide = false) {
  if (wide) {  // large enough for whole pages of their own, some of them
    return {{{"embedding", {1700, 90}}, {"position", {5, 9}}},
            {{"a.weight", {130, 313}}, {"a.bias", {31}, {.weight_decay = 0}}},
            {{"b.weight", {13000, 5}}, {"b.none", {0, 4}}, {"b.bias", {5}, {.weight_decay = 0}}},
            {{"scale", {1}}},
            {{"c.weight", {640, 63}}, {"c.table", {37007}}}};
  }
  return {{{"embedding", {17, 9}}, {"position", {5, 9}}},
          {{"a.weight", {13, 31}}, {"a.bias", {31}, {.weight_decay = 0}}},
          {{"b.weight", {130, 5}}, {"b.none", {0, 4}}, {"b.bias", {5}, {.weight_decay = 0}}},
          {{"scale", {1}}},
          {{"c.weight", {64}}}};
}

/// How a toy run goes.
struct ToyRun {
  Strategy strategy = Strategy::zero3();
  int steps = 4;
  int micro_batches = 1;
  double clip = 0;
  bool tied = true;  ///< layer 0 is used again at the end, as an embedding is
  bool weighted = false;
  Residency residency = Residency::slots;  ///< slots, or in_place: in arenas
  ArenaOptions arena = {};
  bool wide = false;
  bool debug = false;
};

/// A host's arenas for the toy's layers: layer by layer, each tensor of odd size after another one,
/// the tensors of a layer not next to each other.
template <FloatingElement L, FloatingElement G, class Device = HostDevice>
struct ToyArenas {
  ToyArenas(Context<Device>& context, const std::vector<std::vector<TensorSpec>>& layers,
            const ArenaOptions& options) {
    std::size_t elements = 3;  // so that nothing begins at a page
    std::vector<std::vector<std::size_t>> offsets(layers.size());
    for (std::size_t tensor = 0; tensor < 3; ++tensor) {
      for (std::size_t layer = layers.size(); layer-- > 0;) {
        if (tensor >= layers[layer].size()) continue;
        offsets[layer].push_back(elements);
        std::size_t count = 1;
        for (const std::size_t extent : layers[layer][tensor].shape) count *= extent;
        elements += count;
      }
    }
    weights =
        std::make_unique<DeviceArena<Device>>(context, elements * sizeof(L), "weights", options);
    ArenaOptions own = options;
    own.shared = false;
    gradients =
        std::make_unique<DeviceArena<Device>>(context, elements * sizeof(G), "gradients", own);
    for (std::size_t layer = 0; layer < layers.size(); ++layer) {
      std::vector<HostTensor>& list = tensors.emplace_back();
      for (std::size_t i = 0; i < layers[layer].size(); ++i) {
        const TensorSpec& spec = layers[layer][i];
        list.emplace_back(spec.name, weights->template as<L>() + offsets[layer][i], spec.shape,
                          spec.options);
      }
    }
  }

  std::unique_ptr<DeviceArena<Device>> weights;
  std::unique_ptr<DeviceArena<Device>> gradients;
  std::vector<std::vector<HostTensor>> tensors;
};

/// What a rank saw.
struct ToyResult {
  std::uint64_t hash = 0;  ///< of all values after the last step
  std::vector<double> norms;
  Traffic traffic;  ///< of the last step
  Bytes held;
  MemoryPlan plan;
  std::size_t peak = 0;
  std::vector<float> values;
};

/// Trains the toy model by the library: "gradients" are a function of the gathered weights and of
/// (step, micro-batch, rank), so that any wrong, stale or misplaced value changes every later one.
template <FloatingElement L, FloatingElement G = L, FloatingElement Stored = float,
          class Optimizer = AdamW, class Device = HostDevice>
ToyResult train_toy(Communicator& communicator, const ToyRun& run) {
  Strategy strategy = run.strategy;
  strategy.lease = dtype_of<L>;
  strategy.gradient_lease = dtype_of<G>;
  // By layers ahead: what the library takes, everything beside compute, some of it.
  constexpr std::optional<std::size_t> overlap_from[] = {std::nullopt, 0, 5000};
  Context<Device> context(communicator, strategy,
                          {.timeout = std::chrono::seconds(60),
                           .overlap_from = overlap_from[std::min(strategy.prefetch, 2)],
                           .debug = run.debug});
  const bool in_place = run.residency == Residency::in_place;
  const auto layers = toy_layers(run.wide);
  std::optional<ToyArenas<L, G, Device>> arenas;  // outlives the parameters
  std::vector<ShardedParameter<float, Device>> parameters;
  std::vector<ShardedGradient<Stored, Device>> gradients;
  std::vector<ShardedOptimizerState<Optimizer, Device>> states;
  if (in_place) arenas.emplace(context, layers, run.arena);
  parameters.reserve(layers.size());
  gradients.reserve(layers.size());
  for (std::size_t i = 0; i < layers.size(); ++i) {
    ParameterOptions options;
    options.tied = run.tied && i == 0;
    if (in_place) {
      parameters.emplace_back(context, arenas->tensors[i], options);
    } else {
      parameters.emplace_back(context, layers[i], options);
    }
  }
  for (auto& parameter : parameters) {
    if (in_place) {
      gradients.emplace_back(parameter, *arenas->gradients);
    } else {
      gradients.emplace_back(parameter);
    }
  }
  for (auto& parameter : parameters) states.emplace_back(parameter);
  for (std::size_t i = 0; i < layers.size(); ++i) {
    parameters[i].initialize([&](const Layout::Tensor& tensor, std::size_t element) {
      return noise(i, tensor.count, element);
    });
  }
  ShardedSequence<float, L, Stored, G, Device> sequence;
  for (std::size_t i = 0; i < layers.size(); ++i) sequence.add(parameters[i], gradients[i]);
  if (run.tied) sequence.add(parameters[0], gradients[0]);

  const auto deallocate = [](float* memory) { Device::deallocate(memory, sizeof(float)); };
  const std::unique_ptr<float, decltype(deallocate)> x(
      static_cast<float*>(Device::allocate(sizeof(float))), deallocate);
  auto& stream = context.stream();

  ToyResult result;
  result.plan = context.plan();
  for (int step = 0; step < run.steps; ++step) {
    context.reset_statistics();
    for (int micro = 0; micro < run.micro_batches; ++micro) {
      const bool last = micro + 1 == run.micro_batches;
      const bool complete = last || strategy.accumulation == Accumulation::reduce;
      const auto sample = static_cast<std::uint64_t>((step * 64 + micro) * 64 + context.rank());
      Device::launch(stream, 1, ToyStart{x.get(), noise(sample, 1)});
      for (std::size_t i = 0; i < sequence.size(); ++i) {
        auto visit = sequence.forward(i);
        for (const auto& tensor : parameters[i % layers.size()].layout().tensors()) {
          const auto weights = visit.weights[tensor.name];
          Device::launch(stream, 1, ToyForward<L>{weights.data(), weights.size(), x.get()});
        }
        visit.finish();
      }
      for (std::size_t i = sequence.size(); i-- > 0;) {
        auto visit = sequence.backward(i);
        for (const auto& tensor : parameters[i % layers.size()].layout().tensors()) {
          const auto weights = visit.weights[tensor.name];
          const auto gradient = visit.gradient[tensor.name];
          Device::launch(stream, weights.size(),
                         ToyBackward<L, G>{weights.data(), gradient.data(), x.get(), sample, i,
                                           static_cast<float>(run.micro_batches)});
        }
        visit.finish(complete);
      }
    }
    if (run.clip > 0) result.norms.push_back(clip_gradient_norm(context, run.clip));
    for (std::size_t i = 0; i < layers.size(); ++i) states[i].step(parameters[i], gradients[i]);
  }
  result.traffic = context.statistics().traffic;
  result.held = context.held();
  result.peak = context.peak_held();
  result.hash = 0xcbf29ce484222325ull;
  for (auto& parameter : parameters) {
    parameter.read([&](const Layout::Tensor&, std::size_t, std::span<const float> values) {
      for (const float value : values) {
        result.values.push_back(value);
        const auto bits = std::bit_cast<std::array<unsigned char, sizeof(float)>>(value);
        for (const unsigned char byte : bits) result.hash = (result.hash ^ byte) * 0x100000001b3ull;
      }
    });
  }
  return result;
}

}  // namespace shardwise::test
