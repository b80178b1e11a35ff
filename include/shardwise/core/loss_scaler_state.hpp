#pragma once

#include <cstdint>

namespace shardwise::inline v0_1 {

/// What a LossScaler has come to, between two steps.
struct LossScalerState {
  double scale = 0;
  std::uint64_t good = 0;     ///< steps in a row without an overflow
  std::uint64_t skipped = 0;  ///< steps in all

  [[nodiscard]] bool operator==(const LossScalerState&) const = default;
};

}  // namespace shardwise::inline v0_1
