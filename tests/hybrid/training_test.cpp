#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "support/device.hpp"
#include "support/toy.hpp"

using namespace shardwise;
using shardwise::test::Device;
using shardwise::test::on_host;
using shardwise::test::on_ranks;
using shardwise::test::ToyResult;
using shardwise::test::ToyRun;
using shardwise::test::train_toy;

namespace {

// On the host every behaviour runs over these; another device takes a few.
const std::vector<int> worlds =
    on_host ? std::vector<int>{1, 2, 3, 4, 6, 7, 8} : std::vector<int>{4, 6};

std::vector<int> divisors(int world) {
  std::vector<int> result;
  for (int size = 1; size <= world; ++size) {
    if (world % size == 0) result.push_back(size);
  }
  return result;
}

bool is_power_of_two(int size) { return (size & (size - 1)) == 0; }

/// Everything else that may differ between strategies, in groups of `size`.
std::vector<Strategy> variants(int size) {
  std::vector<Strategy> all = {Strategy::hybrid(size), Strategy::zero1(), Strategy::zero2(),
                               Strategy::zero3_no_reshard()};
  Strategy variant = Strategy::zero3();
  variant.overlap = false;
  variant.prefetch = 2;
  all.push_back(variant);
  variant = Strategy::zero3();
  variant.bucket_bytes = 6000;
  variant.persistence_threshold = 70;
  all.push_back(variant);
  for (Strategy& strategy : all) strategy.shard_group = size;
  return all;
}

std::string describe(const Strategy& strategy, int world, int micro) {
  return fmt::format("{} overlap {} bucket {} threshold {} hold {} world {} micro {}",
                     strategy.name(), strategy.overlap, strategy.bucket_bytes,
                     strategy.persistence_threshold, strategy.accumulation == Accumulation::hold,
                     world, micro);
}

template <FloatingElement L, FloatingElement G, FloatingElement Stored, class Optimizer = AdamW>
std::vector<ToyResult> train(int world, const ToyRun& run) {
  return on_ranks(world, [&](Communicator& communicator) {
    return train_toy<L, G, Stored, Optimizer, Device>(communicator, run);
  });
}

// In groups of a power of two, whatever else is set, every rank ends with the bits of ddp.
template <FloatingElement L, FloatingElement G, FloatingElement Stored>
void check_equal_bits(Accumulation accumulation, std::optional<DType> wire = std::nullopt) {
  for (const int world : worlds) {
    for (const int micro : {1, 3}) {
      ToyRun run{.strategy = Strategy::ddp(), .steps = 3, .micro_batches = micro, .clip = 0.5};
      run.strategy.accumulation = accumulation;
      run.strategy.wire = wire;
      const ToyResult expected = train<L, G, Stored>(world, run)[0];
      for (const int size : divisors(world)) {
        if (!is_power_of_two(size)) continue;
        for (Strategy strategy : variants(size)) {
          strategy.accumulation = accumulation;
          strategy.wire = wire;
          run.strategy = strategy;
          INFO(describe(strategy, world, micro));
          for (const ToyResult& result : train<L, G, Stored>(world, run)) {
            CHECK(result.hash == expected.hash);
            CHECK(result.norms == expected.norms);
            CHECK(result.held == result.plan.bytes);
            CHECK(result.peak == result.plan.peak());
          }
        }
      }
    }
  }
}

}  // namespace

TEST_CASE("groups of a power of two give the bits of ddp: fp32") {
  check_equal_bits<float, float, float>(Accumulation::reduce);
}
TEST_CASE("groups of a power of two give the bits of ddp: fp32, held open") {
  check_equal_bits<float, float, float>(Accumulation::hold);
}
TEST_CASE("groups of a power of two give the bits of ddp: bf16 leases") {
  check_equal_bits<bf16, bf16, float>(Accumulation::reduce);
}
TEST_CASE("groups of a power of two give the bits of ddp: bf16 leases and stored gradients") {
  check_equal_bits<bf16, bf16, bf16>(Accumulation::reduce);
  check_equal_bits<bf16, bf16, bf16>(Accumulation::hold);
}
TEST_CASE("groups of a power of two give the bits of ddp: bf16 leases, fp32 stored, held open") {
  check_equal_bits<bf16, bf16, float>(Accumulation::hold);
}
TEST_CASE("groups of a power of two give the bits of ddp: fp32 leases, a wire of bf16") {
  check_equal_bits<float, float, float>(Accumulation::reduce, DType::bf16);
}
