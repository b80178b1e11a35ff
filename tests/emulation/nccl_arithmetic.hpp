#pragma once

#include <nccl.h>

#include <cstddef>
#include <cstdint>
#include <span>

namespace emulation {

/// One rank's values and, for a pre-multiplied sum, its factor in the bits of the element type.
struct Contribution {
  const std::byte* values = nullptr;
  std::uint64_t scalar = 0;
};

/// Reduces `count` elements over the ranks, beginning with rank `first` and going round, as a ring
/// does: the running value is rounded to the element type at every hop. A tree or an in-switch
/// reduction rounds less often, so a test that passes with these numbers is not too lenient.
/// `reduction` is a built-in operation or ncclNumOps for a pre-multiplied sum. `out` may not
/// overlap the contributions.
void reduce(ncclDataType_t type, ncclRedOp_t reduction, std::span<const Contribution> ranks,
            std::size_t first, std::size_t count, std::byte* out);

}  // namespace emulation
