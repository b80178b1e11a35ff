#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <shardwise/comm/collectives.hpp>
#include <shardwise/shardwise.hpp>
#include <span>
#include <vector>

namespace shardwise::test {

/// Microseconds of a gather of 64 MiB of fp32 with residency shared, the slowest rank's median. A
/// write came before each: `met`, and then the ranks met.
inline double shared_gather_time(Communicator& communicator, bool met) {
  Strategy strategy = Strategy::zero3();
  strategy.residency = Residency::shared;
  Context<> context(communicator, strategy);
  ShardedParameter<float> parameter(context, {{"weights", {std::size_t{16} << 20}}});
  std::vector<double> times;
  for (int round = 0; round < 201; ++round) {
    context.barrier();
    parameter.update([&](std::span<float> shard) { shard[0] = static_cast<float>(round); });
    if (met) context.barrier();
    const auto begin = std::chrono::steady_clock::now();
    const auto lease = parameter.gather();
    const auto end = std::chrono::steady_clock::now();
    if (lease.data()[0] != static_cast<float>(round)) throw Error("stale values");
    times.push_back(std::chrono::duration<double, std::micro>(end - begin).count());
  }
  const auto middle = times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2);
  std::nth_element(times.begin(), middle, times.end());
  return max(communicator, *middle);
}

}  // namespace shardwise::test
