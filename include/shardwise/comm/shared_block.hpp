#pragma once

#include <cstddef>

namespace shardwise::inline v0_1 {

/// A rank's hold on memory that all ranks of a communicator see, each at an address of its own. It
/// goes when no rank holds it any more, so that one that fails takes nothing from those that read.
class SharedBlock {
 public:
  virtual ~SharedBlock() = default;
  SharedBlock(const SharedBlock&) = delete;
  SharedBlock& operator=(const SharedBlock&) = delete;

  [[nodiscard]] virtual std::byte* data() const noexcept = 0;

 protected:
  SharedBlock() = default;
};

}  // namespace shardwise::inline v0_1
