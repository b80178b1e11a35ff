#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <shardwise/checkpoint.hpp>
#include <shardwise/shardwise.hpp>
#include <string>
#include <vector>

#include "support/device.hpp"
#include "support/toy.hpp"

namespace shardwise::test {

/// A model whose every value is a function of its name, its element and a version: what a load
/// brings back can be told apart, element by element, from any other version.
template <FloatingElement T, ElementwiseOptimizer Optimizer = AdamW, class D = Device>
class SavedModel {
 public:
  SavedModel(Communicator& communicator, const Strategy& strategy,
             const std::vector<std::vector<TensorSpec>>& layers, bool tied = false,
             bool in_place = false)
      : context(communicator, strategy), training(context) {
    if (in_place) arenas.emplace(context, layers, ArenaOptions());
    for (std::size_t i = 0; i < layers.size(); ++i) {
      const ParameterOptions options{.tied = tied && parameters.empty()};
      if (in_place) {
        parameters.emplace_back(context, arenas->tensors[i], options);
      } else {
        parameters.emplace_back(context, layers[i], options);
      }
      states.emplace_back(parameters.back());
    }
    for (auto& parameter : parameters) training.add(parameter);
    for (auto& state : states) training.add(state);
  }

  [[nodiscard]] static float value(const std::string& name, std::size_t element,
                                   std::uint64_t version) {
    std::uint64_t x = version * 0x9e3779b97f4a7c15u + element;
    for (const char c : name) x = (x ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
    return static_cast<float>((x >> 20) % 4096 + 1) / 64;
  }

  void fill(std::uint64_t version) {
    for (auto& parameter : parameters) {
      parameter.initialize([&](const Layout::Tensor& tensor, std::size_t element) {
        return value(tensor.name, element, version);
      });
    }
    for (std::size_t i = 0; i < states.size(); ++i) {
      states[i].restore_steps(version);
      for (const char* const slot : Optimizer::state_names) {
        const auto values = states[i].template values<float>(slot);
        std::vector<float> host(values.size());
        parameters[i].for_each_tensor(std::span<float>(host), [&](const Layout::Tensor& tensor,
                                                                  std::size_t first, auto part) {
          for (std::size_t j = 0; j < part.size(); ++j) {
            part[j] = value(tensor.name + '.' + slot, first + j, version);
          }
        });
        D::upload(context.stream(), values.data(), host.data(), host.size() * sizeof(float));
      }
    }
  }

  /// Of the elements that this rank holds, how many are not of `version`; a padding that is not
  /// zero counts, too.
  [[nodiscard]] std::size_t differences(std::uint64_t version) {
    std::size_t wrong = 0;
    for (auto& parameter : parameters) {
      parameter.read([&](const Layout::Tensor& tensor, std::size_t first, auto part) {
        for (std::size_t j = 0; j < part.size(); ++j) {
          if (part[j] != static_cast<T>(value(tensor.name, first + j, version))) ++wrong;
        }
      });
    }
    for (std::size_t i = 0; i < states.size(); ++i) {
      if (states[i].steps() != version) ++wrong;
      for (const char* const slot : Optimizer::state_names) {
        const auto values = states[i].template values<float>(slot);
        std::vector<float> host(values.size());
        D::download(context.stream(), host.data(), values.data(), host.size() * sizeof(float));
        parameters[i].for_each_tensor(std::span<float>(host), [&](const Layout::Tensor& tensor,
                                                                  std::size_t first, auto part) {
          for (std::size_t j = 0; j < part.size(); ++j) {
            if (part[j] != value(tensor.name + '.' + slot, first + j, version)) ++wrong;
            part[j] = 0;
          }
        });
        for (const float padding : host) wrong += padding != 0 ? 1 : 0;
      }
    }
    return wrong;
  }

  Context<D> context;
  std::optional<ToyArenas<T, T, D>> arenas;
  std::deque<ShardedParameter<T, D>> parameters;
  std::deque<ShardedOptimizerState<Optimizer, D>> states;
  TrainingState<D> training;
};

/// Small, uneven, with an empty tensor and a scalar.
inline std::vector<std::vector<TensorSpec>> small_layers() {
  return {{{"embedding", {37, 5}}, {"position", {9}}},
          {{"weight", {60, 7}}, {"none", {0, 4}}, {"bias", {7}, {.weight_decay = 0}}},
          {{"scale", {}}}};
}

}  // namespace shardwise::test
