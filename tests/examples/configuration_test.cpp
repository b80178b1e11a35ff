#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <filesystem>
#include <fstream>
#include <shardwise/strategy.hpp>
#include <string>
#include <vector>

#include "../../examples/train_gpt/options.hpp"
#include "../../examples/train_gpt/sharding.hpp"
#include "../../examples/train_gpt/train.hpp"

using namespace train_gpt;
using Catch::Matchers::ContainsSubstring;

namespace {

Options parse(const std::vector<std::string>& arguments) {
  std::vector<const char*> all = {"train_gpt"};
  for (const std::string& argument : arguments) all.push_back(argument.c_str());
  return parse_options(static_cast<int>(all.size()), all.data());
}

// What the program says where it ends.
std::string refusal(const std::vector<std::string>& arguments) {
  try {
    static_cast<void>(parse(arguments));
  } catch (const OptionsExit& exit) {
    CHECK(exit.code() == 2);
    return exit.what();
  }
  return {};
}

// A file of this test's own; gone at its end.
class File {
 public:
  explicit File(const std::string& text)
      : path_(std::filesystem::temp_directory_path() /
              ("shardwise-configuration-test-" + std::to_string(::getpid()))) {
    std::ofstream(path_) << text;
  }
  ~File() { std::filesystem::remove(path_); }
  [[nodiscard]] std::string name() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

std::string example(const std::string& name) {
  return std::string(SHARDWISE_PROJECT_DIR) + "/examples/configs/" + name;
}

}  // namespace

TEST_CASE("a file of configuration says what options would") {
  const File file(
      "strategy: zero2\nbucket_bytes: 1MiB\nprefetch: 2\nlease: bf16\ngradient_storage: bf16\n"
      "accumulation: hold\nranks: 3\nmicro_batch: 2\nmicro_batches: 4\nclip: 0.5\n");
  const Options o = parse({"--config", file.name()});
  CHECK(o.ranks == 3);
  CHECK(o.batch == 24);
  CHECK(o.micro_batches == 4);
  CHECK(o.lease == "bf16");
  CHECK(o.gradient == "bf16");
  CHECK(o.clip == 0.5);
  CHECK(o.accumulate == Accumulate::hold);
  const shardwise::Strategy strategy = strategy_of(o);
  CHECK(strategy.name() == "zero2");
  CHECK(strategy.bucket_bytes == 1u << 20);
  CHECK(strategy.prefetch == 2);
  CHECK_THAT(o.effective, ContainsSubstring("global_batch: 24") &&
                              ContainsSubstring("# ranks x micro_batch x micro_batches") &&
                              ContainsSubstring(file.name() + ":2:15: bucket_bytes"));
}

TEST_CASE("options override the file, and the effective text says so") {
  const File file(
      "strategy: zero2\nprefetch: 2\nlease: bf16\nranks: 3\nmicro_batch: 2\nmicro_batches: 4\n");
  const Options o =
      parse({"--config", file.name(), "--strategy", "zero3", "--lease", "fp32", "--prefetch", "0",
             "--ranks", "2", "--accumulate", "hold", "--clip", "0.25"});
  const shardwise::Strategy strategy = strategy_of(o);
  CHECK(strategy.name() == "zero3");
  CHECK(strategy.prefetch == 0);
  CHECK(strategy.lease == shardwise::DType::f32);
  CHECK(strategy.accumulation == shardwise::Accumulation::hold);
  CHECK(o.lease == "fp32");
  CHECK(o.batch == 16);  // as many of a rank as the file says
  CHECK(o.clip == 0.25);
  for (const char* line : {"strategy: zero3", "# --strategy", "# --lease", "# --prefetch",
                           "# --ranks", "# --accumulate", "# --clip"}) {
    CHECK_THAT(o.effective, ContainsSubstring(line));
  }
  const Options resized = parse({"--config", file.name(), "--batch", "48"});
  CHECK(resized.batch == 48);
  CHECK_THAT(resized.effective, ContainsSubstring("micro_batch: 4") &&
                                    ContainsSubstring("# global_batch / ranks / micro_batches"));
}

TEST_CASE("auto in DeepSpeed's file is what the options and the model say") {
  const Options o = parse({"--config", example("deepspeed_zero3.json"), "--width", "128", "--batch",
                           "12", "--ranks", "3", "--micro-batches", "2"});
  CHECK(strategy_of(o).persistence_threshold == 1280);
  CHECK(o.batch == 12);
  CHECK_THAT(o.effective,
             ContainsSubstring("micro_batch: 2") && ContainsSubstring("14745 elements"));
  // The batch tells how many ranks there are, if no option does.
  const File file(
      "{\"train_batch_size\": 24, \"train_micro_batch_size_per_gpu\": 2, "
      "\"gradient_accumulation_steps\": 3}");
  CHECK(parse({"--config", file.name()}).ranks == 4);
  CHECK_THAT(refusal({"--config", file.name(), "--ranks", "3"}),
             ContainsSubstring("24 is not 3 x 2 x 3"));
}

TEST_CASE("a file that is refused ends the program with every reason") {
  const File file("{\"zero_optimization\": {\"stge\": 3, \"stage\": 4}}");
  CHECK_THAT(refusal({"--config", file.name()}),
             ContainsSubstring(":1:24: zero_optimization.stge: unknown key") &&
                 ContainsSubstring(":1:44: zero_optimization.stage: expected"));
  const File offload("{\"zero_optimization\": {\"stage\": 2, \"cpu_offload\": true}}");
  CHECK_THAT(refusal({"--config", offload.name()}), ContainsSubstring("--allow-unsupported"));
  CHECK_THAT(parse({"--config", offload.name(), "--allow-unsupported"}).effective,
             ContainsSubstring("# refused:"));
}

TEST_CASE("what the library can and this trainer cannot is refused by its place") {
  const auto why = [](const std::string& text) {
    const File file(text);
    return refusal({"--config", file.name()});
  };
  CHECK_THAT(why("lease: f64\n"), ContainsSubstring(":1:8: lease: lease = f64"));
  CHECK_THAT(why("lease: bf16\ngradient_lease: f32\n"), ContainsSubstring("in the lease type"));
  CHECK_THAT(why("gradient_storage: f16\n"), ContainsSubstring("in fp32 or bf16"));
  CHECK_THAT(why("ranks: 3\nglobal_batch: 7\n"), ContainsSubstring("does not divide"));
  const File scaled("{\"fp16\": {\"enabled\": true, \"loss_scale\": 8}}");
  CHECK_THAT(parse({"--config", scaled.name()}).effective,
             ContainsSubstring("does not scale its loss"));
}

TEST_CASE("each file of examples/configs trains, to the bits of the strategy that it names") {
  const std::vector<std::string> model = {"--steps", "2",          "--layers", "2",       "--width",
                                          "16",      "--sequence", "8",        "--ranks", "2",
                                          "--quiet", "--clip",     "1"};
  std::string expected;
  std::size_t files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(example(""))) {
    std::vector<std::string> arguments = {"--config", entry.path().string()};
    arguments.insert(arguments.end(), model.begin(), model.end());
    const Options o = parse(arguments);
    INFO(entry.path().filename().string());
    CHECK(o.lease == "bf16");
    const Report report = sharded::train(o);
    CHECK(report.strategy == o.strategy);
    // All strategies train the same bits.
    if (expected.empty()) expected = report.parameters_hash;
    CHECK(report.parameters_hash == expected);
    ++files;
  }
  CHECK(files == 12);
  std::vector<std::string> plain = model;
  plain.insert(plain.end(), {"--lease", "bf16", "--strategy", "zero2"});
  CHECK(sharded::train(parse(plain)).parameters_hash == expected);
}
