#pragma once

#include "support/toy.hpp"

namespace shardwise::test {

/// What the first of `world` ranks that are threads of the host sees, with leases of fp32 or bf16.
[[nodiscard]] ToyResult toy_on_the_host(int world, const ToyRun& run, DType lease);

}  // namespace shardwise::test
