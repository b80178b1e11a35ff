#include "../../examples/train_gpt/text.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace {

using namespace train_gpt;
namespace fs = std::filesystem;

/// 0, 1, 2, ... 250, 0, 1, ...
Text counting(std::size_t size) {
  std::string bytes(size, '\0');
  for (std::size_t i = 0; i < size; ++i) bytes[i] = static_cast<char>(i % 251);
  return Text(std::move(bytes));
}

std::vector<std::uint8_t> copy(std::span<const std::uint8_t> bytes) {
  return {bytes.begin(), bytes.end()};
}

}  // namespace

TEST_CASE("targets are the bytes that follow") {
  const Text text = counting(251);
  std::array<std::uint8_t, 16> inputs{};
  std::array<std::uint8_t, 16> targets{};
  std::set<std::uint8_t> starts;
  for (std::size_t step = 0; step < 2000; ++step) {
    text.read(7, step, 0, inputs, targets);
    REQUIRE(std::equal(inputs.begin() + 1, inputs.end(), targets.begin()));
    REQUIRE(targets.back() == inputs.back() + 1);
    starts.insert(inputs.front());
  }
  // Every place is drawn, the first and the last included.
  CHECK(starts.size() == 251 - 16);
  CHECK(*starts.begin() == 0);
}

TEST_CASE("a sequence depends on seed, step and its number, not on how a step is cut") {
  const Text text = counting(10000);
  Batch whole(12, 8);
  whole.read(text, 1, 3, 0);
  for (const std::size_t parts : {2u, 3u, 4u, 6u, 12u}) {
    Batch part(12 / parts, 8);
    std::vector<std::uint8_t> inputs;
    std::vector<std::uint8_t> targets;
    for (std::size_t first = 0; first < 12; first += 12 / parts) {
      part.read(text, 1, 3, first);
      inputs.insert(inputs.end(), part.inputs().begin(), part.inputs().end());
      targets.insert(targets.end(), part.targets().begin(), part.targets().end());
    }
    CHECK(inputs == copy(whole.inputs()));
    CHECK(targets == copy(whole.targets()));
  }
  for (const auto& [seed, step, first] :
       {std::array<std::size_t, 3>{2, 3, 0}, {1, 4, 0}, {1, 3, 1}}) {
    Batch other(12, 8);
    other.read(text, seed, step, first);
    CHECK(copy(other.inputs()) != copy(whole.inputs()));
  }
}

TEST_CASE("a folder is its regular files in order of name, links left out") {
  const fs::path folder =
      fs::temp_directory_path() / fmt::format("shardwise_text_test.{}", ::getpid());
  fs::remove_all(folder);
  fs::create_directories(folder / "inner");
  std::ofstream(folder / "b") << "second";
  std::ofstream(folder / "a") << "first ";
  fs::create_symlink("b", folder / "c");
  CHECK(Text::load_folder(folder).size() == std::string("first second").size());
  CHECK(Text::load(folder / "b").size() == 6);
  CHECK(Text::load_folder(folder / "nowhere").size() == 0);
  CHECK_THROWS_WITH(Text::load(folder / "nowhere"), Catch::Matchers::ContainsSubstring("nowhere"));
  fs::remove_all(folder);
}

TEST_CASE("a text that is too short is refused by its numbers") {
  const Text text = counting(64);
  text.require(63);
  CHECK_THROWS_WITH(text.require(64), Catch::Matchers::ContainsSubstring("64 bytes") &&
                                          Catch::Matchers::ContainsSubstring("65"));
}
