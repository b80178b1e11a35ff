#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cstddef>
#include <optional>
#include <shardwise/comm/thread.hpp>
#include <shardwise/config.hpp>
#include <string>
#include <vector>

#include "fixtures.hpp"
#include "support/ranks.hpp"

using namespace shardwise;
using namespace shardwise::test;
using Catch::Matchers::ContainsSubstring;

namespace {

// What each rank says: "" where it returns.
template <class F>
std::vector<std::string> messages(int world, F&& f) {
  return on_threads(world, [&](Communicator& comm) {
    try {
      f(comm);
    } catch (const ConfigError& error) {
      return std::string(error.what());
    }
    return std::string();
  });
}

}  // namespace

TEST_CASE("ranks with equal values agree, wherever these come from") {
  for (const int world : {1, 2, 3, 7}) {
    const auto said = messages(world, [](Communicator& comm) {
      auto loaded = parse_config("strategy: zero2\nprefetch: 2\n", "f");
      if (comm.rank() > 0) {
        loaded = parse_config("prefetch: 2\nstrategy: zero2\n",
                              "of rank " + std::to_string(comm.rank()));
      }
      agree(comm, loaded);
    });
    CHECK(std::count(said.begin(), said.end(), "") == world);
  }
}

TEST_CASE("a difference names the first field that differs, on all ranks alike") {
  for (const int world : {2, 3, 7}) {
    const auto said = messages(world, [&](Communicator& comm) {
      auto loaded = parse_config("strategy: zero2\nprefetch: 2\n", "f");
      if (comm.rank() == world - 1) {
        loaded.override_field(ConfigField::clip, "1", "--clip");
        loaded.override_field(ConfigField::prefetch, "3", "--prefetch");
      }
      agree(comm, loaded);
    });
    REQUIRE(said[0] ==
            "the ranks' configurations differ: prefetch is 2 on rank 0 (f:2:11: prefetch) and 3 on "
            "rank " +
                std::to_string(world - 1) +
                " (--prefetch); start all ranks with one file and "
                "equal options");
    CHECK(std::count(said.begin(), said.end(), said[0]) == world);
  }
  const auto said = messages(2, [](Communicator& comm) {
    auto loaded = parse_config("strategy: zero2\n", "f");
    if (comm.rank() == 0) loaded.override_field(ConfigField::clip, "1", "--clip");
    agree(comm, loaded);
  });
  CHECK_THAT(said[0], ContainsSubstring("clip is 1 on rank 0 (--clip) and not set on rank 1"));
}

TEST_CASE("every field is compared") {
  for (std::size_t i = 0; i < config_field_count; ++i) {
    const auto field = static_cast<ConfigField>(i);
    INFO(name_of(field));
    const auto said = messages(2, [&](Communicator& comm) {
      auto loaded = parse_config("strategy: zero3\n", "f");
      if (comm.rank() == 1) {
        // One of these is of its domain and not its default.
        for (const char* text : {"replicated", "false", "3", "bf16", "hold", "shared"}) {
          try {
            loaded.override_field(field, text, "--x");
            break;
          } catch (const ConfigError&) {
          }
        }
      }
      agree(comm, loaded);
    });
    CHECK_THAT(said[0], ContainsSubstring("differ: " + std::string(name_of(field)) + " is"));
    CHECK(said[0] == said[1]);
  }
}

TEST_CASE("a file that one rank cannot read is the same error on all") {
  for (const int world : {1, 2, 4}) {
    const auto said = messages(world, [&](Communicator& comm) {
      const bool last = comm.rank() == world - 1;
      Hints hints = all_hints();
      hints.world = std::nullopt;
      static_cast<void>(load_config(
          comm, last ? std::string("nowhere.json") : fixture("deepspeed_z2.json"), hints));
    });
    CHECK(said[0] ==
          "on rank " + std::to_string(world - 1) + ": nowhere.json: the file cannot be read");
    CHECK(std::count(said.begin(), said.end(), said[0]) == world);
  }
}

TEST_CASE("the world is the communicator's") {
  for (const int world : {1, 3}) {
    const auto batches = on_threads(world, [](Communicator& comm) {
      Hints hints = all_hints();
      hints.world = std::nullopt;
      return load_config(comm, fixture("deepspeed_z2.json"), hints).values().global_batch;
    });
    for (const auto& batch : batches) CHECK(batch == static_cast<std::size_t>(world) * 6);
  }
  const auto said = messages(
      3, [](Communicator& comm) { static_cast<void>(load_config(comm, fixture("fsdp_v1.yaml"))); });
  CHECK_THAT(said[0],
             ContainsSubstring("19:16: num_processes: it is for 2 ranks, and there are 3"));
  CHECK(std::count(said.begin(), said.end(), said[0]) == 3);
}
