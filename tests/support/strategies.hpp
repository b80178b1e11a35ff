#pragma once

#include <catch2/catch_test_macros.hpp>
#include <cstddef>
#include <shardwise/strategy.hpp>
#include <vector>

namespace shardwise::test {

/// zero3, and a strategy for each member in which that alone differs from it. A member that is
/// added belongs here.
inline std::vector<Strategy> each_with_one_change() {
  std::vector<Strategy> all(18, Strategy::zero3());
  std::size_t i = 1;
  all[i++].parameters = Placement::replicated;
  all[i++].gradients = Placement::replicated;
  all[i++].optimizer_state = Placement::replicated;
  all[i++].shard_group = 2;
  all[i++].reshard_group = 2;
  all[i++].reshard_after_forward = false;
  all[i++].persistence_threshold = 1;
  all[i++].prefetch = 2;
  all[i++].bucket_bytes = 1;
  all[i++].max_live_bytes = 1;
  all[i++].keep_resident_bytes = 1;
  all[i++].residency = Residency::shared;
  all[i++].lease = DType::f64;
  all[i++].gradient_lease = DType::f64;
  all[i++].wire = DType::f64;
  all[i++].overlap = false;
  all[i++].accumulation = Accumulation::hold;
  REQUIRE(i == all.size());
  return all;
}

}  // namespace shardwise::test
