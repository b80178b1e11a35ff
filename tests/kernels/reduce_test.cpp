#include <algorithm>
#include <bit>
#include <catch2/catch_test_macros.hpp>
#include <cstddef>
#include <shardwise/kernels/reduce.hpp>
#include <vector>

#include "../support/contributions.hpp"
#include "support/vectors.hpp"

namespace shardwise::test {
namespace {

constexpr std::size_t rank_counts[] = {1, 2, 3, 4, 5, 7, 8, 13};
constexpr std::size_t element_counts[] = {0, 1, 15, 17, 512, 513, 1047};

std::vector<DType> outputs_of(DType dtype) {
  if (!is_floating(dtype)) return {dtype};
  return {DType::f64, DType::f32, DType::bf16, DType::f16};
}

Bytes run(const std::vector<Bytes>& inputs, const std::vector<double>& weights, DType dtype,
          std::size_t count, Bytes out, const ReduceSpec& spec, detail::Vectors vectors) {
  std::vector<const void*> pointers;
  for (const Bytes& input : inputs) pointers.push_back(input.data());
  canonical_reduce(pointers, weights, dtype, count, out.data(), spec, false, vectors);
  return out;
}

TEST_CASE("canonical_reduce equals the formula, bit by bit") {
  std::size_t cases = 0;
  for (const DType dtype : all_dtypes) {
    for (const DType output : outputs_of(dtype)) {
      for (const std::size_t ranks : rank_counts) {
        for (const std::size_t count : element_counts) {
          for (const bool accumulate : {false, true}) {
            for (const bool weighted : {false, true}) {
              if (weighted && !is_floating(dtype)) continue;
              std::vector<Bytes> inputs;
              std::vector<double> weights;
              for (std::size_t r = 0; r < ranks; ++r) {
                inputs.push_back(contribution(dtype, r, 1, count));
                weights.push_back(weighted ? 0.25 + 0.3 * static_cast<double>(r) : 1);
              }
              ReduceSpec spec{.output = output, .accumulate = accumulate};
              if (is_floating(dtype) && count % 2 == 1) spec.scale = 1.0 / 3;
              const Bytes old = contribution(output, 99, 2, count);
              const Bytes expected = reduced(inputs, weights, dtype, 0, count, old, spec);
              for (const detail::Vectors vectors : all_vectors()) {
                if (run(inputs, weights, dtype, count, old, spec, vectors) == expected) continue;
                FAIL(name_of(dtype)
                     << " -> " << name_of(output) << ", ranks " << ranks << ", count " << count
                     << ", accumulate " << accumulate << ", weighted " << weighted << ", vectors "
                     << static_cast<int>(vectors));
              }
              ++cases;
            }
          }
        }
      }
    }
  }
  CHECK(cases == 8 * 7 * 2 * (16 * 2 + 4));
}

TEST_CASE(
    "results that go past the caches are the same, wherever they begin, and end where they do") {
  constexpr std::size_t room = 128;  // bytes before and after
  constexpr std::size_t count = 1047;
  for (const DType dtype : all_dtypes) {
    for (const DType output : outputs_of(dtype)) {
      for (const std::size_t ranks : {1u, 2u, 3u}) {
        for (const bool accumulate : {false, true}) {
          const std::vector<double> weights(ranks, 1);
          std::vector<Bytes> inputs;
          std::vector<const void*> pointers;
          for (std::size_t r = 0; r < ranks; ++r)
            inputs.push_back(contribution(dtype, r, 4, count));
          for (const Bytes& input : inputs) pointers.push_back(input.data());
          const ReduceSpec spec{.output = output, .accumulate = accumulate};
          const Bytes old = contribution(output, 99, 2, count);
          const Bytes expected = reduced(inputs, weights, dtype, 0, count, old, spec);
          for (std::size_t begin = room; begin < room + 64; begin += size_of(output)) {
            Bytes out(2 * room + old.size(), std::byte{0x5a});
            Bytes wanted = out;
            std::copy(old.begin(), old.end(), out.begin() + static_cast<std::ptrdiff_t>(begin));
            std::copy(expected.begin(), expected.end(),
                      wanted.begin() + static_cast<std::ptrdiff_t>(begin));
            // Turn by turn: every case is tried at many addresses.
            const auto vectors = all_vectors()[begin / size_of(output) % all_vectors().size()];
            canonical_reduce(pointers, weights, dtype, count, out.data() + begin, spec, true,
                             vectors);
            if (out != wanted) {
              FAIL(name_of(dtype) << " -> " << name_of(output) << ", ranks " << ranks
                                  << ", accumulate " << accumulate << ", byte " << begin);
            }
          }
        }
      }
    }
  }
}

TEST_CASE("canonical_reduce works in place on any input") {
  for (const DType dtype : all_dtypes) {
    for (const std::size_t ranks : rank_counts) {
      constexpr std::size_t count = 1100;
      const std::vector<double> weights(ranks, 1);
      std::vector<Bytes> inputs;
      for (std::size_t r = 0; r < ranks; ++r) inputs.push_back(contribution(dtype, r, 3, count));
      const ReduceSpec spec{.output = dtype};
      const Bytes expected = reduced(inputs, weights, dtype, 0, count, {}, spec);
      for (std::size_t target = 0; target < ranks; ++target) {
        std::vector<Bytes> copies = inputs;
        std::vector<const void*> pointers;
        for (const Bytes& copy : copies) pointers.push_back(copy.data());
        canonical_reduce(pointers, {}, dtype, count, copies[target].data(), spec);
        CHECK(copies[target] == expected);
      }
    }
  }
}

TEST_CASE("a sum that is not accumulated starts from +0") {
  const float minus = -0.0f;
  const void* input = &minus;
  for (const DType output : {DType::f64, DType::f32, DType::bf16, DType::f16}) {
    Bytes out(size_of(output), std::byte{0xff});
    canonical_reduce({&input, 1}, {}, DType::f32, 1, out.data(), {.output = output});
    CHECK(out == Bytes(size_of(output)));
  }
}

TEST_CASE("f64 is rounded once to 16 bits") {
  // Through f32 the first would round to a tie and then to even, downwards.
  const double inputs[] = {1.0 + 0x1p-8 + 0x1p-40, -(1.0 + 0x1p-8 + 0x1p-40),
                           1.0 + 3 * 0x1p-8 - 0x1p-40, 1.0 + 0x1p-8};
  const void* input = inputs;
  bf16 out[4];
  canonical_reduce({&input, 1}, {}, DType::f64, 4, out, {.output = DType::bf16});
  CHECK(static_cast<float>(out[0]) == 1.0078125f);
  CHECK(static_cast<float>(out[1]) == -1.0078125f);
  CHECK(static_cast<float>(out[2]) == 1.0078125f);
  CHECK(static_cast<float>(out[3]) == 1.0f);
}

TEST_CASE("canonical_split is the largest power of two below n") {
  CHECK(canonical_split(2) == 1);
  CHECK(canonical_split(3) == 2);
  CHECK(canonical_split(4) == 2);
  CHECK(canonical_split(5) == 4);
  CHECK(canonical_split(8) == 4);
  CHECK(canonical_split(9) == 8);
}

}  // namespace
}  // namespace shardwise::test
