#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstddef>
#include <string>
#include <vector>

#include "../../examples/train_gpt/options.hpp"
#include "../../examples/train_gpt/report.hpp"
#include "../../examples/train_gpt/train.hpp"

using train_gpt::Accumulate;
using train_gpt::Options;
using train_gpt::Report;

namespace {

const char* const strategies[] = {"ddp", "zero1", "zero2", "zero3", "zero3-no-reshard"};
const std::size_t worlds[] = {1, 2, 3, 4, 7};

Options small(std::size_t ranks) {
  Options options;
  options.ranks = ranks;
  options.layers = 2;
  options.width = 12;
  options.heads = 2;
  options.sequence = 6;
  options.batch = 4 * ranks;
  options.steps = 3;
  options.clip = 0.9;
  options.quiet = true;
  return options;
}

bool same(const train_gpt::Bytes& a, const train_gpt::Bytes& b) {
  return a.parameters == b.parameters && a.gradients == b.gradients &&
         a.optimizer_state == b.optimizer_state && a.slots == b.slots && a.peak == b.peak;
}

// All strategies, twice in a row, and at world 1 the plain trainer, end with the same bits.
void check_lease(const std::string& lease, const std::string& gradient) {
  for (const std::size_t world : worlds) {
    for (const std::size_t micro : {1u, 4u}) {
      for (const Accumulate accumulate : {Accumulate::reduce, Accumulate::hold}) {
        Options options = small(world);
        options.lease = lease;
        options.gradient = gradient;
        options.micro_batches = micro;
        options.accumulate = accumulate;
        std::string expected;
        if (world == 1) expected = train_gpt::plain::train(options).parameters_hash;
        for (const char* strategy : strategies) {
          options.strategy = strategy;
          const Report report = train_gpt::sharded::train(options);
          if (expected.empty()) {
            expected = report.parameters_hash;
            CHECK(train_gpt::sharded::train(options).parameters_hash == expected);
          }
          INFO(strategy << ", world " << world << ", " << micro << " micro-batches, "
                        << (accumulate == Accumulate::hold ? "hold" : "reduce"));
          CHECK(report.parameters_hash == expected);
          CHECK(same(report.bytes_per_rank, report.planned_bytes_per_rank));
          CHECK(report.scalars_per_step == (report.strategy == "ddp" ? 1u : 2u));
        }
      }
    }
  }
}

}  // namespace

TEST_CASE("every strategy gives the same parameters_hash, at world 1 that of the plain trainer") {
  SECTION("fp32 leases") { check_lease("fp32", "fp32"); }
  SECTION("bf16 leases") { check_lease("bf16", "fp32"); }
  SECTION("bf16 leases and stored gradients") { check_lease("bf16", "bf16"); }
  SECTION("f16 leases") { check_lease("f16", "fp32"); }
}

TEST_CASE("groups of a power of two give the same parameters_hash, others say that they do not") {
  for (const std::size_t world : {4u, 6u}) {
    for (const char* lease : {"fp32", "bf16"}) {
      Options options = small(world);
      options.batch = 2 * world;
      options.lease = lease;
      options.clip = 0.5;
      options.strategy = "ddp";
      const std::string expected = train_gpt::sharded::train(options).parameters_hash;
      options.strategy = "hybrid";
      for (std::size_t group = 1; group <= world; ++group) {
        if (world % group != 0) continue;
        options.shard_group = group;
        const Report report = train_gpt::sharded::train(options);
        INFO("world " << world << " in groups of " << group << ", " << lease);
        CHECK(report.same_bits == (group != 3));
        // A few bf16 numbers have the same sum in every order, mostly.
        if (report.same_bits || options.lease == "fp32") {
          CHECK((report.parameters_hash == expected) == report.same_bits);
        }
        CHECK(same(report.bytes_per_rank, report.planned_bytes_per_rank));
        const bool said = summary(report).find("not the bits") != std::string::npos;
        CHECK(said != report.same_bits);
      }
    }
  }
}

TEST_CASE("shared parameters give the same parameters_hash and the same traffic, and move less") {
  for (const std::size_t world : worlds) {
    for (const char* lease : {"fp32", "bf16"}) {
      for (const char* strategy : {"zero1", "zero2", "zero3"}) {
        Options options = small(world);
        options.lease = lease;
        options.strategy = strategy;
        const Report slots = train_gpt::sharded::train(options);
        options.residency = "shared";
        const Report report = train_gpt::sharded::train(options);
        INFO(strategy << ", world " << world << ", " << lease);
        CHECK(report.parameters_hash == slots.parameters_hash);
        CHECK(same(report.bytes_per_rank, report.planned_bytes_per_rank));
        const std::size_t gathered = report.traffic_per_step.all_gather.bytes;
        CHECK(gathered == slots.traffic_per_step.all_gather.bytes);
        CHECK(report.traffic_per_step.all_gather.calls == slots.traffic_per_step.all_gather.calls);
        CHECK(slots.bytes_moved_per_step >= gathered);
        // Of storage type: nothing but gradients. Else each rank casts its shard alone.
        const std::size_t cast = options.lease == "fp32" || world == 1 ? 0 : gathered / (world - 1);
        if (world > 1)
          CHECK(report.bytes_moved_per_step == slots.bytes_moved_per_step - gathered + cast);
        CHECK(summary(report).find("(shared)") != std::string::npos);
        CHECK(to_json(report).find("\"residency\": \"shared\"") != std::string::npos);
      }
    }
  }
}

TEST_CASE("backend self is a world of one") {
  Options options = small(1);
  const std::string expected = train_gpt::plain::train(options).parameters_hash;
  options.backend = "self";
  CHECK(train_gpt::sharded::train(options).parameters_hash == expected);
}

TEST_CASE("losses agree between worlds and fall") {
  std::vector<double> expected;
  for (const std::size_t world : worlds) {
    Options options;
    options.quiet = true;
    options.ranks = world;
    options.layers = 2;
    options.width = 32;
    options.heads = 4;
    options.sequence = 16;
    options.batch = 84;
    options.steps = 50;
    options.learning_rate = 3e-3;
    const Report report = train_gpt::sharded::train(options);
    REQUIRE(report.loss.size() == 50);
    if (expected.empty()) expected = report.loss;
    double worst = 0;
    for (std::size_t step = 0; step < expected.size(); ++step) {
      worst = std::max(worst, std::abs(report.loss[step] - expected[step]) / expected[step]);
    }
    INFO("world " << world << ", loss " << report.loss.front() << " to " << report.loss.back());
    CHECK(worst < 1e-5);
    CHECK(report.loss.back() < 0.8 * report.loss.front());
  }
}

TEST_CASE("a zero3 step gathers each parameter at most twice and reduces it once") {
  for (const std::size_t world : worlds) {
    Options options = small(world);
    options.layers = 5;
    options.strategy = "zero3";
    const std::size_t units = options.layers + 2;
    const Report zero3 = train_gpt::sharded::train(options);
    CHECK(zero3.traffic_per_step.all_gather.calls <= 2 * units);
    CHECK(zero3.traffic_per_step.reduce_scatter.calls == units);
    options.strategy = "ddp";
    const Report ddp = train_gpt::sharded::train(options);
    CHECK(ddp.traffic_per_step.all_reduce.calls == units);
    const auto total = [](const train_gpt::Traffic& traffic) {
      return traffic.all_gather.bytes + traffic.reduce_scatter.bytes + traffic.all_reduce.bytes;
    };
    CHECK(2 * total(zero3.traffic_per_step) <= 3 * total(ddp.traffic_per_step));
    for (const char* name : {"zero1", "zero2", "zero3-no-reshard"}) {
      options.strategy = name;
      CHECK(total(train_gpt::sharded::train(options).traffic_per_step) ==
            total(ddp.traffic_per_step));
    }
  }
}
