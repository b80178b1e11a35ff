#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <shardwise/core/error.hpp>
#include <stdexcept>
#include <string>
#include <type_traits>

using namespace shardwise;

TEST_CASE("raise formats and throws the type asked for") {
  CHECK_THROWS_MATCHES(raise("rank {} of {}", 3, 4), UsageError,
                       Catch::Matchers::Message("rank 3 of 4"));
  CHECK_THROWS_AS(raise<ConfigError>("no"), ConfigError);
  CHECK_THROWS_AS(raise<FileError>("no"), FileError);
  CHECK_THROWS_AS(raise<BackendError>("no"), BackendError);
  CHECK_THROWS_AS(raise<TimedOut>("no"), TimedOut);
}

TEST_CASE("every error is an Error, and different failures are told apart") {
  STATIC_REQUIRE(std::is_base_of_v<std::runtime_error, Error>);
  STATIC_REQUIRE(std::is_base_of_v<UsageError, CollectiveMismatch>);
  STATIC_REQUIRE(std::is_base_of_v<Error, PeerFailed>);
  STATIC_REQUIRE_FALSE(std::is_base_of_v<UsageError, ConfigError>);
  STATIC_REQUIRE_FALSE(std::is_base_of_v<UsageError, PeerFailed>);
  CHECK_THROWS_AS(raise<CollectiveMismatch>("no"), UsageError);
}

TEST_CASE("PeerFailed says who failed and why") {
  const PeerFailed failure("rank 1 waits: rank 2 failed: disk full", 2, "disk full");
  CHECK(failure.rank() == 2);
  CHECK(failure.peer_message() == "disk full");
  CHECK(std::string(failure.what()).find("rank 1 waits") == 0);
}
