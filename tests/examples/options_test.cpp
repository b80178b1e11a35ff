#include "../../examples/train_gpt/options.hpp"

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <initializer_list>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "../../examples/train_gpt/backend.hpp"

namespace {

using namespace train_gpt;
using Catch::Matchers::ContainsSubstring;

Options parse(std::initializer_list<const char*> arguments) {
  std::vector<const char*> all = {"train_gpt"};
  all.insert(all.end(), arguments);
  return parse_options(static_cast<int>(all.size()), all.data());
}

int code_of(std::initializer_list<const char*> arguments) {
  try {
    static_cast<void>(parse(arguments));
  } catch (const OptionsExit& exit) {
    return exit.code();
  }
  return -1;
}

}  // namespace

TEST_CASE("defaults") {
  const Options o = parse({});
  CHECK(o.ranks == 2);
  CHECK(o.backend == "threads");
  CHECK(o.strategy == "zero3");
  CHECK(o.lease == "fp32");
  CHECK(o.gradient == "fp32");
  CHECK(o.optimizer == "adamw");
  CHECK(o.learning_rate == 1e-3);
  CHECK(o.micro_batches == 1);
  CHECK(o.accumulate == Accumulate::reduce);
  CHECK(o.clip == 0);
  CHECK(o.residency == "slots");
  CHECK(o.prefetch == 1);
  CHECK(o.seed == 1);
  CHECK_FALSE(o.world_of_one_reference);
}

TEST_CASE("groups divide the ranks") {
  CHECK(parse({"--ranks", "4", "--strategy", "hybrid", "--shard-group", "2"}).shard_group == 2);
  CHECK(code_of({"--ranks", "4", "--strategy", "hybrid"}) == 2);
  CHECK(code_of({"--ranks", "4", "--strategy", "hybrid", "--shard-group", "3"}) == 2);
  CHECK(code_of({"--ranks", "4", "--shard-group", "-1"}) != -1);
}

TEST_CASE("every option is read") {
  const Options o =
      parse({"--ranks",      "3",    "--backend",       "threads", "--strategy",      "zero1",
             "--lease",      "bf16", "--gradient",      "bf16",    "--optimizer",     "adamw",
             "--clip",       "0.5",  "--learning-rate", "0.01",    "--steps",         "7",
             "--layers",     "2",    "--width",         "48",      "--heads",         "6",
             "--sequence",   "32",   "--batch",         "12",      "--micro-batches", "2",
             "--accumulate", "hold", "--residency",     "slots",   "--prefetch",      "0",
             "--seed",       "9",    "--sample",        "5",       "--json",          "out.json"});
  CHECK(o.ranks == 3);
  CHECK(o.strategy == "zero1");
  CHECK(o.lease == "bf16");
  CHECK(o.gradient == "bf16");
  CHECK(o.clip == 0.5);
  CHECK(o.learning_rate == 0.01);
  CHECK(o.steps == 7);
  CHECK(o.layers == 2);
  CHECK(o.width == 48);
  CHECK(o.heads == 6);
  CHECK(o.sequence == 32);
  CHECK(o.batch == 12);
  CHECK(o.micro_batches == 2);
  CHECK(o.accumulate == Accumulate::hold);
  CHECK(o.prefetch == 0);
  CHECK(o.seed == 9);
  CHECK(o.sample == 5);
  CHECK(o.json == "out.json");
  CHECK(o.max_norm() == 0.5);
  const Share share(o, 2, 3);
  CHECK(share.sequences == 4);
  CHECK(share.at_once == 2);
  CHECK(share.first(0) == 8);
  CHECK(share.first(1) == 10);
  CHECK(share.loss_scale == 1.0 / (4 * 32));
}

TEST_CASE("a batch that does not divide names its numbers and the next one that does") {
  CHECK_THROWS_WITH(parse({"--ranks", "3", "--micro-batches", "4", "--batch", "16"}),
                    ContainsSubstring("--batch 16") && ContainsSubstring("3 ranks") &&
                        ContainsSubstring("4 micro-batches") && ContainsSubstring("is 24"));
  CHECK_THROWS_WITH(parse({"--ranks", "7", "--batch", "1"}), ContainsSubstring("is 7"));
  // The reference is a world of one.
  CHECK(parse({"--ranks", "3", "--batch", "16", "--world-of-one-reference"}).ranks == 1);
  CHECK(parse({"--monitor", "folder"}).monitor == "folder");
  CHECK(code_of({"--monitor", "folder", "--world-of-one-reference"}) == 2);
}

TEST_CASE("what does not fit together is refused") {
  CHECK_THROWS_WITH(parse({"--width", "64", "--heads", "6"}), ContainsSubstring("--width 64") &&
                                                                  ContainsSubstring("--heads 6") &&
                                                                  ContainsSubstring("66"));
  CHECK_THROWS_WITH(parse({"--backend", "self"}), ContainsSubstring("--ranks"));
  CHECK_THROWS_WITH(parse({"--micro-batches", "0"}), ContainsSubstring("--micro-batches 0"));
  CHECK(parse({"--backend", "self", "--ranks", "1"}).backend == "self");
}

TEST_CASE("wrong words end the program with a code, help with none") {
  CHECK(code_of({"--help"}) == 0);
  CHECK(code_of({"--steps", "many"}) > 0);
  CHECK(code_of({"--steps", "-1"}) > 0);
  CHECK(code_of({"--lease", "fp8"}) > 0);
  CHECK(code_of({"--accumulate", "sum"}) > 0);
  CHECK(code_of({"--accumulate", "7"}) > 0);
  CHECK(code_of({"--clip", "-1"}) > 0);
  CHECK(code_of({"--nothing"}) > 0);
  CHECK_THROWS_WITH(parse({"--lease", "fp8"}), ContainsSubstring("fp8"));
}

TEST_CASE("under an MPI launcher the ranks are its processes") {
  using Variables = std::map<std::string, std::string>;
  const auto settle = [](const Variables& set, Options o, bool backend_given, bool ranks_given) {
    settle_backend(o, backend_given, ranks_given, [&](const char* name) {
      const auto found = set.find(name);
      return found == set.end() ? std::nullopt : std::optional<std::string>(found->second);
    });
    return o;
  };
  const Variables one = {{"OMPI_COMM_WORLD_RANK", "0"}, {"OMPI_COMM_WORLD_SIZE", "1"}};
  const Variables three = {{"PMI_RANK", "2"}, {"PMI_SIZE", "3"}};
  Options o = settle(three, {}, false, false);
  CHECK(o.backend == "mpi");
  CHECK(o.ranks == 3);
  CHECK(o.process == 2);
  o = settle({}, {}, false, false);
  CHECK(o.backend == "threads");
  CHECK(o.ranks == 2);
  o = settle(one, {}, false, false);
  CHECK(o.backend == "mpi");
  CHECK(o.ranks == 1);
  Options four;
  four.ranks = 4;
  o = settle(one, four, false, true);  // a shell that a launcher started
  CHECK(o.backend == "threads");
  CHECK(o.ranks == 4);
  CHECK_THROWS_WITH(settle(three, four, false, true), ContainsSubstring("--ranks 4") &&
                                                          ContainsSubstring("PMI") &&
                                                          ContainsSubstring("2 of 3"));
  CHECK_THROWS_WITH(settle(three, {}, true, false),
                    ContainsSubstring("--backend threads") && ContainsSubstring("2 of 3"));
  four.backend = "mpi";
  CHECK_THROWS_WITH(settle({}, four, true, true), ContainsSubstring("mpirun -n 4"));
  Variables both = three;
  both.insert(one.begin(), one.end());
  CHECK_THROWS_WITH(settle(both, {}, false, false),
                    ContainsSubstring("Open MPI") && ContainsSubstring("PMI"));
}
