#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <chrono>
#include <cstddef>
#include <shardwise/shardwise.hpp>
#include <thread>

#include "../support/sharing.hpp"
#include "world.hpp"

namespace shardwise::test {
namespace {

// Shared or in slots: the same bits and the same traffic by the formula, and the planned bytes.
template <FloatingElement L>
void check_trains_as_slots(Communicator& communicator, ToyRun run) {
  INFO(run.strategy.name() << " overlap " << run.strategy.overlap << " debug " << run.debug
                           << " rank " << communicator.rank());
  const ToyResult slots = train_toy<L, L, float>(communicator, run);
  run.strategy = shared(run.strategy);
  const ToyResult result = train_toy<L, L, float>(communicator, run);
  check_trained_as(slots, result);
}

TEST_CASE("processes share parameters, with the bits of slots") {
  MpiCommunicator comm = world();
  bool overlap = comm.size() % 2 == 0;
  for (const Strategy& strategy : sharing_strategies()) {
    ToyRun run;
    run.strategy = strategy;
    run.strategy.overlap = overlap = !overlap;
    run.strategy.accumulation = comm.size() == 3 ? Accumulation::hold : Accumulation::reduce;
    run.micro_batches = comm.size() % 2 + 1;
    run.clip = comm.size() == 2 ? 1 : 0;
    check_trains_as_slots<float>(comm, run);
    check_trains_as_slots<bf16>(comm, run);
  }
  ToyRun run;
  run.debug = true;
  check_trains_as_slots<float>(comm, run);
  check_trains_as_slots<bf16>(comm, run);
}

TEST_CASE("processes share an arena, with the bits of slots") {
  MpiCommunicator comm = world();
  for (const bool debug : {false, true}) {
    ToyRun run{.clip = 0.5, .debug = debug};
    const ToyResult slots = train_toy<float>(comm, run);
    run.residency = Residency::in_place;
    run.arena.shared = true;
    const ToyResult result = train_toy<float>(comm, run);
    check_trained_as(slots, result);
  }
}

TEST_CASE("processes share within groups, too") {
  MpiCommunicator comm = world();
  if (comm.size() == 1) return;  // groups of one rank are ddp, whose optimizer state is replicated
  ToyRun run;
  run.strategy = Strategy::hybrid(comm.size() % 2 == 0 ? 2 : comm.size());
  check_trains_as_slots<float>(comm, run);
  check_trains_as_slots<bf16>(comm, run);
}

TEST_CASE("a lease is the storage of all processes, and moves nothing") {
  MpiCommunicator comm = world();
  SharedLayers layers(comm, shared(Strategy::zero3()));
  const auto lease = layers.parameters[0].gather();
  const auto shard = layers.parameters[0].shard();
  CHECK(shard.data() == lease.data() + static_cast<std::size_t>(comm.rank()) * shard.size());
  const Statistics& statistics = layers.context.statistics();
  CHECK(statistics.bytes_moved() == 0);
  CHECK(statistics.traffic.bytes() ==
        static_cast<std::size_t>(comm.size() - 1) * shard.size() * sizeof(float));
  CHECK(layers.context.held().parameters == 2 * shard.size() * sizeof(float));
}

TEST_CASE("what processes share is what was last written, whoever is late") {
  for (const bool overlap : {false, true}) {
    MpiCommunicator comm = world();
    Strategy strategy = shared(Strategy::zero3());
    strategy.overlap = overlap;
    SharedLayers layers(comm, strategy);
    auto &first = layers.parameters[0], &second = layers.parameters[1];
    std::size_t wrong = 0;
    for (int step = 0; step < 40; ++step) {
      if ((step + comm.rank()) % 7 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      if (step % 3 == 1) second.prefetch();
      wrong += SharedLayers::wrong<float>(first, step);
      if (step % 4 == 1) static_cast<void>(layers.context.mean(1));
      wrong += SharedLayers::wrong<float>(second, step);
      if (step % 5 == 1) layers.context.barrier();
      if ((step + comm.rank()) % 5 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      for (auto& parameter : layers.parameters) SharedLayers::write(parameter, step + 1);
      if (step % 4 == 2) static_cast<void>(layers.context.any(false));
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("casts that processes share are those of the last write") {
  MpiCommunicator comm = world();
  Strategy strategy = shared(Strategy::zero3());
  strategy.lease = DType::bf16;
  SharedLayers layers(comm, strategy);
  std::size_t wrong = 0;
  for (int step = 0; step < 20; ++step) {
    for (auto& parameter : layers.parameters) wrong += SharedLayers::wrong<bf16>(parameter, step);
    if ((step + comm.rank()) % 5 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    for (auto& parameter : layers.parameters) SharedLayers::write(parameter, step + 1);
  }
  CHECK(wrong == 0);
}

TEST_CASE("processes that would share memory of different sizes are told so, and go on") {
  MpiCommunicator comm = world();
  if (comm.size() == 1) return;
  CHECK_THROWS_WITH(comm.share_block(comm.rank() == 0 ? 400 : 800, {"weights"}),
                    Catch::Matchers::ContainsSubstring(
                        "'weights': all ranks share one memory, but rank 0 asks for 400 bytes, "
                        "rank 1 for 800: ask for the same size"));
  CHECK(comm.share_block(400, {"weights"}) != nullptr);
}

TEST_CASE("blocks that processes share outlive those who leave, and take no memory until touched") {
  MpiCommunicator comm = world();
  auto large = comm.share_block(std::size_t{1} << 36, {"large"});
  REQUIRE(large != nullptr);
  auto block = comm.share_block(100, {"block"});
  REQUIRE(block != nullptr);
  if (comm.rank() == 0) {
    block->data()[99] = std::byte{7};
    large->data()[std::size_t{1} << 35] = std::byte{9};
  }
  barrier(comm);
  if (comm.rank() == 0) {
    block.reset();
    large.reset();
  }
  barrier(comm);
  if (comm.rank() != 0) {
    CHECK(block->data()[99] == std::byte{7});
    CHECK(large->data()[std::size_t{1} << 35] == std::byte{9});
  }
}

}  // namespace
}  // namespace shardwise::test
