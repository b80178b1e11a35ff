// What a host hands over, and when: its communicators, while other threads are at work.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <chrono>
#include <cstddef>
#include <memory>
#include <shardwise/comm/collectives.hpp>
#include <shardwise/comm/mpi_landing.hpp>
#include <shardwise/comm/simulated.hpp>
#include <shardwise/device/host_stream.hpp>
#include <string>
#include <vector>

#include "one_at_a_time.hpp"
#include "world.hpp"

namespace shardwise::test {
namespace {

TEST_CASE("MPI is in one call at a time, whatever is made while a worker communicates") {
  MpiCommunicator comm = world();
  HostStream stream(HostStream::Mode::worker);
  std::vector<float> buffer(100'000, 1.0f);
  const ReduceItem item{buffer.data(), buffer.data(), buffer.size(), DType::f32, {.scale = 0.5}};
  for (int round = 0; round < 10; ++round) {
    for (int call = 0; call < 20; ++call) comm.all_reduce({&item, 1}, {"busy"}, stream.ref());
    MpiCommunicator another = world();
    barrier(another);
    const auto part = another.split(another.rank() % 2, 0, {.name = "part"});
    barrier(*part);
    const auto meeting = std::make_shared<MpiRendezvous>(another);
    const std::vector<std::string> names =
        meeting->exchange("names", "one", std::chrono::seconds(30));
    CHECK(names.size() == static_cast<std::size_t>(comm.size()));
  }
  stream.synchronize();
  CHECK(calls_at_once() == 0);
}

TEST_CASE("a host's communicator that is no group of ranks is refused by name") {
  using Catch::Matchers::ContainsSubstring;
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  for (const bool duplicate : {true, false}) {
    const MpiOptions options{.duplicate = duplicate};
    CHECK_THROWS_WITH(MpiCommunicator(session(), MPI_COMM_NULL, options),
                      ContainsSubstring("MPI_COMM_NULL"));
  }
  MpiCommunicator comm = world();
  if (comm.size() < 2) return;
  MPI_Comm half = MPI_COMM_NULL;
  MPI_Comm both = MPI_COMM_NULL;
  MPI_Comm_split(MPI_COMM_WORLD, rank % 2, rank, &half);
  MPI_Intercomm_create(half, 0, MPI_COMM_WORLD, 1 - rank % 2, 1, &both);
  for (const bool duplicate : {true, false}) {
    CHECK_THROWS_WITH(MpiCommunicator(session(), both, {.duplicate = duplicate}),
                      ContainsSubstring("intercommunicator"));
  }
  MPI_Comm_free(&both);
  MPI_Comm_free(&half);
  barrier(comm);  // the others are as good as before
}

TEST_CASE("a sum that MPI would count beyond an int is ours") {
  const MpiOptions fast{.order = MpiOrder::fast};
  constexpr std::size_t most = std::size_t{1} << 30;
  const auto by_mpi = [&](std::size_t count, bool scatter, std::size_t ranks) {
    const ReduceItem item{nullptr, nullptr, count, DType::f32, {}};
    return detail::mpi::by_mpi(item, scatter, ranks, fast);
  };
  CHECK(by_mpi(most, false, 8));
  CHECK_FALSE(by_mpi(most + 1, false, 8));
  CHECK(by_mpi(most / 8, true, 8));
  CHECK_FALSE(by_mpi(most / 8 + 1, true, 8));
}

TEST_CASE("a plan made without MPI knows what its sums need of memory") {
  for (const MpiOrder order : {MpiOrder::canonical, MpiOrder::fast}) {
    for (const std::size_t chunk_bytes : {std::size_t{0}, std::size_t{4096}}) {
      const MpiOptions options{.order = order, .chunk_bytes = chunk_bytes};
      const MpiCommunicator real = world(options);
      SimulatedClock clock{Processor{}};
      for (const int ranks : {1, 2, 3, 7, 1000}) {
        SimulatedCommunicator planned(clock, ranks, Topology{}, {.mpi = options});
        for (const std::size_t count : {0UL, 1UL, 1000UL, 3000000UL}) {
          for (const DType dtype : {DType::f32, DType::bf16, DType::i8}) {
            const ReduceItem item{nullptr, nullptr, count, dtype, {}};
            for (const bool scatter : {false, true}) {
              CHECK(planned.landing_bytes(item, scatter) ==
                    real.landing_bytes_among(ranks, item, scatter));
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace shardwise::test
