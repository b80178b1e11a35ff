// The program `plan`: what it reads, what it says.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "../examples/plan/hardware_file.hpp"
#include "../examples/plan/options.hpp"
#include "../examples/plan/planned_gpt.hpp"
#include "../examples/plan/presets.hpp"
#include "../examples/plan/quantity.hpp"
#include "../examples/plan/report.hpp"
#include "../examples/train_gpt/train.hpp"

using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::WithinRel;
using Json = nlohmann::json;

namespace {

plan::Options parse(std::vector<const char*> arguments) {
  arguments.insert(arguments.begin(), "plan");
  return plan::parse_options(static_cast<int>(arguments.size()), arguments.data());
}

std::string refusal(std::vector<const char*> arguments) {
  try {
    static_cast<void>(parse(std::move(arguments)));
    return "accepted";
  } catch (const train_gpt::OptionsExit& exit) {
    return exit.what();
  }
}

Json run(std::vector<const char*> arguments, std::string* text = nullptr) {
  const plan::Options options = parse(std::move(arguments));
  const auto model = plan::model_of(options);
  const auto hardware = plan::hardware_of(options);
  const auto result = plan::make_plan(model, hardware, plan::request_of(options));
  if (text != nullptr) *text = plan::table(options, model, hardware, result);
  return Json::parse(plan::to_json(options, model, hardware, result));
}

double at_rest(const Json& strategy) {
  const Json& bytes = strategy["bytes_per_rank"];
  return bytes["parameters"].get<double>() + bytes["gradients"].get<double>() +
         bytes["optimizer_state"].get<double>();
}

}  // namespace

TEST_CASE("the table of the ZeRO paper comes out") {
  // Rajbhandari et al., 2020, figure 1: 7.5e9 parameters on 64 devices, mixed precision, Adam.
  std::string text;
  const Json json = run({"--params", "7.5e9", "--devices", "64"}, &text);
  const Json& rows = json["strategies"];
  REQUIRE(rows.size() == 6);
  CHECK(rows[5]["name"] == "hybrid-8");
  const std::vector<std::pair<std::string, double>> expected{
      {"ddp", 120e9}, {"zero1", 31.4e9}, {"zero2", 16.6e9}, {"zero3", 1.64e9}};
  for (std::size_t i = 0; i < expected.size(); ++i) {
    CHECK(rows[i]["name"] == expected[i].first);
    CHECK_THAT(at_rest(rows[i]), WithinRel(expected[i].second, 0.003));
    CHECK(rows[i]["bytes_per_rank"]["slots"].is_null());
    CHECK(rows[i]["bytes_per_rank"]["peak"].is_null());
    CHECK(rows[i]["step_ms"].is_null());
  }
  CHECK_FALSE(rows[0]["fits"].get<bool>());
  CHECK(rows[3]["fits"].get<bool>());
  CHECK_THAT(text, ContainsSubstring("give --layers and --width"));
  CHECK_THAT(json["missing"].get<std::string>(), ContainsSubstring("--layers and --width"));
  CHECK(json["recommended"] == "zero1");
}

TEST_CASE("known models have the parameters that they are known for") {
  const auto elements = [](const char* name) {
    return shardwise::plan_transformer(plan::model_preset(name).shape, {}, std::nullopt, {})
        .elements();
  };
  CHECK(elements("gpt2") == 124'439'808);
  CHECK(elements("gpt2-xl") == 1'557'611'200);
  CHECK(elements("llama-7b") == 6'738'415'616);
  CHECK(elements("llama-13b") == 13'015'864'320);
  CHECK(elements("llama-65b") == 65'285'660'672);
  CHECK(elements("llama2-70b") == 68'976'648'192);
  CHECK(elements("llama3-8b") == 8'030'261'248);
  CHECK(elements("llama3-405b") == 405'853'388'800);
}

TEST_CASE("a plan has every strategy with bytes, traffic and time") {
  const Json json = run({"--model", "llama-7b", "--devices", "16", "--device-memory", "40GiB"});
  CHECK(json["nodes"] == 2);
  CHECK(json["device_memory"] == std::size_t{40} << 30);
  for (const Json& row : json["strategies"]) {
    INFO(row.dump());
    const Json& bytes = row["bytes_per_rank"];
    CHECK(bytes["peak"].get<std::size_t>() ==
          bytes["parameters"].get<std::size_t>() + bytes["gradients"].get<std::size_t>() +
              bytes["optimizer_state"].get<std::size_t>() + bytes["slots"].get<std::size_t>());
    CHECK(row["step_ms"].get<double>() > 100);
    CHECK(row["traffic_per_step"]["calls"]["reduce_scatter"].is_number());
    CHECK(row["fits"].get<bool>() == (row["spare_bytes"].get<double>() >= 0));
  }
  CHECK_FALSE(json["strategies"][0]["fits"].get<bool>());
  CHECK(json["recommended"].is_string());
  CHECK(json["strategies"].back()["name"] == "hybrid-8");
  CHECK(run({"--model", "gpt2", "--devices", "8"})["strategies"].size() == 5);
}

TEST_CASE("what a backend needs for its sums is a part of the slots") {
  const auto slots = [](const std::vector<const char*>& more) {
    std::vector<const char*> arguments{"--model", "gpt2", "--devices", "8"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run(arguments)["strategies"][3]["bytes_per_rank"]["slots"].get<std::size_t>();
  };
  const std::size_t threads = slots({"--backend", "threads"});
  CHECK(slots({"--backend", "nccl"}) == slots({}));
  CHECK(slots({"--backend", "nccl", "--order", "canonical"}) > threads);
  // MPI sums chunk by chunk: two of 512 KiB land from each of seven others.
  CHECK(slots({"--backend", "mpi"}) == threads + 2 * 7 * (std::size_t{512} << 10));
  // Its own sums want the rank's whole part, of types that MPI can add.
  CHECK(slots({"--backend", "mpi", "--order", "fast"}) == slots({"--backend", "mpi"}));
  CHECK(slots({"--lease", "fp32", "--backend", "mpi", "--order", "fast"}) >
        slots({"--lease", "fp32", "--backend", "mpi"}));
}

TEST_CASE("of shared parameters a rank has its part in every strategy that shares them") {
  std::string text;
  const Json slots = run({"--model", "gpt2", "--devices", "8"});
  const Json json = run({"--model", "gpt2", "--devices", "8", "--residency", "shared"}, &text);
  CHECK_THAT(text, ContainsSubstring("shared by the ranks"));
  const auto parameters = [](const Json& of, std::size_t row) {
    return of["strategies"][row]["bytes_per_rank"]["parameters"].get<std::size_t>();
  };
  CHECK(json["strategies"][0]["residency"] == "slots");
  CHECK(parameters(json, 0) == parameters(slots, 0));
  for (std::size_t row = 1; row < 5; ++row) {
    INFO(json["strategies"][row].dump());
    CHECK(json["strategies"][row]["residency"] == "shared");
    CHECK(json["strategies"][row]["step_ms"].is_null());
    CHECK(parameters(json, row) == parameters(slots, 3));  // zero3's
    CHECK(json["strategies"][row]["bytes_per_rank"]["peak"] <=
          slots["strategies"][row]["bytes_per_rank"]["peak"]);
  }
}

TEST_CASE("sizes and a number of parameters leave the rest to the embedding") {
  const Json json = run({"--params", "7e9", "--layers", "32", "--width", "4096"});
  CHECK_THAT(json["parameters"].get<double>(), WithinRel(7e9, 1e-5));
  CHECK_THAT(refusal({"--params", "1e9", "--layers", "32", "--width", "4096"}),
             ContainsSubstring("more than --params 1e+09"));
}

TEST_CASE("a known model may be trained on other sequences") {
  const auto activations = [](const char* sequence) {
    return run({"--model", "llama-7b", "--sequence", sequence})["strategies"][0]["activation_bytes"]
        .get<double>();
  };
  CHECK(activations("1024") * 2 == activations("2048"));
}

TEST_CASE("faster links make the step no slower, and flops shorten it") {
  const auto zero3 = [](std::vector<const char*> more) {
    std::vector<const char*> all{"--model", "gpt2-xl", "--devices", "8"};
    all.insert(all.end(), more.begin(), more.end());
    return run(all)["strategies"][3]["step_ms"].get<double>();
  };
  CHECK(zero3({"--link", "20GB/s"}) > 1.5 * zero3({"--link", "450GB/s"}));
  CHECK(zero3({"--flops", "500e12"}) < zero3({"--flops", "250e12"}));
}

TEST_CASE("what does not fit together is refused with what to do") {
  CHECK_THAT(refusal({}), ContainsSubstring("which model?"));
  CHECK_THAT(refusal({"--model", "gpt9"}),
             ContainsSubstring("there is no model 'gpt9'; there is gpt2,"));
  CHECK_THAT(refusal({"--model", "gpt2", "--params", "1e9"}),
             ContainsSubstring("leave --params out"));
  CHECK_THAT(refusal({"--model", "gpt2", "--heads", "3"}), ContainsSubstring("leave --heads out"));
  CHECK_THAT(refusal({"--params", "1e9", "--layers", "3"}), ContainsSubstring("give both"));
  CHECK_THAT(refusal({"--width", "64"}), ContainsSubstring("give both"));
  CHECK_THAT(refusal({"--model", "gpt2", "--device", "tpu"}), ContainsSubstring("a100-80gb"));
  CHECK_THAT(refusal({"--model", "gpt2", "--devices", "9", "--nodes", "2"}),
             ContainsSubstring("same number on each"));
  CHECK_THAT(refusal({"--model", "gpt2", "--link", "fast"}), ContainsSubstring("is no number"));
  CHECK_THAT(refusal({"--layers", "2", "--width", "100", "--heads", "7"}),
             ContainsSubstring("do not divide"));
  CHECK_THAT(refusal({"--model", "gpt2", "--optimizer", "adamx"}), ContainsSubstring("adamw"));
  CHECK_THAT(refusal({"--model", "gpt2", "--residency", "shared", "--backend", "nccl"}),
             ContainsSubstring("--backend threads or mpi"));
}

TEST_CASE("quantities have units") {
  CHECK(plan::quantity("80GiB") == 80.0 * (1 << 30));
  CHECK(plan::quantity("450GB/s") == 450e9);
  CHECK(plan::quantity("400Gb/s") == 50e9);
  CHECK(plan::quantity("7e9") == 7e9);
  CHECK(plan::quantity("7B") == 7e9);
  CHECK(plan::quantity("1.5 TB") == 1.5e12);
  CHECK_THAT(plan::quantity("5us"), WithinRel(5e-6));
  for (const char* wrong : {"", "x", "-1", "5 parsecs", "1e999", "5Gx/s"}) {
    INFO(wrong);
    CHECK_THROWS_AS(plan::quantity(wrong), std::invalid_argument);
  }
}

TEST_CASE("hardware is written and read") {
  const std::string file = "plan_hardware_test.json";
  shardwise::Hardware hardware =
      plan::hardware_of(plan::device_preset("h100"), plan::network_preset("ib-ndr"), 4);
  hardware.exponentials = 3e8;
  hardware.element_bandwidth = 4e9;
  hardware.processor.inline_compute = true;
  hardware.processor.overlap_from = 123;
  hardware.topology.measured = shardwise::MeasuredCollectives{{1, 2}, {3, 4}, {5, 6}, 7};
  plan::write_hardware(hardware, file);
  CHECK(plan::read_hardware(file) == hardware);
  CHECK_THAT(refusal({"--model", "gpt2", "--devices", "8", "--hardware", file.c_str()}),
             ContainsSubstring("measured with 4 ranks"));
  const auto refused = [&](const char* text) {
    std::ofstream(file) << text;
    try {
      static_cast<void>(plan::read_hardware(file));
      return std::string("accepted");
    } catch (const std::invalid_argument& error) {
      return std::string(error.what());
    }
  };
  CHECK_THAT(refused("{"), ContainsSubstring("is no JSON"));
  CHECK_THAT(refused(R"({"flop": 1})"), ContainsSubstring("flop: unknown key"));
  CHECK_THAT(refused(R"({"topology": {"node": {"latency": "x"}}})"),
             ContainsSubstring("topology.node.latency has the wrong type"));
  std::remove(file.c_str());
}

TEST_CASE("train_gpt holds and sends what its plan says, with every strategy") {
  train_gpt::Options options;
  options.steps = 2;
  options.layers = 3;
  options.width = 32;
  options.sequence = 16;
  options.quiet = true;
  shardwise::Hardware hardware;
  hardware.flops = 1e9;
  const auto compare = [&](const char* residency, bool reduced) {
    options.batch = 4 * options.ranks;
    options.residency = residency;
    options.micro_batches = reduced ? 2 : 1;
    options.accumulate = reduced ? train_gpt::Accumulate::hold : train_gpt::Accumulate::reduce;
    options.lease = reduced ? "bf16" : "fp32";
    options.gradient = options.lease;
    options.prefetch = reduced ? 2 : 1;
    // What the caller runs is not gathered ahead of use, so more of it is there still.
    hardware.processor.overlap_from = shardwise::HostDevice::overlap_from(options.ranks);
    const train_gpt::Report report = train_gpt::sharded::train(options);
    const auto step = plan::predict_gpt(options, hardware);
    INFO(options.strategy << " ranks " << options.ranks << " reduced " << reduced << " "
                          << residency);
    CHECK(step.bytes.parameters == report.bytes_per_rank.parameters);
    CHECK(step.bytes.gradients == report.bytes_per_rank.gradients);
    CHECK(step.bytes.optimizer_state == report.bytes_per_rank.optimizer_state);
    CHECK(step.bytes.slots == report.bytes_per_rank.slots);
    CHECK(step.bytes.total() == report.bytes_per_rank.peak);
    CHECK(report.planned_bytes_per_rank.peak == report.bytes_per_rank.peak);
    CHECK(step.traffic.all_gather == report.traffic_per_step.all_gather.bytes);
    CHECK(step.traffic.all_gather_calls == report.traffic_per_step.all_gather.calls);
    CHECK(step.traffic.reduce_scatter == report.traffic_per_step.reduce_scatter.bytes);
    CHECK(step.traffic.all_reduce == report.traffic_per_step.all_reduce.bytes);
    CHECK(step.traffic.scalar_calls == report.scalars_per_step);
  };
  for (const auto name : shardwise::planned_strategies) {
    options.strategy = name;
    for (const std::size_t ranks : {1u, 2u, 3u, 4u, 7u}) {
      options.ranks = ranks;
      for (const bool reduced : {false, true}) {
        compare("slots", reduced);
        if (name != "ddp") compare("shared", reduced);
      }
    }
  }
}
