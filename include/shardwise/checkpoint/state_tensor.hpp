#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "../core/dtype.hpp"
#include "value.hpp"

namespace shardwise::inline v0_1::detail {

/// A tensor of the training state, as one rank sees it. Elements are counted within the tensor.
struct StateTensor {
  std::string name;
  DType dtype = DType::f32;
  std::vector<std::uint64_t> shape{};
  std::uint64_t count = 0;
  std::optional<int> only_rank{};            ///< whose alone it is; others know its name
  std::optional<std::uint32_t> optimizer{};  ///< index in the list of optimizers

  // A load fills elements [first, first + held), which lie at `data`.
  std::uint64_t first = 0;
  std::uint64_t held = 0;
  std::byte* data = nullptr;
  bool on_device = false;

  // A save takes these from here, which are among them: each element from one rank.
  std::uint64_t write_first = 0;
  std::uint64_t write_count = 0;

  /// Where element `element` of what is held lies.
  [[nodiscard]] std::byte* at(std::uint64_t element) const noexcept {
    return data + (element - first) * size_of(dtype);
  }
};

/// An optimizer of one parameter.
struct StateOptimizer {
  std::string kind;
  std::string parameter;  ///< for messages
  std::function<std::uint64_t()> steps;
  std::function<CheckpointValues()> hyperparameters;
  std::function<void(std::uint64_t)> restore_steps;
  std::function<void(const CheckpointValues&)> restore_hyperparameters;
};

}  // namespace shardwise::inline v0_1::detail
