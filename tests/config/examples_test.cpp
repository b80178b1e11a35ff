#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <filesystem>
#include <map>
#include <set>
#include <shardwise/config.hpp>
#include <string>

#include "fixtures.hpp"

using namespace shardwise;
using namespace shardwise::test;

TEST_CASE(
    "each file of examples/configs loads, is annotated, and is the strategy that it is named for") {
  const std::map<std::string, std::string> expected = {
      {"ddp.yaml", "ddp"},
      {"zero1.yaml", "zero1"},
      {"zero2.yaml", "zero2"},
      {"zero3.yaml", "zero3"},
      {"zero3-no-reshard.yaml", "zero3-no-reshard"},
      {"deepspeed_zero0.json", "ddp"},
      {"deepspeed_zero1.json", "zero1"},
      {"deepspeed_zero2.json", "zero2"},
      {"deepspeed_zero3.json", "zero3"},
      {"fsdp_full_shard.yaml", "zero3"},
      {"fsdp_shard_grad_op.yaml", "zero3-no-reshard"},
      {"fsdp2.yaml", "zero3"}};
  std::map<std::string, std::string> found;
  for (const auto& entry : std::filesystem::directory_iterator(project_file("examples/configs"))) {
    const std::string name = entry.path().filename().string();
    INFO(name);
    const auto loaded = load_config(entry.path().string(), all_hints());
    found[name] = loaded.strategy().name();
    CHECK(parse_config(loaded.print(), "printed").values() == loaded.values());
    const std::string text = read_text(entry.path().string());
    CHECK(std::count(text.begin(), text.end(), '\n') > 5);
    CHECK((text.starts_with("#") || text.starts_with("//")));
    CHECK(loaded.strategy().lease == DType::bf16);
  }
  CHECK(found == expected);
}

TEST_CASE("the file that a refusal names is there") {
  std::set<std::string> named;
  for (const char* stage : {"0", "1", "2", "3"}) {
    for (const ConfigProblem& problem :
         problems_of("{\"zero_optimization\": {\"stage\": " + std::string(stage) +
                     ", \"cpu_offload\": true}}")) {
      named.insert(problem.message);
    }
  }
  for (const char* keys :
       {"  fsdp_version: 2\n", "  fsdp_sharding_strategy: FULL_SHARD\n",
        "  fsdp_sharding_strategy: SHARD_GRAD_OP\n", "  fsdp_sharding_strategy: NO_SHARD\n"}) {
    for (const ConfigProblem& problem :
         problems_of("distributed_type: FSDP\nfsdp_config:\n  fsdp_offload_params: true\n" +
                     std::string(keys))) {
      named.insert(problem.message);
    }
  }
  CHECK(named.size() == 8);
  for (const std::string& message : named) {
    const std::size_t begin = message.find("examples/configs/");
    REQUIRE(begin != std::string::npos);
    const std::string file = message.substr(begin, message.find(';', begin) - begin);
    INFO(file);
    CHECK(std::filesystem::exists(project_file(file)));
  }
}
