#include <catch2/catch_test_macros.hpp>
#include <cstdint>
#include <limits>
#include <optional>
#include <shardwise/config/number.hpp>

using namespace shardwise::detail;

TEST_CASE("whole numbers are exact in every spelling") {
  CHECK(parse_count("0") == 0u);
  CHECK(parse_count("500000000") == 500000000u);
  CHECK(parse_count("5e8") == 500000000u);
  CHECK(parse_count("5E+8") == 500000000u);
  CHECK(parse_count("0.5e9") == 500000000u);
  CHECK(parse_count("1.25e7") == 12500000u);
  CHECK(parse_count("1000e-3") == 1u);
  CHECK(parse_count("3.0") == 3u);
  CHECK(parse_count("0e99999") == 0u);
  CHECK(parse_count("18446744073709551615") == std::numeric_limits<std::uint64_t>::max());
  // A double has no such number.
  CHECK(parse_count("9007199254740993") == 9007199254740993u);
}

TEST_CASE("what is no whole number is none") {
  for (const char* text :
       {"", "-1", "+1", "1.5", "5e-8", "1e20", "18446744073709551616", "e5", ".", "1e", "1e+", "1 ",
        " 1", "0x10", "1_000", "1.2.3", "auto", "nan", "1e99999999999999999999"}) {
    INFO(text);
    CHECK(parse_count(text) == std::nullopt);
  }
}

TEST_CASE("bytes may have a unit") {
  CHECK(parse_bytes("25MiB") == 25u << 20);
  CHECK(parse_bytes("25 MiB") == 25u << 20);
  CHECK(parse_bytes("0.5KiB") == std::nullopt);
  CHECK(parse_bytes("2GiB") == std::uint64_t{2} << 30);
  CHECK(parse_bytes("1e3") == 1000u);
  CHECK(parse_bytes("25MB") == std::nullopt);
  CHECK(parse_bytes("iB") == std::nullopt);
  CHECK(parse_bytes("MiB") == std::nullopt);
  CHECK(parse_bytes("18446744073709551615KiB") == std::nullopt);
}

TEST_CASE("numbers are finite and print as what they read from") {
  CHECK(parse_number("1") == 1.0);
  CHECK(parse_number("-0.5e-3") == -0.0005);
  CHECK(parse_number("+2") == 2.0);
  for (const char* text : {"", "inf", "nan", "1e999", "1x", "--1", "0x1p3", "1,5", "true"}) {
    INFO(text);
    CHECK(parse_number(text) == std::nullopt);
  }
  for (const double value : {0.0, 1.0, 0.1, 1e-300, 1.7976931348623157e308, 1.0 / 3}) {
    CHECK(parse_number(print_number(value)) == value);
  }
}
