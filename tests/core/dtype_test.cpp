#include <bit>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <shardwise/core/dtype.hpp>
#include <string>
#include <type_traits>
#include <vector>

using namespace shardwise;

// g++ knows both types; clang 14 neither on x86.
#if defined(__FLT16_MAX__) && !defined(__clang__)
__extension__ using BuiltinHalf = _Float16;
#define SHARDWISE_TEST_HAS_HALF 1
#endif

namespace {

constexpr float float_of(std::uint32_t bits) { return std::bit_cast<float>(bits); }

/// What a 16-bit float with this many exponent and mantissa bits is worth, by its definition.
double worth(std::uint16_t bits, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = (bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const double mantissa = std::ldexp(bits & ((1 << mantissa_bits) - 1), -mantissa_bits);
  const double sign = (bits & 0x8000) != 0 ? -1 : 1;
  if (exponent == (1 << exponent_bits) - 1) {
    return mantissa != 0 ? std::numeric_limits<double>::quiet_NaN()
                         : sign * std::numeric_limits<double>::infinity();
  }
  return exponent == 0 ? sign * std::ldexp(mantissa, 1 - bias)
                       : sign * std::ldexp(1 + mantissa, exponent - bias);
}
double worth(bf16 value) { return worth(value.bits, 8, 7); }
double worth(f16 value) { return worth(value.bits, 5, 10); }

/// The nearest value of type T, ties to even, by walking over the positive values: `order` holds
/// the worth of 0, 1, 2, ... as bits, the first infinity standing for the next power of two.
template <class T>
class Nearest {
 public:
  Nearest() {
    for (std::uint32_t bits = 0; bits <= 0x7fff; ++bits) {
      T value;
      value.bits = static_cast<std::uint16_t>(bits);
      order_.push_back(worth(value));
      if (std::isinf(order_.back())) {
        const std::size_t last = order_.size() - 1;
        order_[last] = 2 * order_[last - 1] - order_[last - 2];
        break;
      }
    }
  }
  [[nodiscard]] std::uint16_t operator()(float value) const {
    const auto sign = static_cast<std::uint16_t>(std::signbit(value) ? 0x8000 : 0);
    const double magnitude = std::abs(static_cast<double>(value));
    std::size_t low = 0;
    std::size_t high = order_.size() - 1;
    if (magnitude >= order_[high]) return static_cast<std::uint16_t>(sign | high);
    while (high - low > 1) {
      const std::size_t middle = (low + high) / 2;
      (order_[middle] <= magnitude ? low : high) = middle;
    }
    const double down = magnitude - order_[low];
    const double up = order_[high] - magnitude;
    const bool is_up = up < down || (up == down && high % 2 == 0);
    return static_cast<std::uint16_t>(sign | (is_up ? high : low));
  }

 private:
  std::vector<double> order_;
};

/// Each value of T, what lies halfway to the next, the floats beside both; powers of two; noise.
template <class T>
std::vector<float> hard_floats() {
  std::vector<float> result;
  for (std::uint32_t bits = 0; bits <= 0x7fff; ++bits) {
    T value;
    value.bits = static_cast<std::uint16_t>(bits);
    if (std::isnan(worth(value))) continue;
    const auto here = static_cast<float>(worth(value));
    value.bits = static_cast<std::uint16_t>(std::isinf(here) ? bits : bits + 1);
    const auto half = static_cast<float>((static_cast<double>(here) + worth(value)) / 2);
    for (const float f : {here, half}) {
      if (std::isnan(f)) continue;
      for (const float g : {f, std::nextafter(f, INFINITY), std::nextafter(f, -INFINITY)}) {
        result.push_back(g);
        result.push_back(-g);
      }
    }
  }
  std::mt19937 random(1);
  for (int i = 0; i < 1'000'000; ++i)
    result.push_back(float_of(static_cast<std::uint32_t>(random())));
  for (int i = -149; i < 128; ++i) result.push_back(std::ldexp(1.0f, i));
  return result;
}

template <class T>
std::size_t wrong_narrowings() {
  const Nearest<T> nearest;
  std::size_t wrong = 0;
  for (const float value : hard_floats<T>()) {
    const T rounded(value);
    if (std::isnan(value)) {
      wrong += std::isnan(worth(rounded)) ? 0u : 1u;
    } else {
      wrong += rounded.bits == nearest(value) ? 0u : 1u;
    }
  }
  return wrong;
}

template <class T>
std::size_t wrong_widenings() {
  std::size_t wrong = 0;
  for (std::uint32_t bits = 0; bits <= 0xffff; ++bits) {
    T value;
    value.bits = static_cast<std::uint16_t>(bits);
    const float wide = value;
    const double expected = worth(value);
    const bool is_same = std::isnan(expected) ? std::isnan(wide)
                                              : static_cast<double>(wide) == expected &&
                                                    std::signbit(wide) == std::signbit(expected);
    wrong += is_same ? 0u : 1u;
    if (!std::isnan(expected)) wrong += T(wide).bits == bits ? 0u : 1u;
  }
  return wrong;
}

}  // namespace

TEST_CASE("all 65536 bf16 and f16 widen to what they are worth and narrow back") {
  CHECK(wrong_widenings<bf16>() == 0);
  CHECK(wrong_widenings<f16>() == 0);
}

TEST_CASE("floats narrow to the nearest bf16 and f16, ties to even") {
  CHECK(wrong_narrowings<bf16>() == 0);
  CHECK(wrong_narrowings<f16>() == 0);
}

TEST_CASE("signs, infinities and NaN survive narrowing") {
  CHECK(bf16(-0.0f).bits == 0x8000);
  CHECK(f16(-0.0f).bits == 0x8000);
  CHECK(bf16(INFINITY).bits == 0x7f80);
  CHECK(f16(-INFINITY).bits == 0xfc00);
  CHECK(f16(65519.0f).bits == 0x7bff);
  CHECK(f16(65520.0f).bits == 0x7c00);
  CHECK(bf16(std::numeric_limits<float>::max()).bits == 0x7f80);
  // Payload in the lower bits alone: truncation would make infinity of it.
  CHECK(std::isnan(static_cast<float>(bf16(float_of(0x7f800001)))));
  CHECK(std::isnan(static_cast<float>(f16(float_of(0xff800001)))));
  STATIC_REQUIRE(bf16(1.0f).bits == 0x3f80);
  STATIC_REQUIRE(f16(1.0f).bits == 0x3c00);
  STATIC_REQUIRE(static_cast<float>(f16(0.5f)) == 0.5f);
  CHECK(bf16().bits == 0);
}

#if defined(SHARDWISE_TEST_HAS_HALF)
namespace {
bool same_bits(float a, float b) {
  return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b);
}
}  // namespace

TEST_CASE("f16 has the bits of the compiler's own half") {
  std::size_t wrong = 0;
  for (std::uint32_t bits = 0; bits <= 0xffff; ++bits) {
    f16 mine;
    mine.bits = static_cast<std::uint16_t>(bits);
    const auto theirs = static_cast<float>(std::bit_cast<BuiltinHalf>(mine.bits));
    const bool both_nan = std::isnan(theirs) && std::isnan(static_cast<float>(mine));
    wrong += both_nan || same_bits(mine, theirs) ? 0u : 1u;
  }
  for (const float value : hard_floats<f16>()) {
    if (std::isnan(value)) continue;
    const auto theirs = std::bit_cast<std::uint16_t>(static_cast<BuiltinHalf>(value));
    wrong += f16(value).bits == theirs ? 0u : 1u;
  }
  CHECK(wrong == 0);
}
#endif

TEST_CASE("element types have names, sizes and accumulators") {
  STATIC_REQUIRE(size_of(DType::f64) == sizeof(double));
  STATIC_REQUIRE(sizeof(bf16) == 2);
  STATIC_REQUIRE(std::is_trivially_copyable_v<f16>);
  STATIC_REQUIRE(std::is_same_v<Accumulator<bf16>, float>);
  STATIC_REQUIRE(std::is_same_v<Accumulator<f16>, float>);
  STATIC_REQUIRE(std::is_same_v<Accumulator<double>, double>);
  STATIC_REQUIRE(std::is_same_v<Accumulator<std::int64_t>, std::int64_t>);
  STATIC_REQUIRE(FloatingElement<bf16>);
  STATIC_REQUIRE_FALSE(FloatingElement<std::int32_t>);
  STATIC_REQUIRE_FALSE(Element<long double>);
  STATIC_REQUIRE_FALSE(Element<bool>);

  std::string names;
  for (const DType type : {DType::f64, DType::f32, DType::bf16, DType::f16, DType::i64, DType::i32,
                           DType::i8, DType::u8}) {
    names += std::string(name_of(type)) + ' ';
    dispatch(type, [&]<class T>() {
      CHECK(dtype_of<T> == type);
      CHECK(sizeof(T) == size_of(type));
      CHECK(is_floating(type) == FloatingElement<T>);
    });
    if (!is_floating(type)) continue;
    dispatch_floating(type, [&]<class T>() { CHECK(dtype_of<T> == type); });
  }
  CHECK(names == "f64 f32 bf16 f16 i64 i32 i8 u8 ");
}
