#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <set>
#include <shardwise/config.hpp>
#include <string>
#include <utility>
#include <vector>

#include "fixtures.hpp"

using namespace shardwise;
using namespace shardwise::test;
using Catch::Matchers::ContainsSubstring;
using Outcome = ConfigOutcome;

namespace {

LoadedConfiguration zero(const std::string& keys, const Hints& hints = all_hints()) {
  return parse_config("{\"zero_optimization\": {" + keys + "}}", "f", hints);
}

// The paths of what is no group.
void add_leaves(const detail::ConfigNode& map, const std::string& path,
                std::vector<std::string>& leaves) {
  for (const detail::ConfigMember& member : map.members) {
    const std::string here = detail::joined_path(path, member.key);
    if (member.value.members.empty()) leaves.push_back(here);
    add_leaves(member.value, here, leaves);
  }
}

// The one problem of a text.
std::string only(const std::string& text, const Hints& hints = all_hints()) {
  const auto all = complaints(text, hints);
  CHECK(all.size() == 1);
  return all.empty() ? std::string() : all[0];
}

}  // namespace

TEST_CASE("the stages are the strategies") {
  CHECK(zero("\"stage\": 0").strategy().name() == "ddp");
  CHECK(zero("\"stage\": 1").strategy().name() == "zero1");
  CHECK(zero("\"stage\": 2").strategy().name() == "zero2");
  CHECK(zero("\"stage\": 3").strategy() == Strategy::zero3());
  CHECK(zero("\"overlap_comm\": true").strategy().name() == "ddp");
  // The oldest form.
  CHECK(parse_config("{\"zero_optimization\": true, \"allgather_size\": 5e6}", "f")
            .strategy()
            .name() == "zero1");
  CHECK(parse_config("{\"zero_optimization\": false}", "f").strategy().name() == "ddp");
}

TEST_CASE("MiCS shards within groups, and hpZ gathers again within a node") {
  const auto of = [](const std::string& keys) { return zero("\"stage\": 3, " + keys).strategy(); };
  CHECK(of("\"mics_shard_size\": 2") == Strategy::hybrid(2));
  CHECK(of("\"mics_shard_size\": -1") == Strategy::zero3());
  CHECK(of("\"mics_shard_size\": 0") == Strategy::zero3());
  CHECK(of("\"zero_hpz_partition_size\": 2").reshard_group == 2);
  CHECK(of("\"zero_hpz_partition_size\": 1") == Strategy::zero3());
  CHECK(of("\"mics_shard_size\": 4, \"mics_hierarchical_params_gather\": true") ==
        Strategy::hybrid(4));
  CHECK_THAT(only("{\"zero_optimization\": {\"stage\": 3, \"mics_shard_size\": 3}}"),
             ContainsSubstring("groups of 3 ranks do not divide 4 ranks"));
  CHECK_THAT(only("{\"zero_optimization\": {\"stage\": 3, \"mics_shard_size\": 2, "
                  "\"zero_hpz_partition_size\": 4}}"),
             ContainsSubstring("4 ranks do not divide the 2 that shard parameters"));
  CHECK_THAT(only("{\"zero_optimization\": {\"stage\": 3, \"mics_shard_size\": -2}}"),
             ContainsSubstring("mics_shard_size"));
  const auto zero2 = zero("\"stage\": 2, \"mics_shard_size\": 2");
  CHECK(zero2.strategy() == Strategy::zero2());
  CHECK(report_of(zero2, "zero_optimization.mics_shard_size").outcome == Outcome::without_effect);
}

TEST_CASE("DeepSpeed's files without what is not built apply") {
  const auto z3 = load_config(fixture("deepspeed_z3.json"), all_hints());
  CHECK(z3.form() == ConfigForm::deepspeed);
  Configuration expected;
  expected.strategy = Strategy::zero3();
  expected.strategy.lease = DType::bf16;
  expected.strategy.persistence_threshold = 40960;
  expected.strategy.prefetch = 1;
  expected.strategy.max_live_bytes = 2000000000;
  expected.ranks = 4;
  expected.global_batch = 24;
  expected.micro_batch = 2;
  expected.micro_batches = 3;
  expected.clip = 0.5;
  CHECK(z3.values() == expected);

  const auto z2 = load_config(fixture("deepspeed_z2.json"), all_hints());
  expected.strategy = Strategy::zero2();
  expected.strategy.lease = DType::bf16;
  expected.strategy.bucket_bytes = 1000000000;
  CHECK(z2.values() == expected);

  const auto z0 = load_config(fixture("deepspeed_z0.json"), all_hints());
  expected.strategy.parameters = Placement::replicated;
  expected.strategy.gradients = Placement::replicated;
  expected.strategy.optimizer_state = Placement::replicated;
  expected.strategy.overlap = false;
  CHECK(z0.values() == expected);
}

TEST_CASE("what DeepSpeed's files ask for and is not built is refused, with what would work") {
  const auto refusal = [](const std::string& name) {
    std::vector<std::string> lines;
    try {
      static_cast<void>(load_config(fixture(name), all_hints()));
    } catch (const ConfigErrors& errors) {
      for (const ConfigProblem& problem : errors.problems()) {
        lines.push_back(std::to_string(problem.line) + ":" + std::to_string(problem.column) + " " +
                        problem.path + " " + problem.message);
      }
    }
    return lines;
  };
  const auto offload2 = refusal("deepspeed_z2_offload.json");
  REQUIRE(offload2.size() == 1);
  CHECK_THAT(offload2[0],
             ContainsSubstring("21:17 zero_optimization.offload_optimizer.device \"cpu\"") &&
                 ContainsSubstring("offload") &&
                 ContainsSubstring("examples/configs/deepspeed_zero2.json") &&
                 ContainsSubstring("--allow-unsupported"));
  const auto offload3 = refusal("deepspeed_z3_offload.json");
  REQUIRE(offload3.size() == 2);
  CHECK_THAT(offload3[1], ContainsSubstring("25:17 zero_optimization.offload_param.device") &&
                              ContainsSubstring("examples/configs/deepspeed_zero3.json"));
  const auto autotp = refusal("deepspeed_z2_autotp.json");
  REQUIRE(autotp.size() == 1);
  CHECK_THAT(autotp[0], ContainsSubstring("30:20 tensor_parallel.autotp_size 2") &&
                            ContainsSubstring("tensor parallelism"));
  const auto fp8 = refusal("deepspeed_z3_fp8.json");
  REQUIRE(fp8.size() == 1);
  CHECK_THAT(fp8[0], ContainsSubstring("14:16 fp8.enabled true") && ContainsSubstring("fp8"));
}

TEST_CASE("a refusal that is allowed is listed, and the rest applies") {
  const ConfigOptions allow{.allow_unsupported = true};
  const auto with = load_config(fixture("deepspeed_z3_offload.json"), all_hints(), allow);
  const auto without = load_config(fixture("deepspeed_z3.json"), all_hints());
  CHECK(with.values() == without.values());
  const ConfigKeyReport report = report_of(with, "zero_optimization.offload_param.device");
  CHECK(report.outcome == Outcome::refused);
  CHECK_THAT(report.note, ContainsSubstring("goes on without"));
  CHECK_THAT(with.print(),
             ContainsSubstring("# refused:\n#   21:7: zero_optimization.offload_opt"));
  for (const char* name :
       {"deepspeed_z2_offload.json", "deepspeed_z2_autotp.json", "deepspeed_z3_fp8.json"}) {
    CHECK_NOTHROW(load_config(fixture(name), all_hints(), allow));
  }
}

TEST_CASE("what has no effect here is listed with the reason, and nothing is left out") {
  for (const std::string& name : fixtures_that_load()) {
    const auto loaded = load_config(fixture(name), all_hints());
    INFO(name);
    std::vector<std::string> leaves;
    add_leaves(detail::parse_document(read_text(fixture(name)), "f"), {}, leaves);
    CHECK(leaves.size() > 10);
    for (const std::string& leaf : leaves) {
      INFO(leaf);
      CHECK(std::any_of(loaded.keys().begin(), loaded.keys().end(), [&](const auto& key) {
        return key.path == leaf || leaf.starts_with(key.path + ".");
      }));
    }
    for (const ConfigKeyReport& key : loaded.keys()) {
      INFO(key.path);
      CHECK_FALSE(key.note.empty());
      CHECK(key.line > 0);
      CHECK(key.column > 0);
      CHECK(key.outcome != Outcome::refused);
    }
  }
  const auto fp8 =
      load_config(fixture("deepspeed_z3_fp8.json"), all_hints(), {.allow_unsupported = true});
  for (const char* path :
       {"zero_force_ds_cpu_optimizer", "steps_per_print", "wall_clock_breakdown",
        "comms_config.verbose", "monitor_config.enabled", "monitor_config.csv_monitor.enabled"}) {
    CHECK(report_of(fp8, path).outcome == Outcome::without_effect);
  }
  const auto by_hand = load_config(fixture("deepspeed_by_hand.json"), all_hints());
  for (const char* path : {"_comment_1", "x-owner", "optimizer.type", "scheduler.params",
                           "activation_checkpointing.cpu_checkpointing", "prescale_gradients"}) {
    CHECK(report_of(by_hand, path).outcome == Outcome::without_effect);
    CHECK_THAT(by_hand.print(), ContainsSubstring(path));
  }
}

TEST_CASE("auto is an integer by Hugging Face's rules") {
  for (const std::size_t h : {1u, 3u, 64u, 768u, 3584u, 4096u, 5120u, 12288u, 65536u}) {
    Hints hints = all_hints();
    hints.hidden_size = h;
    const auto loaded = load_config(fixture("deepspeed_z3.json"), hints);
    const auto square = static_cast<std::uint64_t>(h) * h;
    const auto nine_tenths =
        static_cast<std::uint64_t>(0.9 * static_cast<double>(h) * static_cast<double>(h));
    CHECK_THAT(report_of(loaded, "zero_optimization.reduce_bucket_size").note,
               ContainsSubstring("auto is " + std::to_string(square) + ";"));
    CHECK_THAT(std::string(loaded.source(ConfigField::prefetch)),
               ContainsSubstring("= " + std::to_string(nine_tenths) + " elements"));
    CHECK(loaded.strategy().persistence_threshold == 10 * h);
  }
  // Known widths: int(0.9 h h) in Python.
  CHECK_THAT(
      std::string(
          load_config(fixture("deepspeed_z3.json"), all_hints()).source(ConfigField::prefetch)),
      ContainsSubstring("15099494 elements"));
  // Below stage 3 the bucket is one of ours.
  CHECK(zero("\"stage\": 2, \"reduce_bucket_size\": \"auto\"").strategy().bucket_bytes ==
        4u * 4096 * 4096);
}

TEST_CASE("the batch, the norm and the precision come from hints") {
  const auto loaded = load_config(
      fixture("deepspeed_z0.json"),
      {.world = 3, .micro_batch = 5, .micro_batches = 7, .clip = 0, .lease = DType::f16});
  CHECK(loaded.values().global_batch == 105u);
  CHECK(loaded.values().clip == 0.0);
  CHECK(loaded.strategy().lease == DType::f16);
  CHECK(loaded.values().loss_scale == 65536.0);
  CHECK(loaded.values().loss_scale_growth == 2.0);
  CHECK(loaded.values().loss_scale_window == 1000u);
  CHECK(loaded.values().loss_scale_minimum == 1.0);
  CHECK_FALSE(
      load_config(
          fixture("deepspeed_z0.json"),
          {.world = 1, .micro_batch = 1, .micro_batches = 1, .clip = 0, .lease = DType::f32})
          .strategy()
          .lease);
}

TEST_CASE("a hint that is missing is named, and all of them at once") {
  std::set<std::string> named;
  for (const ConfigProblem& problem :
       problems_of(read_text(fixture("deepspeed_z3.json")), Hints())) {
    CHECK(problem.line > 0);
    const std::size_t at = problem.message.find("Hints::");
    REQUIRE(at != std::string::npos);
    named.insert(problem.message.substr(at + 7, problem.message.find(')') - at - 7));
  }
  CHECK(named == std::set<std::string>{"clip", "hidden_size", "lease", "micro_batch",
                                       "micro_batches", "world"});
  CHECK_THAT(only("{\"zero_optimization\": {\"stage\": 2, \"allgather_bucket_size\": \"auto\"}}"),
             ContainsSubstring("no rule for \"auto\""));
}

TEST_CASE("two of the batch give the third, and three must agree") {
  const auto batch = [](const std::string& keys, std::size_t world) {
    return parse_config("{" + keys + "}", "f", {.world = world}).values();
  };
  const auto derived = batch("\"train_batch_size\": 24, \"train_micro_batch_size_per_gpu\": 2", 4);
  CHECK(derived.micro_batches == 3u);
  CHECK(batch("\"train_batch_size\": 24, \"gradient_accumulation_steps\": 3", 4).micro_batch == 2u);
  CHECK(batch("\"train_micro_batch_size_per_gpu\": 2, \"gradient_accumulation_steps\": 3", 4)
            .global_batch == 24u);
  const auto alone = batch("\"train_batch_size\": 24", 4);
  CHECK(alone.micro_batch == 6u);
  CHECK(alone.micro_batches == 1u);
  CHECK(batch("\"train_micro_batch_size_per_gpu\": 5", 4).global_batch == 20u);
  CHECK_FALSE(batch("\"gradient_accumulation_steps\": 3", 4).micro_batch);

  const std::string all =
      "{\"train_batch_size\": 24, \"train_micro_batch_size_per_gpu\": 2, "
      "\"gradient_accumulation_steps\": 3}";
  CHECK(parse_config(all, "f").values().ranks == 4u);
  CHECK_THAT(only(all, {.world = 5}), ContainsSubstring("1:22: train_batch_size") &&
                                          ContainsSubstring("24 is not 5 x 2 x 3"));
  CHECK_THAT(
      only("{\"train_batch_size\": 23, \"train_micro_batch_size_per_gpu\": 2}", {.world = 4}),
      ContainsSubstring("does not divide"));
  CHECK_THAT(only("{\"train_batch_size\": 9223372036854775807, "
                  "\"train_micro_batch_size_per_gpu\": 9223372036854775807, "
                  "\"gradient_accumulation_steps\": 9223372036854775807}",
                  {}),
             ContainsSubstring("does not divide"));
}

TEST_CASE("prefetch in elements is prefetch in parameters where their size is known") {
  Hints hints = all_hints();
  const auto prefetch = [&](const std::string& elements) {
    return zero("\"stage\": 3, \"stage3_prefetch_bucket_size\": " + elements, hints)
        .strategy()
        .prefetch;
  };
  CHECK(prefetch("0") == 0);
  CHECK(prefetch("1") == 1);
  CHECK(prefetch("5e7") == 1);
  hints.largest_parameter = 20000000;
  CHECK(prefetch("0") == 0);
  CHECK(prefetch("1") == 1);
  CHECK(prefetch("2e7") == 1);
  CHECK(prefetch("5e7") == 3);
  hints.largest_parameter = 1;
  CHECK_THAT(
      only("{\"zero_optimization\": {\"stage\": 3, \"stage3_prefetch_bucket_size\": 1e18}}", hints),
      ContainsSubstring("prefetch = 1000000000000000000 is out of range"));
}

TEST_CASE("buckets in elements are bytes of leases below stage 3 only") {
  CHECK(zero("\"stage\": 1, \"reduce_bucket_size\": 1e6").strategy().bucket_bytes == 4000000);
  CHECK(zero("\"stage\": 2, \"reduce_bucket_size\": 3e6, \"allgather_bucket_size\": 2e6")
            .strategy()
            .bucket_bytes == 8000000);
  const auto stage3 = zero("\"stage\": 3, \"reduce_bucket_size\": 1e6");
  CHECK(stage3.strategy().bucket_bytes == 0);
  CHECK(report_of(stage3, "zero_optimization.reduce_bucket_size").outcome ==
        Outcome::without_effect);
  const auto stage2 = zero("\"stage\": 2, \"stage3_prefetch_bucket_size\": 1e6");
  CHECK(report_of(stage2, "zero_optimization.stage3_prefetch_bucket_size").outcome ==
        Outcome::without_effect);
  CHECK_THAT(only("{\"zero_optimization\": {\"stage\": 3, \"stage3_max_live_parameters\": 9e18}}"),
             ContainsSubstring("9000000000000000000 elements are too many"));
}

TEST_CASE("precision and communication") {
  const auto loaded = parse_config(
      "{\"fp16\": {\"enabled\": true, \"loss_scale\": 128, \"loss_scale_window\": 5}, "
      "\"communication_data_type\": \"FP32\", \"data_types\": {\"grad_accum_dtype\": \"bf16\"}, "
      "\"gradient_clipping\": 0, \"zero_optimization\": {\"overlap_comm\": false}}",
      "f");
  CHECK(loaded.strategy().lease == DType::f16);
  CHECK(loaded.strategy().wire == DType::f32);
  CHECK_FALSE(loaded.strategy().overlap);
  CHECK(loaded.values().gradient_storage == DType::bf16);
  CHECK(loaded.values().clip == 0.0);
  // A scale that is given stays what it is.
  CHECK(loaded.values().loss_scale == 128.0);
  CHECK(loaded.values().loss_scale_growth == 1.0);
  CHECK(loaded.values().loss_scale_minimum == 128.0);
  CHECK(report_of(loaded, "fp16.loss_scale_window").outcome == Outcome::without_effect);
  CHECK_THAT(only("{\"fp16\": {\"enabled\": true}, \"bf16\": {\"enabled\": true}}"),
             ContainsSubstring("cannot both be true"));
  CHECK(parse_config("{\"fp32_allreduce\": true}", "f").strategy().wire == DType::f32);
  CHECK_THAT(only("{\"fp32_allreduce\": true, \"communication_data_type\": \"fp32\"}"),
             ContainsSubstring("keep that one"));
}

TEST_CASE("older spellings mean the same, and not both may be there") {
  const auto today = load_config(fixture("deepspeed_by_hand.json"), all_hints());
  CHECK(today.strategy().persistence_threshold == 100000);
  CHECK(today.strategy().max_live_bytes == 2000000000);
  CHECK(today.strategy().lease == DType::bf16);
  CHECK_THAT(
      only("{\"zero_optimization\": {\"stage\": 3, \"prefetch_bucket_size\": 1, "
           "\"stage3_prefetch_bucket_size\": 2}}"),
      ContainsSubstring("stage3_prefetch_bucket_size: given twice; it is another spelling of "
                        "zero_optimization.prefetch_bucket_size"));
  CHECK_THAT(only("{\"zero_optimization\": {\"stage\": 2, \"cpu_offload\": true}}"),
             ContainsSubstring("offload"));
  CHECK(complaints("{\"zero_optimization\": {\"stage\": 2, \"cpu_offload\": false}}").empty());
}

TEST_CASE("all errors come in one pass, in the file's order") {
  const auto found = complaints(
      "{\n"
      "  \"zero_optimization\": {\n"
      "    \"stge\": 3,\n"
      "    \"stage\": 4,\n"
      "    \"overlap_comm\": \"true\",\n"
      "    \"zero_quantized_weights\": true\n"
      "  },\n"
      "  \"stage\": 1,\n"
      "  \"gradient_clipping\": -1,\n"
      "  \"gradient_clipping\": 1,\n"
      "  \"steps_per_print\": []\n"
      "}\n");
  const std::string refused =
      "f:6:31: zero_optimization.zero_quantized_weights: true is refused: quantised communication "
      "is not built yet; nearest file that works: shardwise's "
      "examples/configs/deepspeed_zero0.json; "
      "--allow-unsupported goes on without";
  const std::vector<std::string> expected = {
      "f:3:5: zero_optimization.stge: unknown key; did you mean \"stage\"?",
      "f:4:14: zero_optimization.stage: expected an integer, from 0 to 3, found 4",
      "f:5:21: zero_optimization.overlap_comm: expected true or false, found \"true\"",
      refused,
      "f:8:3: stage: unknown key; did you mean \"zero_optimization.stage\"?",
      "f:9:24: gradient_clipping: expected a number, 0 or more, or \"auto\", found -1",
      "f:10:3: gradient_clipping: given twice; first at 9:3",
      "f:11:22: steps_per_print: expected an integer, 0 or more, found a list"};
  CHECK(found == expected);
}

TEST_CASE("auto is taken where Hugging Face makes nothing of it that matters here") {
  const auto loaded = parse_config(
      "{\"amp\": {\"enabled\": \"auto\", \"opt_level\": \"auto\"}, \"zero_optimization\": {"
      "\"stage\": 3, \"offload_param\": {\"device\": \"auto\"}, "
      "\"stage3_gather_16bit_weights_on_model_save\": \"auto\"}}",
      "f");
  CHECK(loaded.strategy() == Strategy::zero3());
  for (const ConfigKeyReport& key : loaded.keys()) {
    CHECK((key.outcome == Outcome::without_effect || key.path == "zero_optimization.stage"));
  }
  CHECK_THAT(only("{\"zero_optimization\": {\"stage\": \"auto\"}}"),
             ContainsSubstring("expected an integer"));
}

TEST_CASE("null is as if the key were not there, where DeepSpeed takes it") {
  const auto loaded = parse_config(
      "{\"zero_optimization\": {\"stage\": 3, \"offload_param\": null, \"overlap_comm\": null}, "
      "\"steps_per_print\": null, \"communication_data_type\": null, \"train_batch_size\": null}",
      "f");
  CHECK(loaded.strategy() == Strategy::zero3());
  CHECK_THAT(only("{\"zero_optimization\": {\"stage\": null}}"),
             ContainsSubstring("1:24: zero_optimization.stage: expected an integer, from 0 to 3, "
                               "found nothing (null)"));
}
