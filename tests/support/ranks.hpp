#pragma once

#include <cstddef>
#include <shardwise/comm/thread.hpp>
#include <utility>
#include <vector>

namespace shardwise::test {

/// The worlds over which every behaviour is tested.
inline constexpr int worlds[] = {1, 2, 3, 4, 7};

/// Runs f(communicator) on `world` rank threads and returns what each gave, by rank: assertions
/// belong to the main thread.
template <class F>
auto on_ranks(int world, F&& f, const ThreadOptions& options = {}) {
  using Result = decltype(f(std::declval<Communicator&>()));
  std::vector<Result> results(static_cast<std::size_t>(world));
  run_ranks(
      world,
      [&](Communicator& communicator) {
        results[static_cast<std::size_t>(communicator.rank())] = f(communicator);
      },
      options);
  return results;
}

}  // namespace shardwise::test
