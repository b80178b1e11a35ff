#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <shardwise/comm/arguments.hpp>

namespace shardwise::test {
namespace {

using Catch::Matchers::ContainsSubstring;

TEST_CASE("check_reduction says what does not fit") {
  CHECK_NOTHROW(check_reduction(
      DType::bf16, {.output = DType::f64, .scale = 0.5, .weight = 2, .weighted = true}));
  CHECK_THROWS_WITH(check_reduction(DType::f32, {.weight = 2}), ContainsSubstring("weighted"));
  CHECK_NOTHROW(check_reduction(DType::i8, {.output = DType::i8}));
  CHECK_THROWS_WITH(check_reduction(DType::f32, {.output = DType::i32}),
                    ContainsSubstring("f32") && ContainsSubstring("i32"));
  CHECK_THROWS_AS(check_reduction(DType::i32, {.output = DType::i64}), UsageError);
  CHECK_THROWS_WITH(check_reduction(DType::i32, {.output = DType::i32, .scale = 0.5}),
                    ContainsSubstring("0.5"));
  CHECK_THROWS_AS(check_reduction(DType::u8, {.output = DType::u8, .weighted = true}), UsageError);
}

}  // namespace
}  // namespace shardwise::test
