#include <algorithm>
#include <array>
#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <memory>
#include <shardwise/comm/collectives.hpp>
#include <shardwise/device/host_stream.hpp>
#include <shardwise/shardwise.hpp>
#include <string>
#include <thread>
#include <vector>

#include "../comm/piece_cases.hpp"
#include "../comm/results.hpp"
#include "world.hpp"

namespace shardwise::test {
namespace {

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

void check_cases(Communicator& comm, std::size_t every, bool worker) {
  std::vector<CollectiveCase> cases = all_collective_cases(comm.size());
  std::size_t index = 0;
  std::erase_if(cases, [&](const CollectiveCase&) { return index++ % every != 0; });
  check(results_of(comm, cases, worker), cases, comm.rank(), comm.size());
}

TEST_CASE("every collective equals the reference, inline and on a worker's stream") {
  MpiCommunicator comm = world();
  CHECK(comm.backend() == "mpi");
  CHECK(comm.accepts(MemoryKind::host));
  CHECK_FALSE(comm.accepts(MemoryKind::cuda));
  const std::size_t every = comm.size() > 4 ? 5 : 1;
  for (const bool worker : {false, true}) check_cases(comm, every, worker);
}

TEST_CASE("messages and sums in many pieces give the same") {
  for (const std::size_t largest : {std::size_t{7}, std::size_t{300}}) {
    MpiCommunicator comm = world({.largest_message = largest});
    check_cases(comm, 13, false);
  }
  MpiCommunicator comm = world({.largest_message = 100, .chunk_bytes = 256});
  check_cases(comm, 7, true);
}

TEST_CASE("the host's own communicator is worked on as it is, or duplicated") {
  MPI_Comm mine = MPI_COMM_NULL;
  MPI_Comm_dup(MPI_COMM_WORLD, &mine);
  MPI_Comm_set_errhandler(mine, MPI_ERRORS_ARE_FATAL);
  for (const bool duplicate : {false, true}) {
    MpiCommunicator comm(session(), mine, {.duplicate = duplicate});
    check_cases(comm, 11, false);
  }
  MPI_Errhandler handler = MPI_ERRHANDLER_NULL;
  MPI_Comm_get_errhandler(mine, &handler);
  CHECK(handler == MPI_ERRORS_ARE_FATAL);  // the host's stays what it was
  MPI_Comm_free(&mine);
}

TEST_CASE("pieces give the bits of flat buffers, and zeros between pieces") {
  MpiCommunicator comm = world({.chunk_bytes = 512});
  for (unsigned seed = 0; seed < 30; ++seed) {
    CHECK(compare_pieces(comm, seed, 1 + seed * 7 % 61) == "");
  }
}

/// Sums of `count` numbers in both orders, by chunks and in place; what differs from the reference.
template <class T>
double worst_difference(MpiCommunicator& comm, std::size_t count, bool scatter) {
  const auto ranks = static_cast<std::size_t>(comm.size());
  const auto value = [](std::size_t rank, std::size_t i) {
    return static_cast<double>((rank * 31 + i * 17) % 1001) / 7;
  };
  std::vector<T> send(scatter ? count * ranks : count);
  for (std::size_t i = 0; i < send.size(); ++i) {
    send[i] = static_cast<T>(value(static_cast<std::size_t>(comm.rank()), i));
  }
  const std::size_t first = scatter ? static_cast<std::size_t>(comm.rank()) * count : 0;
  double worst = 0;
  for (const bool accumulate : {false, true}) {
    std::vector<T> recv(count, T(3));
    const ReduceItem item{send.data(),
                          recv.data(),
                          count,
                          dtype_of<T>,
                          {.output = dtype_of<T>, .scale = 0.5, .accumulate = accumulate}};
    if (scatter) {
      comm.reduce_scatter({&item, 1}, {"sum"}, {});
    } else {
      comm.all_reduce({&item, 1}, {"sum"}, {});
    }
    for (std::size_t i = 0; i < count; ++i) {
      double expected = 0;
      for (std::size_t r = 0; r < ranks; ++r)
        expected += static_cast<double>(static_cast<T>(value(r, first + i)));
      expected = expected * 0.5 + (accumulate ? 3 : 0);
      worst = std::max(worst, std::abs(static_cast<double>(recv[i]) - expected));
    }
  }
  return worst;
}

TEST_CASE("large sums, and MPI's own order") {
  for (const MpiOrder order : {MpiOrder::canonical, MpiOrder::fast}) {
    MpiCommunicator comm = world({.order = order, .chunk_bytes = 16384});
    for (const bool scatter : {false, true}) {
      for (const std::size_t count : {std::size_t{1}, std::size_t{5000}, std::size_t{100001}}) {
        CHECK(worst_difference<float>(comm, count, scatter) < 1e-2);
        CHECK(worst_difference<double>(comm, count, scatter) < 1e-9);
      }
    }
  }
  MpiCommunicator comm = world({.order = MpiOrder::fast});
  std::vector<CollectiveCase> cases = all_collective_cases(comm.size());
  std::erase_if(cases, [](const CollectiveCase& one) {  // sums of integers are exact in any order
    return one.items.size() != 1 || is_floating(one.items[0].dtype);
  });
  check(results_of(comm, cases, false), cases, comm.rank(), comm.size());
}

TEST_CASE("calls run in the order in which they were made, whatever their streams") {
  MpiCommunicator comm = world();
  const OrderedCalls calls = call_on_several_streams(comm);
  CHECK(calls.seen == calls.expected);
}

TEST_CASE("split makes groups by color, ordered by key") {
  MpiCommunicator comm = world();
  const auto part = comm.split(comm.rank() % 2 - 5, -comm.rank(), {.name = "halves"});
  std::vector<int> expected;
  for (int r = comm.size() - 1; r >= 0; --r) {
    if (r % 2 == comm.rank() % 2) expected.push_back(r);
  }
  REQUIRE(part->size() == static_cast<int>(expected.size()));
  CHECK(expected[static_cast<std::size_t>(part->rank())] == comm.rank());
  std::vector<int> members(expected.size());
  all_gather(*part, std::array<int, 1>{comm.rank()}, members);
  CHECK(members == expected);
  const auto alone = part->split(part->rank(), 0, {.name = "alone"});
  CHECK(alone->size() == 1);
  check_cases(*alone, 50, false);
  check_cases(*part, 50, true);
  // Both at once, each on a stream of its own.
  HostStream stream(HostStream::Mode::worker);
  std::vector<float> whole(1000, 1.0f);
  std::vector<float> half(1000, 1.0f);
  for (int round = 0; round < 50; ++round) {
    std::fill(whole.begin(), whole.end(), 1.0f);
    std::fill(half.begin(), half.end(), 1.0f);
    const ReduceItem item{half.data(), half.data(), half.size(), DType::f32, {}};
    part->all_reduce({&item, 1}, {.name = "half"}, stream.ref());
    all_reduce(comm, whole);
    stream.synchronize();
    REQUIRE(whole[999] == static_cast<float>(comm.size()));
    REQUIRE(half[999] == static_cast<float>(part->size()));
  }
}

/// What `make(memory)` gives with buffers in an arena on each rank whose bit is set in `where`, in
/// memory of its own on the others.
template <class Make>
auto with_buffers(MpiCommunicator& comm, MpiArena& arena, unsigned where, std::size_t bytes,
                  const Make& make) {
  const bool inside = (where >> comm.rank() & 1u) != 0;
  std::vector<std::byte> own(bytes);
  void* const memory = inside ? arena.allocate(bytes) : own.data();
  auto result = make(static_cast<std::byte*>(memory));
  if (inside) arena.deallocate(memory, bytes);
  return result;
}

TEST_CASE("buffers in memory that ranks share give the same bits, wherever they are") {
  MpiCommunicator comm = world();
  MpiArena arena(comm, std::size_t{8} << 20);
  CHECK(arena.is_shared());
  const auto ranks = static_cast<std::size_t>(comm.size());
  const auto rank = static_cast<std::size_t>(comm.rank());
  for (const unsigned where : {~0u, 0u, 1u, 2u}) {
    for (const std::size_t count : {std::size_t{1}, std::size_t{700}, std::size_t{20001}}) {
      for (const DType dtype : {DType::f32, DType::bf16}) {
        const std::size_t part = count * size_of(dtype);
        const Bytes mine = contribution(dtype, rank, 3, count);
        const Bytes gathered = with_buffers(comm, arena, where, part * ranks, [&](std::byte* to) {
          const GatherItem item{mine.data(), to, count, dtype};
          comm.all_gather({&item, 1}, {"gather"}, {});
          return Bytes(to, to + part * ranks);
        });
        Bytes expected;
        for (std::size_t r = 0; r < ranks; ++r) {
          const Bytes theirs = contribution(dtype, r, 3, count);
          expected.insert(expected.end(), theirs.begin(), theirs.end());
        }
        CHECK(gathered == expected);

        for (const bool scatter : {true, false}) {
          const std::size_t elements = scatter ? count * ranks : count;
          std::vector<Bytes> inputs;
          std::vector<double> weights;
          for (std::size_t r = 0; r < ranks; ++r) {
            inputs.push_back(contribution(dtype, r, 5, elements));
            weights.push_back(0.5 + 0.25 * static_cast<double>(r));
          }
          const Bytes before = contribution(DType::f32, scatter ? rank : 99, 7, count);
          const ReduceSpec spec{.output = DType::f32,
                                .scale = 0.5,
                                .weight = weights[rank],
                                .accumulate = true,
                                .weighted = true};
          Bytes result = before;
          with_buffers(comm, arena, where, elements * size_of(dtype), [&](std::byte* from) {
            std::copy(inputs[rank].begin(), inputs[rank].end(), from);
            const ReduceItem item{from, result.data(), count, dtype, spec};
            if (scatter) {
              comm.reduce_scatter({&item, 1}, {"scatter"}, {});
            } else {
              comm.all_reduce({&item, 1}, {"reduce"}, {});
            }
            return 0;
          });
          CHECK(result ==
                reduced(inputs, weights, dtype, scatter ? rank * count : 0, count, before, spec));
        }
      }
    }
  }
}

TEST_CASE("training with slots in memory that ranks share gives the same bits") {
  MpiCommunicator comm = world();
  const auto train = [&](MpiArena* arena, const Strategy& strategy) {
    Context<> context(comm, strategy, {.slot_memory = arena});
    ShardedParameter<float> parameter(context, {{"weight", {301, 17}}, {"bias", {17}}});
    ShardedGradient<float> gradient(parameter);
    ShardedOptimizerState<AdamW> state(parameter, {.learning_rate = 0.1});
    parameter.initialize(
        [](const auto&, std::size_t i) { return static_cast<float>(i % 13) / 13; });
    for (int step = 0; step < 4; ++step) {
      auto weights = parameter.gather();
      auto sums = gradient.lease();
      for (std::size_t i = 0; i < 301 * 17; ++i) {
        sums["weight"][i] += weights["weight"][i] * static_cast<float>(comm.rank() + 1);
      }
      weights.release();
      std::move(sums).reduce();
      state.step(parameter, gradient);
    }
    std::vector<float> values;
    parameter.read([&](const auto&, std::size_t, auto part) {
      values.insert(values.end(), part.begin(), part.end());
    });
    return values;
  };
  MpiArena arena(comm, std::size_t{1} << 20);
  for (const Strategy& strategy : {Strategy::ddp(), Strategy::zero2(), Strategy::zero3()}) {
    CHECK(train(&arena, strategy) == train(nullptr, strategy));
  }
}

TEST_CASE("ranks meet and exchange texts without a collective") {
  MpiCommunicator comm = world();
  const auto meeting = std::make_shared<MpiRendezvous>(comm);
  CHECK(meeting->rank() == comm.rank());
  CHECK(meeting->size() == comm.size());
  CHECK_FALSE(meeting->failure());
  CHECK_FALSE(meeting->try_get("nobody.put.this"));
  const std::string id(200, static_cast<char>('a' + comm.rank()));
  if (comm.rank() == comm.size() - 1) meeting->put("id", id);
  barrier(comm);  // collectives and texts do not meet
  CHECK(meeting->get("id", std::chrono::seconds(30)) ==
        std::string(200, static_cast<char>('a' + comm.size() - 1)));
  CHECK_THROWS_AS(meeting->put("id", "again"), UsageError);
  const auto names =
      meeting->exchange("names", std::to_string(comm.rank()), std::chrono::seconds(30));
  for (int r = 0; r < comm.size(); ++r)
    CHECK(names[static_cast<std::size_t>(r)] == std::to_string(r));
  barrier(comm);
}

TEST_CASE("scalars, and arguments that are refused before a call is taken") {
  MpiCommunicator comm = world();
  const int n = comm.size();
  CHECK(sum(comm, comm.rank()) == n * (n - 1) / 2);
  CHECK(max(comm, comm.rank()) == n - 1);
  CHECK(any(comm, comm.rank() == n - 1));
  CHECK(all(comm, true));
  CHECK(weighted_mean(comm, 2.0, comm.rank() + 1.0) == 2.0);
  std::vector<float> buffer(8);
  const GatherItem null{nullptr, buffer.data(), 4, DType::f32};
  CHECK_THROWS_AS(comm.all_gather({&null, 1}, {"wrong"}, {}), UsageError);
  CHECK_THROWS_AS(comm.barrier({"wrong"}, {MemoryKind::cuda, nullptr}), UsageError);
  CHECK_THROWS_AS(world({.largest_message = 0}), UsageError);
  barrier(comm);  // the group is as good as before
}

}  // namespace
}  // namespace shardwise::test
