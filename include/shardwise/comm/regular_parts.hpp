#pragma once

#include <memory>

#include "communicator.hpp"

namespace shardwise::inline v0_1 {

/// What a communicator also is that knows its parts without asking the other ranks, because it
/// stands for all of them: see SimulatedCommunicator.
class RegularParts {
 public:
  virtual ~RegularParts() = default;
  /// This rank's part where the ranks are shared out into parts of `size` ranks that are `stride`
  /// apart; size * stride divides the number of ranks.
  [[nodiscard]] virtual std::unique_ptr<Communicator> part(int size, int stride) const = 0;

 protected:
  RegularParts() = default;
  RegularParts(const RegularParts&) = default;
  RegularParts& operator=(const RegularParts&) = default;
};

}  // namespace shardwise::inline v0_1
