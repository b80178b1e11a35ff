#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <vector>

#include "memory.hpp"

namespace shardwise::inline v0_1 {

/// What the host's own kernels do, by what limits them.
struct PlannedWork {
  double flops = 0;            ///< of matrix products; a multiplication and an addition are two
  double attention_flops = 0;  ///< of the products within attention
  double bytes = 0;            ///< read and written by everything else
  double exponentials = 0;     ///< elements of exp, tanh and the like
  double streamed = 0;  ///< bytes of weights and gradients, read and written, that no cache holds

  [[nodiscard]] PlannedWork operator*(double factor) const noexcept {
    return {flops * factor, attention_flops * factor, bytes * factor, exponentials * factor,
            streamed * factor};
  }
  [[nodiscard]] PlannedWork operator+(const PlannedWork& other) const noexcept {
    return {flops + other.flops, attention_flops + other.attention_flops, bytes + other.bytes,
            exponentials + other.exponentials, streamed + other.streamed};
  }
  [[nodiscard]] bool operator==(const PlannedWork&) const = default;
};

/// One place of a pass at which parameters are used: gathered, worked with, released.
struct PlannedVisit {
  std::vector<std::size_t> parameters;  ///< indices in PlannedModel::parameters; open at once
  PlannedWork forward;                  ///< of one micro-batch
  PlannedWork backward;
  bool reads_weights_backwards = true;  ///< false: an embedding at the beginning
};

/// A model as a planner sees it: what is registered, and when it is used. A pass makes the visits
/// in order and then back; the last one keeps its weights from forward to backward. The gradient of
/// a parameter is open from its last visit to its first.
struct PlannedModel {
  std::string name;
  std::vector<PlannedParameter> parameters;  ///< in order of registration
  std::vector<PlannedVisit> visits;
  double activation_bytes = 0;  ///< an estimate, of one micro-batch; 0: not known

  /// Elements, without padding.
  [[nodiscard]] std::size_t elements() const {
    std::size_t sum = 0;
    for (const PlannedParameter& parameter : parameters) {
      sum += Layout(parameter.tensors, 1).size();
    }
    return sum;
  }
  /// Most parameters that are open at once.
  [[nodiscard]] std::size_t open_parameters() const noexcept {
    std::size_t most = 1;
    for (const PlannedVisit& visit : visits) most = std::max(most, visit.parameters.size());
    return most;
  }
};

}  // namespace shardwise::inline v0_1
