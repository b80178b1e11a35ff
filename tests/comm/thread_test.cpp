#include <algorithm>
#include <array>
#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <chrono>
#include <cstddef>
#include <memory>
#include <shardwise/comm/collectives.hpp>
#include <shardwise/comm/self.hpp>
#include <shardwise/comm/thread.hpp>
#include <string>
#include <thread>
#include <vector>

#include "../support/ranks.hpp"
#include "failures.hpp"
#include "results.hpp"

namespace shardwise::test {
namespace {

using Catch::Matchers::ContainsSubstring;
using std::chrono::milliseconds;

// All cases in a row, so that buffers of one are gone while a slow peer may still be in the last.
Results results_of(Communicator& comm, const std::vector<CollectiveCase>& cases, bool worker) {
  HostStream stream(worker ? HostStream::Mode::worker : HostStream::Mode::inline_calls);
  Results results;
  for (const CollectiveCase& collective : cases) {
    RankCall call(collective, comm.rank(), comm.size());
    call.issue(comm, stream.ref());
    stream.synchronize();
    results.push_back(call.results());
  }
  return results;
}

TEST_CASE("every collective equals the reference, inline and on a worker's stream") {
  for (const int world : worlds) {
    std::vector<CollectiveCase> cases = all_collective_cases(world);
    if (sanitized) {  // the reference is slow there
      std::size_t index = 0;
      std::erase_if(cases, [&](const CollectiveCase&) { return index++ % 5 != 0; });
    }
    for (const bool worker : {false, true}) {
      const std::vector<Results> all = on_ranks(
          world, [&](Communicator& comm) { return results_of(comm, cases, worker); },
          sanitized ? with_yields() : ThreadOptions());
      for (int rank = 0; rank < world; ++rank) {
        check(all[static_cast<std::size_t>(rank)], cases, rank, world);
      }
    }
  }
}

TEST_CASE(
    "every collective equals the reference where its results go past the caches, or are given") {
  const ThreadOptions streams{.cache_bytes = 1};
  const ThreadOptions gives{.core_cache_bytes = 1};
  const ThreadOptions both{.cache_bytes = 1, .core_cache_bytes = 1};
  for (const int world : worlds) {
    std::size_t kept = 0;
    for (const ThreadOptions& options : {streams, gives, both}) {
      std::vector<CollectiveCase> cases = all_collective_cases(world);
      std::size_t index = kept++;
      std::erase_if(cases,
                    [&](const CollectiveCase&) { return index++ % (sanitized ? 7 : 3) != 0; });
      const std::vector<Results> all = on_ranks(
          world, [&](Communicator& comm) { return results_of(comm, cases, false); }, options);
      for (int rank = 0; rank < world; ++rank) {
        check(all[static_cast<std::size_t>(rank)], cases, rank, world);
      }
    }
  }
}

TEST_CASE("the communicator of one rank gives the same") {
  const std::vector<CollectiveCase> cases = all_collective_cases(1);
  for (const bool worker : {false, true}) {
    SelfCommunicator comm;
    check(results_of(comm, cases, worker), cases, 0, 1);
  }
}

TEST_CASE("calls run in the order in which they were made, whatever their streams") {
  for (const int world : worlds) {
    const auto all = on_ranks(world, call_on_several_streams);
    for (const OrderedCalls& calls : all) CHECK(calls.seen == calls.expected);
  }
}

TEST_CASE("many calls fill a stream's ring and keep their order") {
  const auto all = on_ranks(3, [](Communicator& comm) {
    HostStream stream(HostStream::Mode::worker, 4096);
    std::vector<int> values(500);
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] = comm.rank() == static_cast<int>(i % 3) ? static_cast<int>(i) : -1;
      const BroadcastItem item{&values[i], 1, DType::i32};
      comm.broadcast({&item, 1}, static_cast<int>(i % 3), {.name = "ring"}, stream.ref());
    }
    stream.synchronize();
    return values;
  });
  for (const auto& values : all) {
    for (std::size_t i = 0; i < values.size(); ++i) REQUIRE(values[i] == static_cast<int>(i));
  }
}

TEST_CASE("split makes groups by color, ordered by key") {
  for (const int world : worlds) {
    // Per rank: size, rank, members of its part, members of the part's halves.
    const auto all = on_ranks(world, [&](Communicator& comm) {
      const auto part = comm.split(comm.rank() % 2, -comm.rank(), {.name = "halves"});
      std::vector<int> seen{part->size(), part->rank()};
      std::vector<int> members(static_cast<std::size_t>(part->size()));
      all_gather(*part, std::array<int, 1>{comm.rank()}, members);
      seen.insert(seen.end(), members.begin(), members.end());
      const auto alone = part->split(part->rank(), 0, {.name = "alone"});
      seen.push_back(alone->size() * 100 + alone->rank());
      HostStream stream(HostStream::Mode::worker);
      int total = comm.rank();
      const ReduceItem item{&total, &total, 1, DType::i32, {.output = DType::i32}};
      part->all_reduce({&item, 1}, {.name = "part"}, stream.ref());
      barrier(comm);
      stream.synchronize();
      seen.push_back(total);
      return seen;
    });
    for (int rank = 0; rank < world; ++rank) {
      std::vector<int> members;
      for (int r = world - 1; r >= 0; --r) {
        if (r % 2 == rank % 2) members.push_back(r);
      }
      std::vector<int> expected{static_cast<int>(members.size())};
      expected.push_back(
          static_cast<int>(std::find(members.begin(), members.end(), rank) - members.begin()));
      expected.insert(expected.end(), members.begin(), members.end());
      expected.push_back(100);
      int total = 0;
      for (const int member : members) total += member;
      expected.push_back(total);
      CHECK(all[static_cast<std::size_t>(rank)] == expected);
    }
  }
}

TEST_CASE("a part can go while its ranks continue in the whole") {
  const auto all = on_ranks(4, [](Communicator& comm) {
    for (int round = 0; round < 50; ++round) {
      const auto part = comm.split(comm.rank() / 2, 0, {.name = "round"});
      if (comm.rank() == round % 4) std::this_thread::yield();
      barrier(*part);
    }
    return sum(comm, comm.rank());
  });
  for (const int total : all) CHECK(total == 6);
}

TEST_CASE("a host can bring its own threads") {
  auto ranks = make_thread_group(3);
  std::vector<double> means(3);
  std::vector<std::thread> threads;
  for (std::size_t r = 0; r < ranks.size(); ++r) {
    threads.emplace_back([&, r] { means[r] = mean(*ranks[r], static_cast<double>(r)); });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(means == std::vector<double>{1, 1, 1});
  CHECK(ranks[1]->backend() == "thread");
  CHECK(ranks[1]->accepts(MemoryKind::host));
  CHECK_FALSE(ranks[1]->accepts(MemoryKind::cuda));
  CHECK_THROWS_AS(make_thread_group(0), UsageError);
  CHECK_THROWS_AS(run_ranks(-1, [](Communicator&) {}), UsageError);
}

TEST_CASE("wrong arguments are refused before a call is taken") {
  const auto all = on_ranks(2, [](Communicator& comm) {
    std::vector<float> buffer(8);
    std::vector<float> other(8);
    std::string seen;
    const auto refused = [&](auto call) {
      try {
        call();
        seen += "accepted\n";
      } catch (const UsageError& error) {
        seen += std::string(error.what()) + "\n";
      }
    };
    const CallInfo info{.name = "wrong"};
    const GatherItem null{nullptr, buffer.data(), 4, DType::f32};
    refused([&] { comm.all_gather({&null, 1}, info, {}); });
    const GatherItem overlapping{buffer.data() + 1, buffer.data(), 4, DType::f32};
    refused([&] { comm.all_gather({&overlapping, 1}, info, {}); });
    const ReduceItem narrowing{
        buffer.data(), buffer.data(), 8, DType::f32, {.output = DType::bf16}};
    refused([&] { comm.all_reduce({&narrowing, 1}, info, {}); });
    const ReduceItem accumulating{
        buffer.data(), buffer.data(), 8, DType::f32, {.accumulate = true}};
    refused([&] { comm.all_reduce({&accumulating, 1}, info, {}); });
    const ReduceItem scaled{
        buffer.data(), other.data(), 2, DType::i32, {.output = DType::i32, .scale = 0.5}};
    refused([&] { comm.all_reduce({&scaled, 1}, info, {}); });
    const ExchangeItem in_place{buffer.data(), buffer.data(), 4, DType::f32};
    refused([&] { comm.all_to_all({&in_place, 1}, info, {}); });
    const BroadcastItem fine{buffer.data(), 4, DType::f32};
    refused([&] { comm.broadcast({&fine, 1}, 2, info, {}); });
    refused([&] { comm.broadcast({&fine, 1}, 0, info, {MemoryKind::cuda, nullptr}); });
    const GatherItem huge{buffer.data(), buffer.data(), ~std::size_t{0} / 2, DType::f32};
    refused([&] { comm.all_gather({&huge, 1}, info, {}); });
    barrier(comm);  // the group is as good as before
    return seen;
  });
  for (const std::string& seen : all) {
    CHECK(std::count(seen.begin(), seen.end(), '\n') == 9);
    CHECK_THAT(seen, !ContainsSubstring("accepted") && ContainsSubstring("send buffer is null") &&
                         ContainsSubstring("overlap") && ContainsSubstring("never in place") &&
                         ContainsSubstring("root 2") && ContainsSubstring("0.5") &&
                         ContainsSubstring("CUDA") && ContainsSubstring("does not fit"));
  }
}

TEST_CASE("run_ranks rethrows the first rank's own exception") {
  struct Odd {};
  CHECK_THROWS_AS(run_ranks(3,
                            [](Communicator& comm) {
                              if (comm.rank() == 2) throw Odd();
                              barrier(comm);
                            }),
                  Odd);
  CHECK_THROWS_WITH(run_ranks(4,
                              [](Communicator& comm) {
                                if (comm.rank() == 1) throw std::runtime_error("own");
                                barrier(comm);
                              }),
                    "own");
}

}  // namespace
}  // namespace shardwise::test
