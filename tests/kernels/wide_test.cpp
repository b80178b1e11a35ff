#include <algorithm>
#include <array>
#include <bit>
#include <catch2/catch_test_macros.hpp>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <shardwise/device/host.hpp>
#include <shardwise/kernels/cast_elements.hpp>
#include <shardwise/kernels/copy.hpp>
#include <shardwise/optim/adamw.hpp>
#include <shardwise/optim/lion.hpp>
#include <span>
#include <tuple>
#include <vector>

#include "rounded_sums.hpp"
#include "support/floating.hpp"
#include "support/vectors.hpp"

using namespace shardwise;
using test::all_vectors;

namespace {

template <class From, class To>
void check_casts(const std::vector<From>& values) {
  std::vector<To> expected(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) expected[i] = cast_element<To>(values[i]);
  for (const detail::Vectors vectors : all_vectors()) {
    // Lengths that end inside of a vector, apart and in place.
    for (const std::size_t count : {values.size(), values.size() - 5, std::size_t{3}}) {
      std::vector<To> apart(values.size());
      cast_elements(values.data(), dtype_of<From>, apart.data(), dtype_of<To>, count, vectors);
      CHECK(std::memcmp(apart.data(), expected.data(), count * sizeof(To)) == 0);
      std::vector<std::byte> both(values.size() * std::max(sizeof(From), sizeof(To)));
      std::memcpy(both.data(), values.data(), values.size() * sizeof(From));
      cast_elements(both.data(), dtype_of<From>, both.data(), dtype_of<To>, count, vectors);
      CHECK(std::memcmp(both.data(), expected.data(), count * sizeof(To)) == 0);
    }
  }
}

template <class T>
std::vector<T> all_patterns() {
  std::vector<T> values(1u << 16);
  for (std::size_t i = 0; i < values.size(); ++i) values[i].bits = static_cast<std::uint16_t>(i);
  std::shuffle(values.begin(), values.end(), std::mt19937(5));
  return values;
}

template <class T>
std::vector<std::byte> bytes_of(const std::vector<T>& values) {
  const auto bytes = std::as_bytes(std::span(values));
  return {bytes.begin(), bytes.end()};
}

/// Parameter, states and copy after one step by `run(functor)`.
template <class Optimizer, class Parameter, class Gradient, class Copy, class Run>
auto stepped(std::size_t count, const Run& run) {
  auto parameter = test::normal_values<Parameter>(count, 1);
  const auto gradient = test::normal_values<Gradient>(count, 2);
  std::array states{std::vector<float>(count, 0.5f), std::vector<float>(count, 0.25f)};
  std::vector<Copy> copy(count);
  UpdateOf<Optimizer, Parameter, Gradient> step{
      parameter.data(), gradient.data(), {}, 0.7f, Optimizer().template constants<float>(3, {})};
  for (std::size_t i = 0; i < std::size(step.states); ++i) step.states[i] = states[i].data();
  run(UpdateAndCast<decltype(step), Copy>{step, copy.data()});
  return std::tuple(bytes_of(parameter), states, bytes_of(copy));
}

template <class Optimizer, class Parameter, class Gradient, class Copy>
void check_steps() {
  constexpr std::size_t count = 3 * UpdateOf<Optimizer, Parameter, Gradient>::tile + 21;
  const auto expected =
      stepped<Optimizer, Parameter, Gradient, Copy>(count, [&](const auto& functor) {
        for (std::size_t i = 0; i < count; ++i) functor.template run<1>(i);
      });
  CHECK(stepped<Optimizer, Parameter, Gradient, Copy>(
            count, [&](const auto& functor) { HostDevice::run(count, functor); }) == expected);
  for (const detail::Vectors vectors : all_vectors()) {
    CHECK(stepped<Optimizer, Parameter, Gradient, Copy>(count, [&](const auto& functor) {
            std::size_t first = 0;
            for (; first + functor.tile <= count; first += functor.tile) {
              functor.run_tile(first, vectors);
            }
            for (; first < count; ++first) functor.template run<1>(first);
          }) == expected);
  }
}

/// A scale of 2^-120 makes results subnormal in bf16, which others never do.
template <class In, class Out>
void check_sums() {
  constexpr std::size_t count = 20011;
  const double scales[] = {1, 0.5, 1.0 / 3, -1, 0x1p-120, 0, std::bit_cast<float>(0x7fc12345u)};
  for (const test::Kind kind : {test::Kind::ordinary, test::Kind::rare, test::Kind::any}) {
    const auto old = test::contribution_of<Out>(kind, count, 9);
    std::vector<std::vector<In>> inputs;
    for (unsigned ranks = 1; ranks <= 4; ++ranks) {
      inputs.push_back(test::contribution_of<In>(kind, count, ranks));
      for (const double scale : scales) {
        for (const bool accumulate : {false, true}) {
          const ReduceSpec spec{.output = dtype_of<Out>, .scale = scale, .accumulate = accumulate};
          for (const detail::Vectors vectors : all_vectors()) {
            const bool streaming = ranks % 2 == 0 && scale == 0.5;
            if (test::differences<In, Out>(inputs, old, spec, vectors, streaming) == 0) continue;
            FAIL(name_of(dtype_of<In>)
                 << " -> " << name_of(dtype_of<Out>) << ", ranks " << ranks << ", scale " << scale
                 << ", accumulate " << accumulate << ", kind " << static_cast<int>(kind)
                 << ", vectors " << static_cast<int>(vectors));
          }
        }
      }
    }
  }
}

}  // namespace

TEST_CASE("casts by all vectors equal cast_element, bit by bit, in place, too") {
  check_casts<bf16, float>(all_patterns<bf16>());
  check_casts<bf16, f16>(all_patterns<bf16>());
  check_casts<f16, float>(all_patterns<f16>());
  check_casts<f16, bf16>(all_patterns<f16>());
  std::vector<float> floats;
  // All upper halves, with the lower halves next to ties of both types.
  for (std::uint32_t high = 0; high < 1u << 16; ++high) {
    for (const std::uint32_t low : {0u, 1u, 0x0fffu, 0x1000u, 0x1001u, 0x7fffu, 0x8000u, 0xffffu}) {
      floats.push_back(std::bit_cast<float>(high << 16 | low));
    }
  }
  std::shuffle(floats.begin(), floats.end(), std::mt19937(6));
  check_casts<float, bf16>(floats);
  check_casts<float, f16>(floats);
}

TEST_CASE("copies by all vectors begin and end where they are told") {
  constexpr std::size_t room = 192;
  for (const detail::Vectors vectors : all_vectors()) {
    for (const bool streaming : {false, true}) {
      for (const std::size_t bytes : {0u, 1u, 63u, 64u, 65u, 1023u, 1024u, 1100u, 5000u}) {
        for (const std::size_t begin : {0u, 1u, 2u, 16u, 63u}) {
          std::vector<std::byte> from(bytes + begin + 7);
          for (std::size_t i = 0; i < from.size(); ++i)
            from[i] = static_cast<std::byte>(i * 7 % 251);
          std::vector<std::byte> to(bytes + 2 * room, std::byte{0x5a});
          std::vector<std::byte> expected = to;
          std::memcpy(expected.data() + room - begin, from.data() + 7, bytes);
          auto* const target = to.data() + room - begin;
          if (streaming) {
            detail::stream_bytes(target, from.data() + 7, bytes, vectors);
            detail::end_streaming();
          } else {
            detail::copy_blocks(target, from.data() + 7, bytes, vectors);
          }
          CHECK(to == expected);
        }
      }
    }
  }
}

TEST_CASE("copies to two places by all vectors begin and end where they are told") {
  constexpr std::size_t room = 192;
  for (const detail::Vectors vectors : all_vectors()) {
    for (const std::size_t bytes : {0u, 1u, 63u, 64u, 65u, 127u, 1023u, 1024u, 1100u, 5000u}) {
      for (const std::size_t first : {0u, 1u, 16u, 63u}) {
        for (const std::size_t second : {0u, 1u, 63u}) {
          std::vector<std::byte> from(bytes + 7);
          for (std::size_t i = 0; i < from.size(); ++i)
            from[i] = static_cast<std::byte>(i * 7 % 251);
          std::array<std::vector<std::byte>, 2> to;
          to.fill(std::vector<std::byte>(bytes + 2 * room, std::byte{0x5a}));
          auto expected = to;
          std::memcpy(expected[0].data() + room - first, from.data() + 7, bytes);
          std::memcpy(expected[1].data() + room - second, from.data() + 7, bytes);
          detail::copy_twice(to[0].data() + room - first, to[1].data() + room - second,
                             from.data() + 7, bytes, vectors);
          CHECK(to == expected);
        }
      }
    }
  }
}

TEST_CASE("steps in tiles, by all vectors, equal steps of single elements") {
  check_steps<AdamW, float, bf16, bf16>();
  check_steps<AdamW, float, f16, f16>();
  check_steps<AdamW, float, float, bf16>();
  check_steps<AdamW, bf16, bf16, float>();
  check_steps<Lion, f16, float, f16>();
}

TEST_CASE("sums of all kinds of numbers, by all vectors, are the formula's, bit by bit") {
  check_sums<bf16, bf16>();
  check_sums<bf16, float>();
  check_sums<f16, f16>();
  check_sums<f16, float>();
  check_sums<float, bf16>();
  check_sums<float, f16>();
  check_sums<float, float>();
}

TEST_CASE("every bf16 plus what matters, by all vectors, is the formula's, bit by bit") {
  // Zeros, the smallest and the largest subnormal and normal numbers, 1, infinities, and NaNs,
  // quiet or not, of the smallest and the largest payload.
  constexpr std::uint16_t others[] = {0x0000, 0x8000, 0x0001, 0x8001, 0x007f, 0x807f,
                                      0x0080, 0x7f7f, 0x3f80, 0xbf80, 0x7f80, 0xff80,
                                      0x7f81, 0x7fbf, 0xffc0, 0x7fff};
  std::vector<bf16> every(1u << 16);
  for (std::size_t i = 0; i < every.size(); ++i) every[i].bits = static_cast<std::uint16_t>(i);
  std::shuffle(every.begin(), every.end(), std::mt19937(8));
  for (const bool shuffled : {true, false}) {
    if (!shuffled) {
      std::sort(every.begin(), every.end(),
                [](const bf16& a, const bf16& b) { return a.bits < b.bits; });
    }
    for (const std::uint16_t bits : others) {
      bf16 other;
      other.bits = bits;
      const std::vector<std::vector<bf16>> inputs{every, std::vector(every.size(), other)};
      const std::vector<bf16> old(every.size());
      for (const detail::Vectors vectors : all_vectors()) {
        for (const double scale : {1.0, 0.5}) {
          const ReduceSpec spec{.output = DType::bf16, .scale = scale};
          CHECK(test::differences(inputs, old, spec, vectors, false) == 0);
        }
      }
    }
  }
}
