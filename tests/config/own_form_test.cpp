#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <set>
#include <shardwise/config.hpp>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "fixtures.hpp"
#include "support/property.hpp"
#include "support/strategies.hpp"

using namespace shardwise;
using namespace shardwise::test;
using Catch::Matchers::ContainsSubstring;

namespace {

Configuration any_configuration() {
  const auto count = [](std::size_t least) {
    return *rc::gen::element<std::size_t>(0, 1, 2, 25u << 20, 500000000, 4611686018427387904u) +
           least;
  };
  const auto type = []() -> std::optional<DType> {
    return *rc::gen::element<std::optional<DType>>(std::nullopt, DType::f32, DType::bf16,
                                                   DType::f16, DType::f64);
  };
  const auto flag = [] { return *rc::gen::arbitrary<bool>(); };
  const auto positive = [](double least) {
    return least + *rc::gen::element(0.5, 1.0, 1.0 / 3, 1e-300, 65536.0, 1e300);
  };
  Configuration all;
  Strategy& s = all.strategy;
  s = *rc::gen::element(Strategy::ddp(), Strategy::zero1(), Strategy::zero2(), Strategy::zero3(),
                        Strategy::zero3_no_reshard());
  if (s.optimizer_state == Placement::sharded && flag()) s.gradients = Placement::replicated;
  s.reshard_after_forward = flag();
  s.persistence_threshold = count(0);
  s.prefetch = *rc::gen::inRange(0, std::numeric_limits<int>::max());
  s.bucket_bytes = count(0);
  s.max_live_bytes = count(0);
  s.keep_resident_bytes = count(0);
  if (s.optimizer_state == Placement::sharded && flag()) s.residency = Residency::shared;
  s.lease = type();
  s.gradient_lease = type();
  s.wire = type();
  s.overlap = flag();
  s.accumulation = flag() ? Accumulation::hold : Accumulation::reduce;
  all.gradient_storage = type();
  if (flag()) all.ranks = count(1);
  if (!all.ranks && s.optimizer_state == Placement::sharded) {
    s.shard_group = *rc::gen::element(0, 2, 8);
    s.reshard_group = *rc::gen::element(0, 1, 2);
  }
  if (flag()) all.micro_batch = count(1);
  if (flag()) all.micro_batches = count(1);
  if (!all.ranks && flag()) all.global_batch = count(1);
  if (flag()) all.clip = positive(0);
  if (flag()) all.loss_scale = positive(0);
  if (flag()) all.loss_scale_growth = positive(1);
  if (flag()) all.loss_scale_window = count(1);
  if (flag()) all.loss_scale_minimum = positive(0);
  return all;
}

}  // namespace

TEST_CASE("groups are said by their size, and fit the ranks") {
  const auto strategy = [](const std::string& text) { return parse_config(text, "f").strategy(); };
  CHECK(strategy("strategy: hybrid\nshard_group: 8\n") == Strategy::hybrid(8));
  CHECK(strategy("strategy: zero1\nshard_group: 8\n").name() == "hybrid-zero1-8");
  CHECK(strategy("strategy: zero3\nreshard_group: 4\n").reshard_group == 4);
  const auto only = [](const std::string& text) {
    const auto all = complaints(text, Hints{});
    CHECK(all.size() == 1);
    return all.empty() ? std::string() : all[0];
  };
  CHECK_THAT(only("strategy: hybrid\n"), ContainsSubstring("say how many ranks are in one"));
  CHECK_THAT(only("strategy: ddp\nshard_group: 2\n"), ContainsSubstring("nothing is sharded"));
  CHECK_THAT(only("strategy: hybrid\nshard_group: 3\nranks: 4\n"),
             ContainsSubstring("groups of 3 ranks do not divide 4 ranks"));
  CHECK_THAT(only("strategy: zero3\nreshard_group: 3\nranks: 4\n"),
             ContainsSubstring("3 ranks do not divide the 4 that shard parameters"));
  CHECK_THAT(only("strategy: zero3\nshard_group: -2\n"), ContainsSubstring("shard_group"));
}

TEST_CASE("what is written is read back as an equal configuration") {
  check_property(
      "write, read",
      [] {
        const Configuration configuration = any_configuration();
        const std::string text = write_config(configuration, "two\nlines");
        RC_LOG() << text;
        const LoadedConfiguration loaded = parse_config(text, "written");
        RC_ASSERT(loaded.form() == ConfigForm::shardwise);
        RC_ASSERT(loaded.values() == configuration);
        RC_ASSERT(loaded.hash() == parse_config(loaded.print(), "printed").hash());
      },
      500);
}

TEST_CASE("load, print, load is the identity, for every form") {
  for (const std::string& name : fixtures_that_load()) {
    INFO(name);
    const auto loaded = load_config(fixture(name), all_hints());
    const auto again = parse_config(loaded.print(), "printed");
    CHECK(again.form() == ConfigForm::shardwise);
    CHECK(again.values() == loaded.values());
    const auto third = parse_config(again.print(), "printed");
    CHECK(third.values() == loaded.values());
  }
}

TEST_CASE("neither a file's name nor a value ends a comment") {
  const auto loaded = parse_config(
      "{\"zero_optimization\": {\"stage\": 2}, \"_comment\": \"" + std::string(56, 'x') +
          "\u20ac\u20ac\u20ac\", \"steps_per_print\": 1, \"log_level\": \"a\\nprefetch: 7\"}",
      "name\nprefetch: 9 \xff\r# x");
  const auto again = parse_config(loaded.print(), "printed");
  CHECK(again.values() == loaded.values());
  // What is shortened is still text.
  for (const ConfigKeyReport& key : loaded.keys()) {
    CHECK_FALSE(detail::find_non_utf8(key.value));
    CHECK(key.value.find('\n') == std::string::npos);
  }
}

TEST_CASE("fields are read as they are named, with 5e8 and MiB") {
  const auto loaded = parse_config(
      "# a comment\n"
      "strategy: zero2\n"
      "bucket_bytes: 25MiB\n"
      "persistence_threshold: 5e8\n"
      "lease: bfloat16\n"
      "wire: fp32\n"
      "clip: 1e-3\n"
      "accumulation: hold\n"
      "overlap: false\n"
      "ranks: 4\n",
      "own.yaml");
  CHECK(loaded.strategy().name() == "zero2");
  CHECK(loaded.strategy().bucket_bytes == 25u << 20);
  CHECK(loaded.strategy().persistence_threshold == 500000000);
  CHECK(loaded.strategy().lease == DType::bf16);
  CHECK(loaded.strategy().wire == DType::f32);
  CHECK(loaded.strategy().accumulation == Accumulation::hold);
  CHECK_FALSE(loaded.strategy().overlap);
  CHECK(loaded.values().clip == 0.001);
  CHECK(loaded.values().ranks == 4u);
  CHECK(loaded.source(ConfigField::bucket_bytes) == "own.yaml:3:15: bucket_bytes");
  CHECK(loaded.source(ConfigField::parameters) == "own.yaml:2:11: strategy");
  CHECK(loaded.source(ConfigField::prefetch) == "default");
  CHECK(loaded.says(ConfigField::bucket_bytes));
  CHECK_FALSE(loaded.says(ConfigField::prefetch));
  // JSON is as good.
  CHECK(parse_config("{\"strategy\": \"zero2\", \"prefetch\": 3,}", "f").strategy().prefetch == 3);
  // A field has the last word over the name, wherever it stands.
  CHECK(parse_config("gradients: replicated\nstrategy: zero2\n", "f").strategy() ==
        Strategy::zero1());
}

TEST_CASE("each field has a name of its own, and no member of Strategy is forgotten") {
  std::set<std::string_view> names;
  for (std::size_t i = 0; i < config_field_count; ++i) {
    names.insert(name_of(static_cast<ConfigField>(i)));
  }
  CHECK(names.size() == config_field_count);

  // Two strategies that differ in a member differ in their text.
  const std::vector<Strategy> all = each_with_one_change();
  std::set<std::string> texts;
  for (const Strategy& strategy : all) texts.insert(write_config(strategy));
  CHECK(texts.size() == all.size());
  // A member that is added makes a Strategy larger, or fills a hole: look here, and at ConfigField.
  CHECK(sizeof(Strategy) == 72);
}

TEST_CASE("fields that contradict each other are refused where they stand") {
  CHECK(complaints("strategy: zero1\noptimizer_state: replicated\nparameters: sharded\n") ==
        std::vector<std::string>{"f:2:18: optimizer_state: sharded parameters or gradients need "
                                 "sharded optimizer state: each rank updates its own shard"});
  CHECK(complaints("strategy: ddp\nresidency: shared\n") ==
        std::vector<std::string>{"f:2:12: residency: each rank updates its own part of what is "
                                 "shared, but the optimizer state is replicated: shard it (zero1 "
                                 "has the bits of ddp)"});
  CHECK(parse_config("strategy: zero1\nresidency: shared\n", "f").strategy().residency ==
        Residency::shared);
  CHECK(complaints("ranks: 2\nmicro_batch: 3\nmicro_batches: 4\nglobal_batch: 25\n") ==
        std::vector<std::string>{"f:4:15: global_batch: it is ranks x micro_batch x micro_batches, "
                                 "but 25 is not 2 x 3 x 4"});
}

TEST_CASE("every name of a strategy is read") {
  for (const char* name :
       {"ddp", "zero1", "zero2", "zero3", "zero3-no-reshard", "fsdp", "fsdp-shard-grad-op"}) {
    CHECK(parse_config("strategy: " + std::string(name) + "\n", "f").strategy() ==
          Strategy::parse(name));
  }
  // The names that the library has are the words of the key.
  try {
    static_cast<void>(Strategy::parse("?"));
  } catch (const ConfigError& error) {
    std::string words(detail::keys::own[0].domain);
    for (std::size_t at = 0; (at = words.find('|', at)) != std::string::npos;) {
      words.replace(at, 1, ", ");
    }
    CHECK_THAT(error.what(), ContainsSubstring("choose one of: " + words));
  }
}

TEST_CASE("an override has the last word, and says so") {
  auto loaded = parse_config("strategy: zero2\nprefetch: 2\n", "f");
  loaded.override_field(ConfigField::prefetch, "0", "--prefetch");
  loaded.override_field(ConfigField::lease, "bf16", "--lease");
  loaded.override_strategy("ddp", "--strategy");
  CHECK(loaded.strategy().prefetch == 0);
  CHECK(loaded.strategy().lease == DType::bf16);
  CHECK(loaded.strategy().name() == "ddp");
  CHECK(loaded.source(ConfigField::prefetch) == "--prefetch");
  CHECK(loaded.source(ConfigField::optimizer_state) == "--strategy");
  CHECK_THAT(loaded.print(), ContainsSubstring("prefetch: 0") && ContainsSubstring("# --prefetch"));
  CHECK_THROWS_MATCHES(loaded.override_field(ConfigField::prefetch, "-1", "--prefetch"),
                       ConfigError,
                       Catch::Matchers::Message("--prefetch: '-1' is no value of prefetch"));
  CHECK(loaded.strategy().prefetch == 0);
  CHECK_THROWS_AS(loaded.override_strategy("zero4", "--strategy"), ConfigError);
}

TEST_CASE("the form is told by the keys, also where one is misspelled") {
  CHECK_THAT(complaints("stratgy: zero3\n").at(0), ContainsSubstring("did you mean \"strategy\"?"));
  CHECK_THAT(complaints("{\"zero_optimisation\": {\"stage\": 3}}").at(0),
             ContainsSubstring("did you mean \"zero_optimization\"?"));
  CHECK_THAT(complaints("fsdp_confg:\n  fsdp_version: 2\ndistributed_type: FSDP\n").at(0),
             ContainsSubstring("did you mean \"fsdp_config\"?"));
  CHECK(complaints("hello: world\n") ==
        std::vector<std::string>{
            "f: no key of it is known; expected shardwise's own form (strategy: zero3), "
            "DeepSpeed's (zero_optimization) or accelerate's for FSDP (fsdp_config)"});
  CHECK_THAT(complaints("strategy: zero3\n", {}, {.form = ConfigForm::deepspeed}).at(0),
             ContainsSubstring("strategy: unknown key"));
}

TEST_CASE("a file that cannot be read is a ConfigError") {
  CHECK_THROWS_MATCHES(load_config("no/such/file.yaml"), ConfigError,
                       Catch::Matchers::Message("no/such/file.yaml: the file cannot be read"));
  CHECK_THROWS_AS(load_config(project_file("tests")), ConfigError);
}
