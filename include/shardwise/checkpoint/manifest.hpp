#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "../core/dtype.hpp"
#include "../core/loss_scaler_state.hpp"
#include "value.hpp"

namespace shardwise::inline v0_1 {

/// What manifest.json says of a save: where each element lies, and what else the training needs.
/// Elements are counted within their tensors, row-major and without padding, so that nothing here
/// depends on how many ranks there were.
struct Manifest {
  static constexpr std::uint64_t version = 1;
  static constexpr std::uint64_t smallest_chunk = 1024;
  static constexpr std::uint64_t largest_chunk = std::uint64_t{16} << 20;

  struct DataFile {
    std::string name;                   ///< in the directory of the save
    std::uint64_t bytes = 0;            ///< of all of it
    std::vector<std::uint64_t> chunks;  ///< XXH3 of each chunk_bytes of it; the last is shorter
  };
  /// Elements that follow each other in a file.
  struct Part {
    std::uint64_t begin = 0;  ///< the first one, in the tensor
    std::uint64_t count = 0;
    std::uint32_t file = 0;      ///< index in files
    std::uint64_t position = 0;  ///< of its first byte in the file
  };
  struct Tensor {
    std::string name;
    DType dtype = DType::f32;
    std::vector<std::uint64_t> shape;          ///< empty: a scalar
    std::uint64_t count = 0;                   ///< the product of its extents
    std::vector<Part> parts;                   ///< in order, every element once
    std::optional<std::uint32_t> optimizer{};  ///< of a parameter: who updates it
  };
  /// Settings and progress of the optimizer of one parameter.
  struct Optimizer {
    std::string kind;  ///< "adamw", ...
    std::uint64_t steps = 0;
    CheckpointValues hyperparameters;
  };

  std::string save;  ///< 32 digits that no other save has
  std::uint64_t step = 0;
  std::uint64_t world = 1;  ///< ranks that wrote it
  std::uint64_t chunk_bytes = 0;
  std::vector<DataFile> files;
  std::vector<Tensor> tensors;  ///< by name
  std::vector<Optimizer> optimizers;
  std::optional<LossScalerState> loss_scaler;
  CheckpointValues values;

  /// Null where there is none of this name.
  [[nodiscard]] const Tensor* find(std::string_view name) const noexcept {
    const auto found = std::partition_point(tensors.begin(), tensors.end(),
                                            [&](const Tensor& t) { return t.name < name; });
    return found == tensors.end() || found->name != name ? nullptr : &*found;
  }
};

}  // namespace shardwise::inline v0_1
