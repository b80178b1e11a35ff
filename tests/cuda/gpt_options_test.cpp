#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <initializer_list>
#include <string>
#include <vector>

#include "../../examples/cuda_gpt/options.hpp"

namespace {

using Catch::Matchers::ContainsSubstring;
using cuda_gpt::Options;
using train_gpt::OptionsExit;

Options parse(std::initializer_list<const char*> arguments, std::size_t processes = 0) {
  std::vector<const char*> all = {"cuda_gpt"};
  all.insert(all.end(), arguments);
  return cuda_gpt::parse_options(static_cast<int>(all.size()), all.data(), processes);
}

}  // namespace

TEST_CASE("defaults of cuda_gpt are those of train_gpt, on one device") {
  const Options o = parse({});
  const train_gpt::Options expected;
  CHECK(o.ranks == 1);
  CHECK(o.strategy == expected.strategy);
  CHECK(o.lease == expected.lease);
  CHECK(o.prefetch == expected.prefetch);
  CHECK(o.steps == expected.steps);
  CHECK(o.layers == expected.layers);
  CHECK(o.learning_rate == expected.learning_rate);
  CHECK_FALSE(o.fast_reductions);
  CHECK_FALSE(o.in_place);
}

TEST_CASE("every option of cuda_gpt is read") {
  const Options o = parse({"--ranks",         "3",    "--strategy",        "zero2",
                           "--lease",         "bf16", "--prefetch",        "2",
                           "--clip",          "0.5",  "--steps",           "7",
                           "--learning-rate", "1e-2", "--batch",           "12",
                           "--seed",          "9",    "--micro-batches",   "2",
                           "--accumulate",    "hold", "--layers",          "5",
                           "--width",         "48",   "--heads",           "3",
                           "--sequence",      "10",   "--sample",          "11",
                           "--json",          "file", "--fast-reductions", "--in-place",
                           "--quiet"});
  CHECK(o.ranks == 3);
  CHECK(o.strategy == "zero2");
  CHECK(o.lease == "bf16");
  CHECK(o.prefetch == 2);
  CHECK(o.clip == 0.5);
  CHECK(o.steps == 7);
  CHECK(o.learning_rate == 1e-2);
  CHECK(o.batch == 12);
  CHECK(o.seed == 9);
  CHECK(o.micro_batches == 2);
  CHECK(o.accumulate == train_gpt::Accumulate::hold);
  CHECK(o.layers == 5);
  CHECK(o.width == 48);
  CHECK(o.heads == 3);
  CHECK(o.sequence == 10);
  CHECK(o.sample == 11);
  CHECK(o.json == "file");
  CHECK(o.fast_reductions);
  CHECK(o.in_place);
  CHECK(o.quiet);
}

TEST_CASE("a launcher's processes are the ranks of cuda_gpt") {
  CHECK(parse({}, 4).ranks == 4);
  CHECK(parse({"--ranks", "4"}, 4).ranks == 4);
  CHECK_THROWS_WITH(parse({"--ranks", "2"}, 4), ContainsSubstring("has started 4 processes"));
  // What does not divide is seen with the ranks that there are.
  CHECK_THROWS_WITH(parse({"--batch", "6"}, 4), ContainsSubstring("4 ranks"));
}

TEST_CASE("cuda_gpt refuses what it does not know") {
  CHECK_THROWS_AS(parse({"--lease", "f16"}), OptionsExit);
  CHECK_THROWS_AS(parse({"--backend", "self"}), OptionsExit);
  CHECK_THROWS_AS(parse({"--ranks", "-1"}), OptionsExit);
  CHECK_THROWS_WITH(parse({"--help"}), ContainsSubstring("torchrun, mpirun or srun"));
}
