// The bodies of the library's kernels, run by fibers on the host: what they do is what their twins
// on the host do, to the bit.

#include "fiber_launchers.hpp"
// behind the launchers
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cstring>
#include <shardwise/device/cuda_operations.hpp>
#include <shardwise/device/host.hpp>
#include <shardwise/kernels/quantize.hpp>
#include <vector>

namespace cuda = shardwise::detail::cuda;
using namespace shardwise;
using Catch::Matchers::ContainsSubstring;

namespace {

/// Turns of threads from the first to the last, or from the last to the first.
class Turns {
 public:
  explicit Turns(bool backwards) { emulation_fiber::settings().backwards = backwards; }
  ~Turns() { emulation_fiber::settings().backwards = false; }
  Turns(const Turns&) = delete;
  Turns& operator=(const Turns&) = delete;
};

template <class... Parameters, class... Arguments>
void run(unsigned blocks, unsigned threads, void (*kernel)(Parameters...), Arguments... arguments) {
  void* pointers[] = {&arguments..., nullptr};
  emulation_fiber::launch(kernel, dim3(blocks), dim3(threads), pointers, 0, nullptr);
}

float number(std::size_t i) {
  return static_cast<float>((i * 2654435761u) % 1000003) * 1.37e-5f - 5.0f;
}
std::vector<float> numbers(std::size_t count) {
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = number(i);
  return values;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

/// Through shared memory, in a tree; the barrier may be left out.
template <bool Barrier>
void sum_of_block(const int* values, int* sums) {
  __shared__ int shared[128];
  shared[threadIdx.x] = values[blockIdx.x * blockDim.x + threadIdx.x];
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    if (Barrier) __syncthreads();
    if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
  }
  if (threadIdx.x == 0) sums[blockIdx.x] = shared[0];
}

void sum_of_warp(const float* values, float* sums) {
  float value = values[threadIdx.x];
  for (unsigned bit = 1; bit < 32; bit *= 2) value += __shfl_xor_sync(0xffffffffu, value, bit);
  sums[threadIdx.x] = value;
}

void half_of_warp_shuffles(int* out) {
  if (threadIdx.x % 32 < 16) out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1, 1u);
}
void half_of_block_waits() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncwarp(0xffffffffu);
    if (threadIdx.x % 2 == 0) __syncwarp(0xffffffffu);
  }
}
void lane_outside_of_its_mask() { __syncwarp(0x1u); }

}  // namespace

TEST_CASE("fibers: a block shares memory between barriers") {
  const Turns turns(GENERATE(false, true));
  std::vector<int> values(3 * 128);
  std::vector<int> expected(3);
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<int>(i * i % 101);
    expected[i / 128] += values[i];
  }
  std::vector<int> sums(3);
  run(3, 128, sum_of_block<true>, static_cast<const int*>(values.data()), sums.data());
  CHECK(sums == expected);
}

TEST_CASE("fibers: a missing barrier shows in one order of turns") {
  std::vector<int> values(128, 1);
  std::vector<int> sums(2);
  for (const bool backwards : {false, true}) {
    const Turns turns(backwards);
    run(1, 128, sum_of_block<false>, static_cast<const int*>(values.data()),
        sums.data() + (backwards ? 1 : 0));
  }
  CHECK((sums[0] != 128 || sums[1] != 128));
}

TEST_CASE("fibers: shuffles give what the other lane had") {
  const Turns turns(GENERATE(false, true));
  const std::vector<float> values = numbers(32);
  std::vector<float> expected = values;
  for (unsigned bit = 1; bit < 32; bit *= 2) {
    const std::vector<float> before = expected;
    for (unsigned lane = 0; lane < 32; ++lane) expected[lane] = before[lane] + before[lane ^ bit];
  }
  std::vector<float> sums(32);
  run(1, 32, sum_of_warp, values.data(), sums.data());
  CHECK(same_bits(sums, expected));
}

TEST_CASE("fibers: who waits for what never comes is named") {
  std::vector<int> out(64);
  CHECK_THROWS_WITH(run(1, 64, half_of_warp_shuffles, out.data()),
                    ContainsSubstring("divergent barrier in block 0: of 64 threads 0 wait for the "
                                      "block, 32 have ended"));
  CHECK_THROWS_WITH(run(2, 64, half_of_block_waits),
                    ContainsSubstring("32 wait for the block, 16 have ended"));
  CHECK_THROWS_WITH(run(1, 32, lane_outside_of_its_mask), ContainsSubstring("not in the mask"));
}

namespace {

/// Counts the visits of each element.
struct Visit {
  int* visits;
  template <std::size_t Width>
  void run(std::size_t first) const {
    for (std::size_t i = first; i < first + Width; ++i) ++visits[i];
  }
};

/// The same in blocks that need an aligned address.
struct VisitBlocks {
  int* visits;
  static constexpr std::size_t block_width = 4;
  template <std::size_t Width>
  [[nodiscard]] bool aligned(std::size_t first) const {
    return detail::is_aligned_for<Width>(visits + first);
  }
  template <std::size_t Width>
  void run_block(std::size_t first) const {
    detail::Block<int, Width> values;
    values.load(visits + first);
    for (int& value : values.values) ++value;
    values.store(visits + first);
  }
  template <std::size_t Width>
  void run(std::size_t first) const {
    for (std::size_t k = 0; k < Width; ++k) run_block<1>(first + k);
  }
};

constexpr std::size_t counts[] = {0, 1, 3, 4, 5, 255, 256, 257, 1000, 1023, 1024, 1025, 4099};

/// Elements [offset, offset + count) of a buffer, with others on both sides.
struct Visits {
  alignas(32) int values[4200] = {};
  [[nodiscard]] bool are_once(std::size_t offset, std::size_t count) const {
    for (std::size_t i = 0; i < std::size(values); ++i) {
      if (values[i] != (i >= offset && i < offset + count ? 1 : 0)) return false;
    }
    return true;
  }
};

}  // namespace

TEST_CASE("fibers: launch_elements visits each element once, at any alignment") {
  const Turns turns(GENERATE(false, true));
  for (const std::size_t count : counts) {
    for (std::size_t offset = 0; offset < 9; ++offset) {
      const std::size_t before = emulation_fiber::settings().launches;
      auto single = std::make_unique<Visits>();
      cuda::launch_elements(nullptr, count, Visit{single->values + offset});
      auto blocks = std::make_unique<Visits>();
      cuda::launch_elements(nullptr, count, VisitBlocks{blocks->values + offset});
      INFO(count << " elements at " << offset);
      REQUIRE(single->are_once(offset, count));
      REQUIRE(blocks->are_once(offset, count));
      REQUIRE(emulation_fiber::settings().launches == before + (count == 0 ? 0 : 2));
      if (offset > 1 && count > 2000) break;
    }
  }
}

TEST_CASE("fibers: launch_segments visits each element of all segments once") {
  const Turns turns(GENERATE(false, true));
  const std::size_t number_of_segments = GENERATE(std::size_t{1}, 2u, 7u, 200u);
  std::vector<int> visits(number_of_segments * 300);
  std::vector<int> expected(visits.size());
  std::vector<cuda::ElementSegment<VisitBlocks>> segments;
  for (std::size_t s = 0; s < number_of_segments; ++s) {
    const std::size_t count = number_of_segments == 1 ? 299 : s * 53 % 290;
    segments.push_back({VisitBlocks{visits.data() + s * 300 + s % 3}, count});
    for (std::size_t i = 0; i < count; ++i) expected[s * 300 + s % 3 + i] = 1;
  }
  cuda::launch_segments(nullptr, std::span<const cuda::ElementSegment<VisitBlocks>>(segments));
  CHECK(visits == expected);
}

namespace {

/// A sum whose value depends on the order of its additions, seen by each lane.
template <unsigned Lanes>
struct OrderedSum {
  static constexpr unsigned lanes = Lanes;
  struct State {
    float value = 0;
  };
  using Partial = float;
  const float* values;
  float* out;
  float load(std::size_t tile, unsigned lane, State& state) const {
    state.value = values[tile * Lanes + lane];
    return state.value;
  }
  static float combine(float a, float b) { return a + b; }
  void store(std::size_t tile, unsigned lane, const State& state, float total) const {
    out[tile * Lanes + lane] = total * 3 + state.value;
  }
};

template <unsigned Lanes>
bool tiles_have_the_hosts_bits(std::size_t count) {
  const std::vector<float> values = numbers(count * Lanes);
  std::vector<float> expected(values.size() + 1, -1);
  std::vector<float> out(expected);
  detail::run_tiles(count, OrderedSum<Lanes>{values.data(), expected.data()});
  cuda::launch_tiles(nullptr, count, OrderedSum<Lanes>{values.data(), out.data()});
  return same_bits(out, expected);
}

}  // namespace

TEST_CASE("fibers: launch_tiles has the bits of the host's order") {
  const Turns turns(GENERATE(false, true));
  for (const std::size_t count : {0u, 1u, 7u, 8u, 9u, 31u, 33u, 100u}) {
    INFO(count << " tiles");
    CHECK(tiles_have_the_hosts_bits<1>(count));
    CHECK(tiles_have_the_hosts_bits<2>(count));
    CHECK(tiles_have_the_hosts_bits<8>(count));
    CHECK(tiles_have_the_hosts_bits<16>(count));
    CHECK(tiles_have_the_hosts_bits<32>(count));
  }
}

TEST_CASE("fibers: the square norm has the host's bits") {
  const Turns turns(GENERATE(false, true));
  for (const std::size_t count : {1u, 2047u, 2048u, 2049u, 10007u}) {
    const std::vector<float> values = numbers(count);
    const NormRange ranges[] = {{values.data(), DType::f32, count},
                                {values.data(), DType::f32, count / 2}};
    std::vector<double> partials(cuda::square_sums_partials(ranges));
    double results[2] = {};
    cuda::square_sums(nullptr, ranges, partials.data(), results);
    CHECK(results[0] == sum_of_squares(values.data(), DType::f32, count));
    CHECK(results[1] == sum_of_squares(values.data(), DType::f32, count / 2));
  }
}

TEST_CASE("fibers: conversion in place grows and shrinks") {
  const Turns turns(GENERATE(false, true));
  for (const std::size_t count : {1u, 2u, 255u, 513u, 3000u}) {
    std::vector<float> values = numbers(count);
    std::vector<float> expected(values);
    cast_elements(values.data(), DType::f32, expected.data(), DType::bf16, count);
    cuda::convert(nullptr, values.data(), DType::bf16, values.data(), DType::f32, count);
    REQUIRE(std::memcmp(values.data(), expected.data(), count * 2) == 0);
    std::vector<float> back(count);
    cast_elements(expected.data(), DType::bf16, back.data(), DType::f32, count);
    cuda::convert(nullptr, values.data(), DType::f32, values.data(), DType::bf16, count);
    REQUIRE(same_bits(values, back));
  }
}

TEST_CASE("fibers: blocks are quantised to the host's bits and back") {
  const Turns turns(GENERATE(false, true));
  for (const Quantized type : {Quantized::int8, Quantized::int4, Quantized::e4m3}) {
    for (const std::size_t count : {1u, 255u, 256u, 257u, 2100u}) {
      const std::vector<float> values = numbers(count + 1);
      for (const std::size_t offset : {0u, 1u}) {  // whole lanes, and single elements
        const float* const in = values.data() + offset;
        std::vector<unsigned char> expected(quantized_bytes(type, count));
        std::vector<unsigned char> out(expected.size());
        std::vector<float> factors(quantized_factors(count));
        std::vector<float> found(factors.size());
        shardwise::quantize(in, DType::f32, count, type, expected.data(), factors.data());
        cuda::quantize(nullptr, in, DType::f32, count, type, out.data(), found.data());
        REQUIRE(out == expected);
        REQUIRE(same_bits(found, factors));
        std::vector<float> back(count);
        std::vector<float> expected_back(count);
        shardwise::dequantize(out.data(), type, found.data(), count, expected_back.data(),
                              DType::f32);
        cuda::dequantize(nullptr, out.data(), type, found.data(), count, back.data(), DType::f32);
        REQUIRE(same_bits(back, expected_back));
      }
    }
  }
}
