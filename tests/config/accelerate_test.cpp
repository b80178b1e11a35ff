#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <shardwise/config.hpp>
#include <string>
#include <vector>

#include "fixtures.hpp"

using namespace shardwise;
using namespace shardwise::test;
using Catch::Matchers::ContainsSubstring;
using Outcome = ConfigOutcome;

namespace {

LoadedConfiguration fsdp(const std::string& keys, const std::string& more = {}) {
  return parse_config("distributed_type: FSDP\n" + more + "fsdp_config:\n" + keys, "f");
}
std::string only(const std::string& text) {
  const auto all = complaints(text, Hints());
  CHECK(all.size() == 1);
  return all.empty() ? std::string() : all[0];
}
std::string only_fsdp(const std::string& keys) {
  return only("distributed_type: FSDP\nfsdp_config:\n" + keys);
}

}  // namespace

TEST_CASE("accelerate's files without what is not built apply") {
  Configuration expected;
  expected.strategy = Strategy::zero3();
  expected.strategy.lease = DType::bf16;
  for (const auto& [name, ranks] : {std::pair<const char*, std::size_t>{"fsdp_v1.yaml", 2},
                                    {"fsdp_v1_nodes.yaml", 16},
                                    {"fsdp_v2.yaml", 2},
                                    {"fsdp_v2_layers.yaml", 8},
                                    {"fsdp_v2_experts.yaml", 16}}) {
    const auto loaded = load_config(fixture(name));
    INFO(name);
    CHECK(loaded.form() == ConfigForm::accelerate);
    expected.ranks = ranks;
    CHECK(loaded.values() == expected);
  }
  const auto plain = load_config(fixture("fsdp_without_prefix.yaml"));
  CHECK(plain.strategy().name() == "zero3-no-reshard");
  CHECK(report_of(plain, "fsdp_config.sharding_strategy").outcome == Outcome::applied);
}

TEST_CASE("offload, fp8 and other launchers are refused, or listed where allowed") {
  const auto message = [](const std::string& name) {
    try {
      static_cast<void>(load_config(fixture(name)));
    } catch (const ConfigErrors& errors) {
      return std::string(errors.what());
    }
    return std::string();
  };
  CHECK_THAT(
      message("fsdp_v1_offload.yaml"),
      ContainsSubstring("10:24: fsdp_config.fsdp_offload_params: true is refused: offload") &&
          ContainsSubstring("examples/configs/fsdp_full_shard.yaml"));
  const auto allowed =
      load_config(fixture("fsdp_v1_offload.yaml"), {}, {.allow_unsupported = true});
  CHECK(allowed.strategy().name() == "zero3");
  CHECK(report_of(allowed, "fsdp_config.fsdp_offload_params").outcome == Outcome::refused);
  CHECK_THAT(only("distributed_type: FSDP\nmixed_precision: fp8\n"), ContainsSubstring("fp8"));
  CHECK_THAT(only("distributed_type: DEEPSPEED\n"), ContainsSubstring("give its JSON itself"));
  CHECK_THAT(only("distributed_type: FSDP\ncompute_environment: AMAZON_SAGEMAKER\n"),
             ContainsSubstring("cloud"));
}

TEST_CASE("hybrid shards are within the ranks of a machine, or within those of a grid") {
  const auto strategy = [](const std::string& text) {
    return parse_config("distributed_type: FSDP\n" + text, "f").strategy();
  };
  const auto file = load_config(fixture("fsdp_hybrid.yaml"));
  CHECK(file.strategy().name() == "hybrid-4");  // one machine of four ranks
  CHECK(report_of(file, "fsdp_config.fsdp_sharding_strategy").note == "strategy = hybrid-4");
  CHECK(report_of(file, "num_machines").outcome == Outcome::applied);
  const std::string two = "num_machines: 2\nnum_processes: 8\nfsdp_config:\n";
  CHECK(strategy(two + "  fsdp_sharding_strategy: HYBRID_SHARD\n").name() == "hybrid-4");
  CHECK(strategy(two + "  fsdp_sharding_strategy: HYBRID_SHARD_ZERO2\n").name() ==
        "hybrid-no-reshard-4");
  CHECK(strategy(two + "  fsdp_sharding_strategy: 5\n").name() == "hybrid-no-reshard-4");
  CHECK(strategy(two + "  fsdp_sharding_strategy: FULL_SHARD\n").name() == "zero3");
  CHECK_THAT(only("distributed_type: FSDP\nfsdp_config:\n"
                  "  fsdp_sharding_strategy: HYBRID_SHARD\nnum_machines: 3\nnum_processes: 8\n"),
             ContainsSubstring("8 ranks are not alike on 3 machines"));
  const auto unknown = complaints(
      "distributed_type: FSDP\nfsdp_config:\n  fsdp_sharding_strategy: HYBRID_SHARD\n", Hints{});
  REQUIRE(unknown.size() == 1);
  CHECK_THAT(unknown[0], ContainsSubstring("say num_processes"));

  const std::string grid =
      "num_processes: 8\nfsdp_config:\n  fsdp_version: 2\n"
      "parallelism_config:\n  parallelism_config_dp_replicate_size: ";
  CHECK(strategy(grid + "2\n  parallelism_config_dp_shard_size: 4\n").name() == "hybrid-4");
  CHECK(strategy(grid + "8\n").in_world(8) == Strategy::ddp());
  CHECK(strategy(grid + "1\n  parallelism_config_dp_shard_size: 8\n").name() == "zero3");
  CHECK_THAT(only("distributed_type: FSDP\n" + grid + "2\n"),
             ContainsSubstring("2 groups of 1 rank(s) are not 8 ranks"));
}

TEST_CASE("sharding strategies of version 1, by name and number") {
  const auto named = [](const std::string& word) {
    return fsdp("  fsdp_sharding_strategy: " + word + "\n").strategy().name();
  };
  CHECK(named("FULL_SHARD") == "zero3");
  CHECK(named("full_shard") == "zero3");
  CHECK(named("1") == "zero3");
  CHECK(named("SHARD_GRAD_OP") == "zero3-no-reshard");
  CHECK(named("2") == "zero3-no-reshard");
  CHECK(named("NO_SHARD") == "ddp");
  CHECK(named("3") == "ddp");
  CHECK(fsdp("  fsdp_reshard_after_forward: SHARD_GRAD_OP\n").strategy().name() ==
        "zero3-no-reshard");
  CHECK(fsdp("  fsdp_use_orig_params: true\n").strategy() == Strategy::zero3());
  CHECK_THAT(only_fsdp("  fsdp_reshard_after_forward: true\n"),
             ContainsSubstring("of version 2") && ContainsSubstring("fsdp_version: 2"));
  CHECK_THAT(
      only_fsdp("  fsdp_sharding_strategy: FULL_SHARD\n  fsdp_reshard_after_forward: NO_SHARD\n"),
      ContainsSubstring("keep one"));
}

TEST_CASE("version 2 has its own rules") {
  CHECK(fsdp("  fsdp_version: 2\n  fsdp_reshard_after_forward: false\n").strategy().name() ==
        "zero3-no-reshard");
  CHECK(fsdp("  fsdp_version: 2\n").strategy() == Strategy::zero3());
  CHECK(fsdp("  version: 2\n  reshard_after_forward: 'True'\n").strategy() == Strategy::zero3());
  CHECK_THAT(only_fsdp("  fsdp_version: 2\n  fsdp_reshard_after_forward: FULL_SHARD\n"),
             ContainsSubstring("in version 2 it is true or false"));
  CHECK_THAT(only_fsdp("  fsdp_version: 2\n  fsdp_sharding_strategy: FULL_SHARD\n"),
             ContainsSubstring("version 2 has reshard_after_forward"));
  CHECK_THAT(only_fsdp("  fsdp_version: 2\n  fsdp_forward_prefetch: true\n"),
             ContainsSubstring("it is of version 1"));
  const auto both = fsdp(
      "  fsdp_version: 2\n  fsdp_reshard_after_forward: true\n  fsdp_sharding_strategy: "
      "NO_SHARD\n");
  CHECK(both.strategy() == Strategy::zero3());
  CHECK(report_of(both, "fsdp_config.fsdp_sharding_strategy").outcome == Outcome::without_effect);
}

TEST_CASE("prefetch is one setting for both directions") {
  const auto prefetch = [](const std::string& keys) { return fsdp(keys).strategy().prefetch; };
  CHECK(prefetch("  fsdp_backward_prefetch: BACKWARD_PRE\n") == 1);
  CHECK(prefetch("  fsdp_backward_prefetch: BACKWARD_POST\n") == 0);
  CHECK(prefetch("  fsdp_backward_prefetch: NO_PREFETCH\n") == 0);
  CHECK(prefetch("  fsdp_backward_prefetch: NO_PREFETCH\n  fsdp_forward_prefetch: true\n") == 1);
  CHECK(prefetch("  fsdp_forward_prefetch: false\n") == 1);
  CHECK(prefetch("  fsdp_use_orig_params: true\n") == 1);
}

TEST_CASE("the same key with and without fsdp_ is given twice") {
  CHECK_THAT(only_fsdp("  fsdp_version: 1\n  version: 1\n"),
             ContainsSubstring("4:3: fsdp_config.version: given twice"));
  CHECK_THAT(only_fsdp("  fsdp_shardin_strategy: FULL_SHARD\n"),
             ContainsSubstring("3:3: fsdp_config.fsdp_shardin_strategy: unknown key; did you mean "
                               "\"sharding_strategy\"?"));
}

TEST_CASE("ranks without FSDP are plain data parallelism") {
  CHECK(parse_config("distributed_type: MULTI_GPU\nnum_processes: 4\n", "f").strategy() ==
        Strategy::ddp());
  CHECK(parse_config("distributed_type: 'NO'\nmixed_precision: 'no'\n", "f").strategy() ==
        Strategy::ddp());
  CHECK_THAT(only("mixed_precision: bf16\nnum_processes: 4\n"),
             ContainsSubstring("f: distributed_type is missing"));
}

TEST_CASE("words of YAML for yes and no, quoted or not") {
  for (const char* word : {"true", "True", "yes", "on", "'true'", "\"yes\"", "1"}) {
    INFO(word);
    CHECK(parse_config("distributed_type: NO\nfp16: " + std::string(word) + "\n", "f")
              .strategy()
              .lease == DType::f16);
  }
  CHECK_THAT(only("distributed_type: NO\nfp16: perhaps\n"),
             ContainsSubstring("2:7: fp16: expected yes or no, found perhaps"));
}
