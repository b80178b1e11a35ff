// The reductions of the fake NCCL against CUDA's own conversions and against plain formulas.

#include "nccl_arithmetic.hpp"

#include <array>
#include <bit>
#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "nccl_short_floats.hpp"

using emulation::Contribution;

namespace {

std::uint16_t bits_of(__half value) { return std::bit_cast<__half_raw>(value).x; }
std::uint16_t bits_of(__nv_bfloat16 value) { return std::bit_cast<__nv_bfloat16_raw>(value).x; }

template <class T>
std::vector<T> reduced(ncclDataType_t type, ncclRedOp_t reduction,
                       const std::vector<std::vector<T>>& ranks, std::size_t first,
                       const std::vector<std::uint64_t>& scalars = {}) {
  std::vector<Contribution> parts;
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
    parts.push_back({reinterpret_cast<const std::byte*>(ranks[rank].data()),
                     scalars.empty() ? 0 : scalars[rank]});
  }
  std::vector<T> out(ranks.front().size());
  emulation::reduce(type, reduction, parts, first, out.size(),
                    reinterpret_cast<std::byte*>(out.data()));
  return out;
}

}  // namespace

TEST_CASE("every half converts as CUDA's header does") {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const __half_raw raw{static_cast<unsigned short>(bits)};
    const float expected = __half2float(__half(raw));
    const float found = emulation::half_to_float(raw.x);
    if (std::isnan(expected)) {
      REQUIRE(std::isnan(found));
    } else {
      REQUIRE(std::bit_cast<std::uint32_t>(found) == std::bit_cast<std::uint32_t>(expected));
    }
  }
}

TEST_CASE("floats round to half and bfloat16 as CUDA's header does") {
  std::mt19937 random(7);
  std::vector<float> values{0.F,
                            -0.F,
                            65504.F,
                            65519.99F,
                            65520.F,
                            0x1p-24F,
                            0x1p-25F,
                            0x1.8p-25F,
                            0x1p-14F,
                            0x1.ffcp-15F,
                            0x1.ffep-15F,
                            -65520.F,
                            std::numeric_limits<float>::infinity(),
                            std::numeric_limits<float>::max(),
                            0x1.01p0F,
                            0x1.03p0F};
  for (int i = 0; i < 300'000; ++i) {
    values.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(random())));
    // and where halves are
    values.push_back(
        std::ldexp(static_cast<float>(random()) / 0x1p32F, static_cast<int>(random() % 45) - 28));
  }
  for (const float value : values) {
    if (std::isnan(value)) {
      REQUIRE(std::isnan(emulation::half_to_float(emulation::float_to_half(value))));
      REQUIRE(std::isnan(emulation::bfloat16_to_float(emulation::float_to_bfloat16(value))));
      continue;
    }
    INFO(value);
    REQUIRE(emulation::float_to_half(value) == bits_of(__float2half_rn(value)));
    REQUIRE(emulation::float_to_bfloat16(value) == bits_of(__float2bfloat16_rn(value)));
  }
}

TEST_CASE("integers wrap, compare by their sign and divide at the end of an average") {
  using Values = std::vector<std::vector<std::int8_t>>;
  CHECK(reduced<std::int8_t>(ncclInt8, ncclSum, Values{{100}, {100}}, 0).front() == -56);
  CHECK(reduced<std::int8_t>(ncclInt8, ncclProd, Values{{-3}, {5}, {2}}, 1).front() == -30);
  CHECK(reduced<std::int8_t>(ncclInt8, ncclMax, Values{{-3}, {5}}, 0).front() == 5);
  CHECK(reduced<std::int8_t>(ncclInt8, ncclMin, Values{{-3}, {5}}, 0).front() == -3);
  CHECK(reduced<std::int8_t>(ncclInt8, ncclAvg, Values{{-3}, {-4}}, 0).front() == -3);
  CHECK(reduced<std::uint8_t>(ncclUint8, ncclMax, {{250}, {5}}, 0).front() == 250);
  CHECK(reduced<std::int64_t>(ncclInt64, ncclSum, {{1LL << 62}, {1}}, 0).front() ==
        (1LL << 62) + 1);  // no way through a double
  CHECK(reduced<std::uint64_t>(ncclUint64, ncclSum, {{~0ULL}, {2}}, 0).front() == 1);
  CHECK(reduced<std::int32_t>(ncclInt32, ncclProd, {{1 << 30}, {4}}, 0).front() == 0);
}

TEST_CASE("a sum is rounded at each hop of the ring, beginning where it is told") {
  // In float, 2^24 + 1 is lost; 1 + 1 first is not.
  const std::vector<std::vector<float>> ranks{{0x1p24F}, {1.F}, {1.F}};
  CHECK(reduced<float>(ncclFloat32, ncclSum, ranks, 0).front() == 0x1p24F);
  CHECK(reduced<float>(ncclFloat32, ncclSum, ranks, 1).front() == 0x1p24F + 2);

  // In bfloat16 256 + 1 is 256; a sum in float would be 260.
  const auto bf = [](float value) { return emulation::float_to_bfloat16(value); };
  const std::vector<std::vector<std::uint16_t>> short_ranks{
      {bf(256)}, {bf(1)}, {bf(1)}, {bf(1)}, {bf(1)}};
  CHECK(emulation::bfloat16_to_float(
            reduced<std::uint16_t>(ncclBfloat16, ncclSum, short_ranks, 0).front()) == 256);
  CHECK(emulation::bfloat16_to_float(
            reduced<std::uint16_t>(ncclBfloat16, ncclSum, short_ranks, 1).front()) == 260);
}

TEST_CASE("averages and pre-multiplied sums scale each rank's part in the element type") {
  CHECK(reduced<float>(ncclFloat32, ncclAvg, {{3.F}, {6.F}, {9.F}}, 0).front() ==
        (3.F * (1.F / 3) + 6.F * (1.F / 3)) + 9.F * (1.F / 3));
  const auto scalar = [](double value) { return std::bit_cast<std::uint64_t>(value); };
  CHECK(reduced<double>(ncclFloat64, static_cast<ncclRedOp_t>(ncclNumOps), {{2.}, {3.}}, 0,
                        {scalar(.5), scalar(10.)})
            .front() == 31.);
  CHECK(std::isnan(reduced<float>(ncclFloat32, ncclSum, {{std::nanf("")}, {1.F}}, 0).front()));
  for (const auto extreme : {ncclMax, ncclMin}) {
    CHECK(reduced<float>(ncclFloat32, extreme, {{std::nanf("")}, {1.F}}, 0).front() == 1.F);
    CHECK(reduced<float>(ncclFloat32, extreme, {{1.F}, {std::nanf("")}}, 0).front() == 1.F);
  }
}

TEST_CASE("float8 sums round to float8") {
  const std::vector<std::vector<std::uint8_t>> ranks{{__nv_fp8_e4m3(16.F).__x},
                                                     {__nv_fp8_e4m3(1.F).__x}};
  __nv_fp8_e4m3 sum;
  sum.__x = reduced<std::uint8_t>(ncclFloat8e4m3, ncclSum, ranks, 0).front();
  CHECK(static_cast<float>(sum) == 16.F);  // 17 is between 16 and 18: ties go to even
}

TEST_CASE("megabytes are reduced in milliseconds", "[.bench]") {
  constexpr std::size_t count = 1 << 20;
  for (const auto type : {ncclFloat32, ncclBfloat16, ncclFloat16, ncclInt32, ncclFloat64}) {
    const std::size_t width = type == ncclFloat64                        ? 8
                              : type == ncclFloat32 || type == ncclInt32 ? 4
                                                                         : 2;
    std::vector<std::vector<std::byte>> ranks(8, std::vector<std::byte>(count * width));
    std::vector<Contribution> parts;
    for (const auto& rank : ranks) parts.push_back({rank.data(), 0});
    std::vector<std::byte> out(count * width);
    const auto begin = std::chrono::steady_clock::now();
    emulation::reduce(type, ncclSum, parts, 0, count, out.data());
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    std::printf("type %d: 8 ranks, 2^20 elements: %.2f ms\n", type, seconds * 1e3);
  }
}
