#include <catch2/catch_test_macros.hpp>
#include <string>
#include <vector>

#include "support/device.hpp"
#include "support/toy.hpp"

using namespace shardwise;
using shardwise::test::Device;
using shardwise::test::largest_world;
using shardwise::test::on_host;
using shardwise::test::on_ranks;
using shardwise::test::on_threads;
using shardwise::test::ToyResult;
using shardwise::test::ToyRun;
using shardwise::test::train_toy;
using shardwise::test::worlds;

namespace {

std::vector<Strategy> all_strategies() {
  std::vector<Strategy> strategies = {Strategy::ddp(), Strategy::zero1(), Strategy::zero2(),
                                      Strategy::zero3(), Strategy::zero3_no_reshard()};
  Strategy variant = Strategy::zero3();
  variant.prefetch = 2;
  variant.overlap = false;
  strategies.push_back(variant);
  variant = Strategy::zero3();
  variant.prefetch = 0;
  variant.persistence_threshold = 70;
  strategies.push_back(variant);
  variant = Strategy::zero3();
  variant.bucket_bytes = 6000;
  strategies.push_back(variant);
  variant = Strategy::zero2();
  variant.bucket_bytes = 1 << 20;
  variant.overlap = false;
  strategies.push_back(variant);
  return strategies;
}

std::string describe(const Strategy& strategy, int world, int micro) {
  return fmt::format("{} prefetch {} overlap {} bucket {} threshold {} world {} micro {}",
                     strategy.name(), strategy.prefetch, strategy.overlap, strategy.bucket_bytes,
                     strategy.persistence_threshold, world, micro);
}

// Another device than the host: what it must come to, to the bit.
template <FloatingElement L, FloatingElement G = L, FloatingElement Stored = float>
std::optional<ToyResult> computed_by_the_host(int world, const ToyRun& run) {
  if constexpr (on_host) return std::nullopt;
  return on_threads(world, [&](Communicator& communicator) {
    return train_toy<L, G, Stored, AdamW, HostDevice>(communicator, run);
  })[0];
}

// Every strategy, on every rank and device, ends with the same bits.
template <FloatingElement L, FloatingElement G, FloatingElement Stored>
void check_equal_bits(Accumulation accumulation, const std::vector<int>& sizes) {
  for (const int world : sizes) {
    for (const int micro : {1, 4}) {
      std::optional<ToyResult> expected;
      for (Strategy strategy : all_strategies()) {
        strategy.accumulation = accumulation;
        ToyRun run{.strategy = strategy, .micro_batches = micro, .clip = 0.5};
        const auto results = on_ranks(world, [&](Communicator& communicator) {
          return train_toy<L, G, Stored, AdamW, Device>(communicator, run);
        });
        if (!expected) expected = computed_by_the_host<L, G, Stored>(world, run);
        if (!expected) expected = results[0];
        INFO(describe(strategy, world, micro));
        for (const auto& result : results) {
          CHECK(result.hash == expected->hash);
          CHECK(result.norms == expected->norms);
          CHECK(result.held == result.plan.bytes);
          CHECK(result.peak == result.plan.peak());
        }
      }
    }
  }
}

}  // namespace

TEST_CASE("strategies give the same bits: fp32 leases") {
  check_equal_bits<float, float, float>(Accumulation::reduce, {1, 2, 3, 4, largest_world});
}
TEST_CASE("strategies give the same bits: fp32 leases, held open") {
  check_equal_bits<float, float, float>(Accumulation::hold, {1, 2, 3, 4, largest_world});
}
TEST_CASE("strategies give the same bits: bf16 leases") {
  check_equal_bits<bf16, bf16, float>(Accumulation::reduce, {1, 2, 3, largest_world});
}
TEST_CASE("strategies give the same bits: bf16 leases and stored gradients, held open") {
  check_equal_bits<bf16, bf16, bf16>(Accumulation::hold, {2, 4});
}
TEST_CASE("strategies give the same bits: f16 leases, fp32 gradient leases") {
  check_equal_bits<f16, float, float>(Accumulation::reduce, {2, 3});
}

TEST_CASE("a wire of bf16 gives the same bits in every strategy, and others than fp32") {
  for (const int world : {2, 3}) {
    std::optional<ToyResult> expected;
    for (Strategy strategy : all_strategies()) {
      strategy.wire = DType::bf16;
      const ToyRun run{.strategy = strategy, .micro_batches = 2};
      const auto results = on_ranks(world, [&](Communicator& communicator) {
        return train_toy<float, float, float, AdamW, Device>(communicator, run);
      });
      if (!expected) expected = computed_by_the_host<float>(world, run);
      if (!expected) expected = results[0];
      INFO(describe(strategy, world, 2));
      for (const auto& result : results) CHECK(result.hash == expected->hash);
    }
    const auto plain = on_ranks(world, [&](Communicator& communicator) {
      return train_toy<float, float, float, AdamW, Device>(communicator, {.micro_batches = 2});
    });
    CHECK(plain[0].hash != expected->hash);
  }
}
