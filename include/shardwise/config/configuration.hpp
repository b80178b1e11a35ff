#pragma once

#include <cstddef>
#include <optional>

#include "../core/dtype.hpp"
#include "../strategy.hpp"

namespace shardwise::inline v0_1 {

/// What a file of configuration can say: a Strategy, and what the host's loop needs to know beside
/// it. A value; what the file leaves to the host is empty.
struct Configuration {
  Strategy strategy;

  /// Type of the stored gradient: the host's ShardedGradient<T>.
  std::optional<DType> gradient_storage = std::nullopt;

  /// Ranks that the batch is shared by.
  std::optional<std::size_t> ranks = std::nullopt;
  /// Samples: global_batch = ranks x micro_batch x micro_batches.
  std::optional<std::size_t> global_batch = std::nullopt;
  std::optional<std::size_t> micro_batch = std::nullopt;    ///< of one rank, computed at once
  std::optional<std::size_t> micro_batches = std::nullopt;  ///< of one rank, in one step

  /// Largest norm of the gradient; 0: not clipped.
  std::optional<double> clip = std::nullopt;

  /// LossScaler::Options: initial_scale, growth_factor, growth_interval, minimum_scale.
  std::optional<double> loss_scale = std::nullopt;
  std::optional<double> loss_scale_growth = std::nullopt;
  std::optional<std::size_t> loss_scale_window = std::nullopt;
  std::optional<double> loss_scale_minimum = std::nullopt;

  [[nodiscard]] bool operator==(const Configuration&) const = default;
};

/// What `"auto"` in a file stands for, and other facts that a file does not have. A file that needs
/// one which is not here is refused with its name.
struct Hints {
  std::optional<std::size_t> world = std::nullopt;          ///< ranks
  std::optional<std::size_t> micro_batch = std::nullopt;    ///< samples of one rank at once
  std::optional<std::size_t> micro_batches = std::nullopt;  ///< of one rank, in one step
  std::optional<double> clip = std::nullopt;                ///< largest norm of the gradient
  std::optional<DType> lease = std::nullopt;                ///< what the compute is in
  std::optional<std::size_t> hidden_size = std::nullopt;    ///< width of the model
  /// Elements of the largest parameter: how many parameters a prefetch in elements stands for.
  std::optional<std::size_t> largest_parameter = std::nullopt;
};

}  // namespace shardwise::inline v0_1
