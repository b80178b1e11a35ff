#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "support/device.hpp"
#include "support/sanitized.hpp"
#include "support/toy.hpp"

using namespace shardwise;
using shardwise::test::Device;
using shardwise::test::on_host;
using shardwise::test::on_ranks;
using shardwise::test::on_threads;
using shardwise::test::sanitized;
using shardwise::test::ToyResult;
using shardwise::test::ToyRun;
using shardwise::test::train_toy;

namespace {

// On the host every behaviour runs over these; another device, or a sanitizer, takes a few.
const bool few = !on_host || sanitized;
const std::vector<int> worlds = few ? std::vector<int>{4} : std::vector<int>{1, 2, 3, 4, 6, 7, 8};

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
  if (few) all.resize(2);
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

// What ddp comes to on the host.
template <FloatingElement L, FloatingElement G, FloatingElement Stored>
ToyResult train_by_ddp(int world, const ToyRun& run) {
  return on_threads(world, [&](Communicator& communicator) {
    return train_toy<L, G, Stored, AdamW, HostDevice>(communicator, run);
  })[0];
}

// In groups of a power of two, whatever else is set, every rank ends with the bits of ddp.
template <FloatingElement L, FloatingElement G, FloatingElement Stored>
void check_equal_bits(Accumulation accumulation, std::optional<DType> wire = std::nullopt) {
  for (const int world : worlds) {
    for (const int micro : few ? std::vector<int>{2} : std::vector<int>{1, 3}) {
      ToyRun run{.strategy = Strategy::ddp(), .steps = 3, .micro_batches = micro, .clip = 0.5};
      run.strategy.accumulation = accumulation;
      run.strategy.wire = wire;
      const ToyResult expected = train_by_ddp<L, G, Stored>(world, run);
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

TEST_CASE("groups of a power of two give the bits of ddp in place, and in debug mode") {
  if (!on_host) SKIP("the device's own tests have this");
  for (const int world : few ? std::vector<int>{4} : std::vector<int>{4, 6}) {
    ToyRun run{.strategy = Strategy::ddp(), .steps = 2, .micro_batches = 2, .clip = 0.5};
    run.wide = true;
    const ToyResult expected = train<float, float, float>(world, run)[0];
    for (const Strategy& strategy : variants(2)) {
      for (const bool debug : {false, true}) {
        for (const Residency residency : {Residency::slots, Residency::in_place}) {
          run.strategy = strategy;
          run.debug = debug;
          run.residency = residency;
          INFO(describe(strategy, world, 2) << " debug " << debug << ' ' << name_of(residency));
          for (const ToyResult& result : train<float, float, float>(world, run)) {
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

TEST_CASE("groups of one rank are ddp, and one of all ranks is zero3, to the byte") {
  for (const int world : worlds) {
    for (const bool one : {true, false}) {
      if (world == 1 && !one) continue;
      const auto run = [&](const Strategy& strategy) {
        return train<bf16, bf16, float>(world, {.strategy = strategy, .micro_batches = 2});
      };
      const auto named = run(one ? Strategy::ddp() : Strategy::zero3());
      const auto groups = run(Strategy::hybrid(one ? 1 : world));
      INFO("world " << world << (one ? " one" : " all"));
      for (std::size_t rank = 0; rank < named.size(); ++rank) {
        CHECK(groups[rank].hash == named[rank].hash);
        CHECK(groups[rank].held == named[rank].held);
        CHECK(groups[rank].traffic == named[rank].traffic);
      }
    }
  }
}

TEST_CASE("groups of another size train as closely as another order of sums can be") {
  if (!on_host) SKIP("what differs is a matter of sums, not of devices");
  for (const int world : {3, 6, 7}) {
    ToyRun run{.strategy = Strategy::ddp(), .steps = 4, .micro_batches = 2, .clip = 1e9};
    const ToyResult expected = train<float, float, float, Sgd>(world, run)[0];
    run.strategy = Strategy::hybrid(world == 6 ? 3 : world);
    bool differs = false;
    for (const ToyResult& result : train<float, float, float, Sgd>(world, run)) {
      CHECK(result.held == result.plan.bytes);
      REQUIRE(result.values.size() == expected.values.size());
      differs = differs || result.hash != expected.hash;
      // Sums of six numbers, in one order or another, are apart by at most 5 x 2^-24 of the sum of
      // their absolute values, here below 6; four steps at a rate of 0.001 add that up, and what
      // weights feed back into activations is of the size of the weights' difference.
      float largest = 0;
      for (std::size_t i = 0; i < result.values.size(); ++i) {
        largest = std::max(largest, std::abs(result.values[i] - expected.values[i]));
      }
      CHECK(largest < 1e-6f);
      CHECK(std::abs(result.norms.back() - expected.norms.back()) < 1e-5 * expected.norms.back());
    }
    CHECK(differs == (world == 6));
  }
}
