#include "support/property.hpp"

#include <catch2/catch_test_macros.hpp>
#include <vector>

using shardwise::test::check_property;

TEST_CASE("a property that holds passes") {
  int runs = 0;
  check_property(
      "reversing twice is nothing",
      [&](const std::vector<int>& values) {
        ++runs;
        RC_ASSERT(std::vector<int>(values.rbegin(), values.rend()).size() == values.size());
      },
      40);
  CHECK(runs == 40);
}

TEST_CASE("a property that is false fails its test case", "[!shouldfail]") {
  check_property("no number is above 9", [](unsigned value) { RC_ASSERT(value < 10u); });
}
