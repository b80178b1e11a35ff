#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <shardwise/core/checked.hpp>
#include <type_traits>
#include <vector>

using namespace shardwise;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::MessageMatches;

namespace {
constexpr std::size_t largest = std::numeric_limits<std::size_t>::max();
}

TEST_CASE("checked arithmetic gives the result or names what does not fit") {
  STATIC_REQUIRE(checked_multiply(6, 7, "x") == 42);
  STATIC_REQUIRE(checked_add(40, 2, "x") == 42);
  CHECK(checked_multiply(largest, 1, "x") == largest);
  CHECK(checked_multiply(0, largest, "x") == 0);
  CHECK(checked_add(largest, 0, "x") == largest);
  CHECK_THROWS_MATCHES(checked_multiply(largest / 2 + 1, 2, "elements of 'w'"), UsageError,
                       MessageMatches(ContainsSubstring("elements of 'w'") &&
                                      ContainsSubstring("9223372036854775808 x 2")));
  CHECK_THROWS_MATCHES(checked_add(largest, 1, "the end of 'w'"), UsageError,
                       MessageMatches(ContainsSubstring("the end of 'w'")));
}

TEST_CASE("round_up gives the least multiple that is not below") {
  for (const std::size_t step : {1u, 2u, 3u, 32u, 224u}) {
    for (std::size_t value = 0; value < 500; ++value) {
      const std::size_t rounded = round_up(value, step);
      CHECK(rounded % step == 0);
      CHECK(rounded >= value);
      CHECK(rounded - value < step);
    }
  }
  CHECK(round_up(largest - 31, 32) == largest - 31);
  CHECK_THROWS_AS(round_up(largest - 30, 32), UsageError);
}

TEST_CASE("a dimension is made from any integer and checks its sign") {
  const int d = 64;
  const std::vector<Dimension> shape{3 * d, 4u, std::int8_t{5}, std::uint64_t{6}, largest};
  CHECK(shape[0] == 192);
  CHECK(shape[1] == 4);
  CHECK(shape[2] == 5);
  CHECK(shape[3] == 6);
  CHECK(shape[4] == largest);
  CHECK(Dimension(0) == 0);
  CHECK_THROWS_MATCHES(Dimension(-3), UsageError, MessageMatches(ContainsSubstring("-3")));
  CHECK_THROWS_AS(Dimension(std::numeric_limits<long long>::min()), UsageError);
  STATIC_REQUIRE_FALSE(std::is_convertible_v<double, Dimension>);
}
