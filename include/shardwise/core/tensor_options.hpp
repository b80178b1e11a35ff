#pragma once

namespace shardwise::inline v0_1 {

/// How the optimizer treats one tensor: multipliers of its own values, finite and not negative.
struct TensorOptions {
  float weight_decay = 1;   ///< 0: this tensor does not decay (biases and norms, as a rule)
  float learning_rate = 1;  ///< 0: this tensor does not learn

  [[nodiscard]] bool operator==(const TensorOptions&) const = default;
};

}  // namespace shardwise::inline v0_1
