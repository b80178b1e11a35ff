#pragma once

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cstddef>
#include <vector>

#include "../../examples/cuda_gpt/trainer.hpp"

namespace shardwise::test {

/// The worlds of up to four ranks for which this machine has devices; skips the test where it has
/// none.
inline std::vector<std::size_t> gpt_worlds() {
  const auto devices = static_cast<std::size_t>(cuda_gpt::count_devices());
  if (devices == 0) SKIP("no CUDA device");
  std::vector<std::size_t> result;
  for (std::size_t world = 1; world <= std::min<std::size_t>(4, devices); ++world) {
    result.push_back(world);
  }
  return result;
}

}  // namespace shardwise::test
