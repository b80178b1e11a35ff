#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cstddef>
#include <cstdint>
#include <set>
#include <shardwise/strategy.hpp>
#include <string>
#include <utility>

#include "support/strategies.hpp"

using namespace shardwise;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::MessageMatches;
using test::each_with_one_change;

namespace {

constexpr auto replicated = Placement::replicated;
constexpr auto sharded = Placement::sharded;

}  // namespace

TEST_CASE("the named strategies are the rows of the table") {
  const auto has = [](const Strategy& strategy, Placement parameters, Placement gradients,
                      Placement state) {
    return strategy.parameters == parameters && strategy.gradients == gradients &&
           strategy.optimizer_state == state;
  };
  CHECK(has(Strategy::ddp(), replicated, replicated, replicated));
  CHECK(has(Strategy::zero1(), replicated, replicated, sharded));
  CHECK(has(Strategy::zero2(), replicated, sharded, sharded));
  CHECK(has(Strategy::zero3(), sharded, sharded, sharded));
  CHECK(has(Strategy::zero3_no_reshard(), sharded, sharded, sharded));
  CHECK(Strategy::zero3().reshard_after_forward);
  CHECK_FALSE(Strategy::zero3_no_reshard().reshard_after_forward);
  CHECK(Strategy() == Strategy::zero3());
}

TEST_CASE("strategies parse and print by name") {
  const std::pair<const char*, Strategy> names[] = {
      {"ddp", Strategy::ddp()},
      {"zero1", Strategy::zero1()},
      {"zero2", Strategy::zero2()},
      {"zero3", Strategy::zero3()},
      {"zero3-no-reshard", Strategy::zero3_no_reshard()}};
  for (const auto& [name, strategy] : names) {
    CHECK(Strategy::parse(name) == strategy);
    CHECK(strategy.name() == name);
    strategy.validate();
  }
  Strategy grouped = Strategy::zero2();
  grouped.shard_group = 16;
  CHECK(grouped.name() == "hybrid-zero2-16");
  CHECK(Strategy::hybrid(8).name() == "hybrid-8");
  for (const char* name :
       {"hybrid-1", "hybrid-8", "hybrid-no-reshard-4", "hybrid-zero1-2", "hybrid-zero2-16"}) {
    CHECK(Strategy::parse(name).name() == name);
  }
  CHECK(Strategy::parse("hybrid-8") == Strategy::hybrid(8));
  CHECK(Strategy::parse("hybrid") == Strategy::zero3());
  for (const char* wrong : {"hybrid-", "hybrid-0", "hybrid-x", "hybrid--2", "hybrid-2x",
                            "hybrid-123456789", "zero3-8"}) {
    CHECK_THROWS_AS(Strategy::parse(wrong), ConfigError);
  }
  CHECK(Strategy::parse("fsdp") == Strategy::zero3());
  CHECK(Strategy::parse("fsdp-shard-grad-op") == Strategy::zero3_no_reshard());
  for (const char* wrong : {"", "zero", "zero4", "ZERO3", "zero3 "}) {
    CHECK_THROWS_MATCHES(
        Strategy::parse(wrong), ConfigError,
        MessageMatches(ContainsSubstring("'" + std::string(wrong) + "'") &&
                       ContainsSubstring("ddp, zero1, zero2, zero3, zero3-no-reshard, fsdp, "
                                         "fsdp-shard-grad-op")));
  }
}

TEST_CASE("groups come to what they are in a world") {
  CHECK(Strategy::hybrid(4).in_world(4) == Strategy::zero3());
  CHECK(Strategy::hybrid(0).in_world(4) == Strategy::zero3());
  CHECK(Strategy::hybrid(1).in_world(4) == Strategy::ddp());
  CHECK(Strategy::hybrid(2).in_world(4) == Strategy::hybrid(2));
  CHECK_THROWS_AS(Strategy::hybrid(2).in_world(3), UsageError);
  CHECK_THROWS_AS(Strategy::hybrid(8).in_world(4), UsageError);
  CHECK_THROWS_AS(Strategy::hybrid(-1).validate(), UsageError);
  Strategy secondary = Strategy::hybrid(4);
  secondary.reshard_group = 2;
  CHECK(secondary.in_world(8) == secondary);
  CHECK_THROWS_AS(secondary.in_world(6), UsageError);
  secondary.reshard_group = 4;  // those of the first gather
  CHECK(secondary.in_world(8) == Strategy::hybrid(4));
  secondary.reshard_group = 8;
  CHECK_THROWS_AS(secondary.in_world(8), UsageError);
  secondary = Strategy::zero3();
  secondary.reshard_group = 1;
  CHECK(secondary.in_world(8) == Strategy::zero3_no_reshard());
  CHECK(Strategy::hybrid(4).keeps_bits(8));
  CHECK(Strategy::hybrid(6).keeps_bits(6));
  CHECK_FALSE(Strategy::hybrid(6).keeps_bits(12));
}

TEST_CASE("a name says the placements, whatever else is set") {
  Strategy strategy = Strategy::zero2();
  strategy.prefetch = 3;
  strategy.lease = DType::bf16;
  strategy.reshard_after_forward = false;  // nothing to reshard
  CHECK(strategy.name() == "zero2");
  strategy.parameters = sharded;
  strategy.gradients = replicated;
  CHECK(strategy.name() == "sharded/replicated/sharded");
}

TEST_CASE("contradictions and values out of range are refused") {
  for (const Placement parameters : {replicated, sharded}) {
    for (const Placement gradients : {replicated, sharded}) {
      for (const Placement state : {replicated, sharded}) {
        const Strategy strategy{parameters, gradients, state};
        if (state == sharded || (parameters == replicated && gradients == replicated)) {
          CHECK_NOTHROW(strategy.validate());
        } else {
          CHECK_THROWS_MATCHES(strategy.validate(), UsageError,
                               MessageMatches(ContainsSubstring("optimizer_state")));
        }
      }
    }
  }
  CHECK_THROWS_MATCHES(Strategy{.prefetch = -1}.validate(), UsageError,
                       MessageMatches(ContainsSubstring("prefetch")));
  CHECK_THROWS_MATCHES(Strategy{.lease = DType::i8}.validate(), UsageError,
                       MessageMatches(ContainsSubstring("Strategy::lease")));
  CHECK_THROWS_MATCHES(Strategy{.gradient_lease = DType::i32}.validate(), UsageError,
                       MessageMatches(ContainsSubstring("Strategy::gradient_lease")));
  CHECK_THROWS_MATCHES(Strategy{.wire = DType::u8}.validate(), UsageError,
                       MessageMatches(ContainsSubstring("Strategy::wire")));
  for (const DType type : {DType::f64, DType::f32, DType::bf16, DType::f16}) {
    CHECK_NOTHROW(Strategy{.lease = type, .gradient_lease = type, .wire = type}.validate());
  }
}

TEST_CASE("every setting enters equality and the hash") {
  const auto all = each_with_one_change();
  std::set<std::uint64_t> hashes;
  for (std::size_t i = 0; i < all.size(); ++i) {
    for (std::size_t j = 0; j < all.size(); ++j) CHECK((all[i] == all[j]) == (i == j));
    hashes.insert(all[i].hash());
    CHECK(all[i].hash() == Strategy(all[i]).hash());
  }
  CHECK(hashes.size() == all.size());
}

TEST_CASE("a parameter's options override the context's strategy") {
  const ParameterOptions options{.name = "wte", .strategy = Strategy::ddp(), .tied = true};
  CHECK(options.strategy == Strategy::ddp());
  CHECK_FALSE(ParameterOptions().strategy.has_value());
  CHECK_FALSE(ParameterOptions().tied);
  CHECK(name_of(Placement::sharded) == "sharded");
  CHECK(name_of(Accumulation::hold) == "hold");
}
