// The program `compare_strategies`: its choice, what it writes, what tuning leaves.
#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "../examples/compare_strategies/output.hpp"
#include "../examples/plan/report.hpp"
#include "../examples/train_gpt/sharding.hpp"
#include "../examples/train_gpt/train.hpp"

using Catch::Matchers::ContainsSubstring;
using compare_strategies::Comparison;
using compare_strategies::Trial;
using Json = nlohmann::json;

namespace {

train_gpt::Options small() {
  train_gpt::Options options;
  options.steps = 3;
  options.layers = 2;
  options.width = 32;
  options.sequence = 16;
  options.ranks = 3;
  options.batch = 6;
  options.quiet = true;
  return options;
}

shardwise::Hardware hardware() {
  shardwise::Hardware hardware;
  hardware.name = "made up";
  hardware.flops = 1e10;
  hardware.processor.inline_compute = true;
  return hardware;
}

Trial trial(const char* name, double ms, std::size_t peak) {
  Trial result;
  result.name = name;
  result.strategy = shardwise::Strategy::parse(name);
  result.report.step_ms = ms;
  result.report.bytes_per_rank.peak = peak;
  return result;
}

}  // namespace

TEST_CASE("the smallest of those that are not clearly slower is chosen") {
  Comparison comparison;
  comparison.trials = {trial("ddp", 10, 900 << 10), trial("zero2", 11.4, 500 << 10),
                       trial("zero3", 11.6, 300 << 10)};
  choose(comparison);
  CHECK(comparison.chosen == 1);
  CHECK(comparison.strategy == shardwise::Strategy::zero2());
  CHECK_THAT(comparison.reason, ContainsSubstring("within 15 % of the fastest (ddp, 10.0 ms)") &&
                                    ContainsSubstring("500 KiB per rank against 900"));
  comparison.trials[0].report.bytes_per_rank.peak = 100 << 10;
  choose(comparison);
  CHECK(comparison.chosen == 0);
  CHECK_THAT(comparison.reason, ContainsSubstring("it is the fastest"));
}

TEST_CASE("every strategy is trained, planned and written") {
  const Comparison comparison = compare_strategies::compare(small(), hardware(), 2);
  CHECK(comparison.same_bits());
  CHECK(comparison.planned_right());
  REQUIRE(comparison.trials.size() == 5);
  for (const Trial& each : comparison.trials) {
    CHECK(each.step_ms.size() == 2);
    CHECK(each.prediction.seconds > 0);
  }
  const Json json = Json::parse(compare_strategies::to_json(comparison));
  CHECK(json["strategies"].size() == 5);
  CHECK(json["recommended"] == comparison.trials[comparison.chosen].name);
  CHECK(json["strategies"][3]["bytes_per_rank"] == json["strategies"][3]["planned_bytes_per_rank"]);
  CHECK_FALSE(json.contains("tuning"));

  const std::string html = compare_strategies::to_html(comparison);
  CHECK_THAT(html, ContainsSubstring("<svg") && ContainsSubstring("prefers-color-scheme:dark") &&
                       ContainsSubstring("zero3-no-reshard") && !ContainsSubstring("http"));
  const std::string text = compare_strategies::table(comparison);
  CHECK_THAT(text, ContainsSubstring("I would take") &&
                       ContainsSubstring("zero3-no-reshard has one slot for each layer"));

  Comparison wrong = comparison;
  wrong.trials[2].report.bytes_per_rank.slots += 1;
  wrong.trials[1].report.parameters_hash = "other";
  CHECK_FALSE(wrong.planned_right());
  CHECK_FALSE(wrong.same_bits());
}

TEST_CASE("what it writes is what train_gpt reads") {
  const std::string file = "comparison_test.yaml";
  for (const auto name : shardwise::planned_strategies) {
    Comparison comparison;
    comparison.options = small();
    comparison.options.lease = "bf16";
    comparison.trials = {trial(std::string(name).c_str(), 10, 100)};
    comparison.trials[0].strategy.lease = shardwise::DType::bf16;
    comparison.trials[0].strategy.bucket_bytes = 12345;
    comparison.trials[0].strategy.overlap = false;
    choose(comparison);
    plan::write_file(file, compare_strategies::config_of(comparison));
    const char* arguments[] = {"train_gpt", "--config", file.c_str()};
    const train_gpt::Options read = train_gpt::parse_options(3, arguments);
    INFO(name);
    CHECK(train_gpt::strategy_of(read) == comparison.strategy);
    CHECK(read.ranks == 3);
    CHECK(read.batch == 6);
  }
  std::remove(file.c_str());
}

TEST_CASE("tuning keeps what was faster, and says what everything was worth") {
  Comparison comparison = compare_strategies::compare(small(), hardware(), 1);
  comparison.chosen = 3;  // zero3, which has all settings
  comparison.strategy = comparison.trials[3].strategy;
  compare_strategies::tune(comparison, 1);
  CHECK(comparison.untuned_ms > 0);
  CHECK(comparison.tuned_ms <= comparison.untuned_ms);
  shardwise::Strategy expected = comparison.trials[3].strategy;
  double best = comparison.untuned_ms;
  std::vector<std::string> settings;
  for (const auto& tried : comparison.tuning) {
    settings.push_back(tried.setting);
    CHECK(tried.predicted_ms > 0);
    if (!tried.taken) continue;
    CHECK(tried.measured_ms < best - comparison.noise_ms);
    best = tried.measured_ms;
    if (tried.setting == "overlap") expected.overlap = tried.value == "true";
    if (tried.setting == "prefetch") expected.prefetch = std::stoi(tried.value);
    if (tried.setting == "bucket_bytes") expected.bucket_bytes = std::stoul(tried.value);
    if (tried.setting == "persistence_threshold") {
      expected.persistence_threshold = std::stoul(tried.value);
    }
  }
  CHECK(comparison.strategy == expected);
  for (const char* setting : {"overlap", "prefetch", "bucket_bytes", "persistence_threshold"}) {
    INFO(setting);
    CHECK(std::find(settings.begin(), settings.end(), setting) != settings.end());
  }
  CHECK_THAT(compare_strategies::table(comparison), ContainsSubstring("Together:"));
  CHECK(Json::parse(compare_strategies::to_json(comparison))["tuning"]["tried"].size() ==
        comparison.tuning.size());
}
