#pragma once

#include <concepts>
#include <cstddef>
#include <exception>
#include <memory>
#include <numeric>
#include <thread>
#include <utility>
#include <vector>

#include "communicator.hpp"
#include "rank_failures.hpp"
#include "thread_communicator.hpp"
#include "thread_family.hpp"
#include "thread_group.hpp"

namespace shardwise::inline v0_1 {

namespace detail {

[[nodiscard]] inline std::shared_ptr<ThreadGroup> make_group(int size,
                                                             const ThreadOptions& options) {
  if (size < 1) raise("a group needs at least one rank, found {}", size);
  std::vector<int> ranks(static_cast<std::size_t>(size));
  std::iota(ranks.begin(), ranks.end(), 0);
  return std::make_shared<ThreadGroup>(std::make_shared<ThreadFamily>(), std::move(ranks), options);
}

}  // namespace detail

/// The ranks of a new group, for a host that has threads of its own: give one to each thread.
[[nodiscard]] inline std::vector<std::unique_ptr<Communicator>> make_thread_group(
    int size, const ThreadOptions& options = {}) {
  const std::shared_ptr<ThreadGroup> group = detail::make_group(size, options);
  std::vector<std::unique_ptr<Communicator>> ranks;
  for (std::size_t r = 0; r < group->size(); ++r) {
    ranks.push_back(std::make_unique<ThreadCommunicator>(group, r));
  }
  return ranks;
}

/// Runs f(communicator) on `size` threads, one a rank, and waits for all of them. A rank that
/// throws aborts the group: its peers get PeerFailed, and run_ranks rethrows the first rank's own
/// exception. A rank that returns has left the group.
template <class F>
requires std::invocable<F&, Communicator&>
void run_ranks(int size, F&& f, const ThreadOptions& options = {}) {
  static_assert(std::same_as<std::invoke_result_t<F&, Communicator&>, void>,
                "run_ranks: the function must return void; hand results out through captures");
  const std::shared_ptr<ThreadGroup> group = detail::make_group(size, options);
  detail::RankFailures failures(size);
  std::vector<std::unique_ptr<ThreadCommunicator>> ranks;
  for (std::size_t r = 0; r < group->size(); ++r) {
    ranks.push_back(std::make_unique<ThreadCommunicator>(group, r));
  }
  std::vector<std::thread> threads;
  const auto join = [&]() noexcept {
    for (std::thread& thread : threads) thread.join();
  };
  try {
    threads.reserve(ranks.size());
    for (auto& rank : ranks) {
      threads.emplace_back([&f, &failures, own = rank.get(), owner = &rank] {
        try {
          f(static_cast<Communicator&>(*own));
        } catch (...) {
          failures.add(own->rank(), [&](const char* message) { own->abort(message); });
        }
        owner->reset();
      });
    }
  } catch (const std::exception& error) {
    for (std::size_t r = threads.size(); r < ranks.size(); ++r) ranks[r]->abort(error.what());
    join();
    throw;
  }
  join();
  failures.rethrow(group->family()->first().rank);
}

}  // namespace shardwise::inline v0_1
