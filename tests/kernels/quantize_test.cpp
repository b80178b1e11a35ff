#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <shardwise/kernels/e4m3.hpp>
#include <shardwise/kernels/quantize.hpp>
#include <vector>

#include "../support/floating.hpp"

namespace shardwise::test {
namespace {

constexpr Quantized types[] = {Quantized::int8, Quantized::int4, Quantized::e4m3};

/// What the bits of an E4M3 say, by its definition.
double value_of(unsigned bits) {
  const unsigned exponent = bits >> 3 & 15u;
  const unsigned mantissa = bits & 7u;
  if (exponent == 15 && mantissa == 7) return std::numeric_limits<double>::quiet_NaN();
  const double magnitude = exponent == 0
                               ? std::ldexp(mantissa, -9)
                               : std::ldexp(8 + mantissa, static_cast<int>(exponent) - 10);
  return (bits & 0x80u) != 0 ? -magnitude : magnitude;
}

TEST_CASE("an e4m3 has the value that its bits say") {
  for (unsigned bits = 0; bits < 256; ++bits) {
    e4m3 value;
    value.bits = static_cast<std::uint8_t>(bits);
    const double expected = value_of(bits);
    const auto found = static_cast<double>(static_cast<float>(value));
    CHECK((found == expected || (std::isnan(found) && std::isnan(expected))));
    if (std::isnan(expected)) continue;
    CHECK(std::signbit(found) == std::signbit(expected));
    CHECK(e4m3(static_cast<float>(value)).bits == bits);
  }
}

TEST_CASE("a float becomes the e4m3 nearest to it, the even one of two") {
  std::size_t wrong = 0;
  for (std::uint32_t half = 0; half < 0x8000; ++half) {
    for (const std::uint32_t low : {0u, 1u, 0xffffu}) {
      const auto x = __builtin_bit_cast(float, half << 16 | low);
      unsigned best = 0x7f;
      if (!std::isnan(x)) {
        double distance = std::numeric_limits<double>::infinity();
        best = 0x7e;
        for (unsigned bits = 0; bits < 0x7f; ++bits) {
          const double d = std::abs(value_of(bits) - static_cast<double>(x));
          if (d < distance || (d == distance && bits % 2 == 0 && d < 1e300)) {
            distance = d;
            best = bits;
          }
        }
        if (x > 448) best = 0x7e;
      }
      wrong += e4m3(x).bits == best ? 0u : 1u;
      if (!std::isnan(x)) wrong += e4m3(-x).bits == (best | 0x80u) ? 0u : 1u;
    }
  }
  CHECK(wrong == 0);
  STATIC_REQUIRE(e4m3(1.0f).bits == 0x38);
  STATIC_REQUIRE(e4m3(1e9f).bits == 0x7e);
}

TEST_CASE("blocks come back within half a step of their factor") {
  for (const std::size_t count : {1u, 2u, 255u, 256u, 257u, 1000u}) {
    for (const Quantized type : types) {
      const auto values = normal_values<float>(count, 31, 3.0);
      std::vector<std::uint8_t> packed(quantized_bytes(type, count) + 1, 0xa5);
      std::vector<float> factors(quantized_factors(count) + 1, -1.0f);
      std::vector<float> back(count + 1, -1.0f);
      quantize(values.data(), DType::f32, count, type, packed.data(), factors.data());
      dequantize(packed.data(), type, factors.data(), count, back.data(), DType::f32);
      CHECK(packed.back() == 0xa5);
      CHECK(factors.back() == -1);
      CHECK(back.back() == -1);
      std::size_t wrong = 0;
      for (std::size_t i = 0; i < count; ++i) {
        const float factor = factors[i / quantized_block];
        // Steps of e4m3 grow with the value: an eighth of its power of two, at least 2^-9.
        float step = factor;
        if (type == Quantized::e4m3) {
          const float scaled = std::abs(values[i] / factor);
          step *= std::max(0x1p-9f, std::ldexp(1.0f, std::ilogb(scaled) - 3));
        }
        wrong += std::abs(back[i] - values[i]) <= 0.5001f * step ? 0u : 1u;
      }
      CHECK(wrong == 0);
    }
  }
}

TEST_CASE("the largest magnitude of a block comes back, and signs are kept") {
  for (const Quantized type : types) {
    std::vector<float> values(256, 0.0f);
    values[9] = -63.5f;
    values[200] = 31.75f;
    std::vector<std::uint8_t> packed(quantized_bytes(type, 256));
    float factor = 0;
    quantize(values.data(), DType::f32, 256, type, packed.data(), &factor);
    std::vector<float> back(256);
    dequantize(packed.data(), type, &factor, 256, back.data(), DType::f32);
    CHECK(std::abs(back[9] + 63.5f) < 1e-5f);
    CHECK(back[200] > 0);
    CHECK(back[0] == 0);
  }
}

TEST_CASE("halves of a byte: the first element is the low one, and what pads is 0") {
  const float values[] = {7, -7, 1};
  std::uint8_t packed[2] = {0xff, 0xff};
  float factor = 0;
  quantize(values, DType::f32, 3, Quantized::int4, packed, &factor);
  CHECK(factor == 1);
  CHECK(packed[0] == 0x97);
  CHECK(packed[1] == 0x01);
}

TEST_CASE("a block without magnitude is zero, one that is not finite is NaN, others stay") {
  for (const Quantized type : types) {
    constexpr std::size_t count = 4 * quantized_block;
    std::vector<float> values(count, 1.0f);
    for (std::size_t i = 0; i < quantized_block; ++i) values[i] = i % 2 == 0 ? 1e-40f : 0.0f;
    values[quantized_block + 3] = -std::numeric_limits<float>::infinity();
    values[2 * quantized_block + 255] = std::numeric_limits<float>::quiet_NaN();
    std::vector<std::uint8_t> packed(quantized_bytes(type, count));
    std::vector<float> factors(4);
    std::vector<float> back(count);
    quantize(values.data(), DType::f32, count, type, packed.data(), factors.data());
    dequantize(packed.data(), type, factors.data(), count, back.data(), DType::f32);
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < quantized_block; ++i) wrong += back[i] == 0 ? 0u : 1u;
    for (std::size_t i = quantized_block; i < 3 * quantized_block; ++i) {
      wrong += std::isnan(back[i]) ? 0u : 1u;
    }
    for (std::size_t i = 3 * quantized_block; i < count; ++i) {
      wrong += std::abs(back[i] - 1) < 1e-6f ? 0u : 1u;
    }
    CHECK(wrong == 0);
    CHECK(factors[0] == 0);
    CHECK(std::isnan(factors[1]));
    CHECK(std::isnan(factors[2]));
  }
}

TEST_CASE("what is quantised depends on the values alone, not on their addresses") {
  for (const Quantized type : types) {
    constexpr std::size_t count = 1000;
    const auto values = normal_values<bf16>(count, 41);
    std::vector<bf16> shifted(count + 1);
    std::copy(values.begin(), values.end(), shifted.begin() + 1);
    std::vector<std::uint8_t> a(quantized_bytes(type, count));
    std::vector<std::uint8_t> b(a.size() + 1);
    std::vector<float> factors_a(quantized_factors(count));
    std::vector<float> factors_b(factors_a.size());
    quantize(values.data(), DType::bf16, count, type, a.data(), factors_a.data());
    quantize(shifted.data() + 1, DType::bf16, count, type, b.data() + 1, factors_b.data());
    b.erase(b.begin());
    CHECK(a == b);
    CHECK(same_bits(factors_a, factors_b));
  }
}

}  // namespace
}  // namespace shardwise::test
