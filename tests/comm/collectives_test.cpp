#include <algorithm>
#include <array>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <shardwise/comm/collectives.hpp>
#include <shardwise/comm/self.hpp>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "../support/contributions.hpp"
#include "../support/ranks.hpp"

namespace shardwise::test {
namespace {

using Catch::Matchers::ContainsSubstring;

TEST_CASE("the helpers take whatever is contiguous") {
  for (const int world : worlds) {
    const auto size = static_cast<std::size_t>(world);
    const auto results = on_ranks(world, [&](Communicator& comm) {
      std::vector<double> seen;
      const auto keep = [&](const auto& range) {
        for (const auto element : std::span(range)) seen.push_back(static_cast<double>(element));
      };
      const std::array<float, 2> mine{static_cast<float>(comm.rank()), 0.5f};
      std::vector<float> whole(2 * size);
      all_gather(comm, mine, whole);
      keep(whole);
      std::vector<float> in_place(2 * size, -1.0f);
      in_place[2 * static_cast<std::size_t>(comm.rank())] = mine[0];
      in_place[2 * static_cast<std::size_t>(comm.rank()) + 1] = mine[1];
      all_gather(comm, in_place);
      keep(in_place);
      std::array<float, 2> part{};
      reduce_scatter(comm, whole, part);
      keep(part);
      reduce_scatter(comm, whole, std::span<float>(part), Reduce::mean);
      keep(part);
      std::int32_t numbers[] = {comm.rank(), 1};
      all_reduce(comm, numbers);
      keep(numbers);
      std::array<float, 2> means{};
      all_reduce(comm, mine, means, Reduce::mean);
      keep(means);
      bf16 half[1] = {bf16(static_cast<float>(comm.rank()))};
      broadcast(comm, half, world - 1);
      seen.push_back(static_cast<float>(half[0]));
      std::vector<std::int64_t> out(size);
      std::vector<std::int64_t> in(size);
      for (std::size_t r = 0; r < size; ++r) out[r] = comm.rank() * 10 + static_cast<int>(r);
      all_to_all(comm, out, in);
      keep(in);
      barrier(comm);
      return seen;
    });
    for (int rank = 0; rank < world; ++rank) {
      std::vector<double> expected;
      for (int twice = 0; twice < 2; ++twice) {
        for (int r = 0; r < world; ++r) {
          expected.push_back(r);
          expected.push_back(0.5);
        }
      }
      expected.insert(expected.end(), {static_cast<double>(rank * world), 0.5 * world});
      const float by_world = static_cast<float>(1.0 / world);
      expected.insert(expected.end(),
                      {static_cast<double>(static_cast<float>(rank * world) * by_world),
                       static_cast<double>(0.5f * static_cast<float>(world) * by_world)});
      const int total = world * (world - 1) / 2;
      expected.insert(expected.end(), {static_cast<double>(total), static_cast<double>(world)});
      expected.insert(expected.end(),
                      {static_cast<double>(static_cast<float>(total) * by_world),
                       static_cast<double>(0.5f * static_cast<float>(world) * by_world)});
      expected.push_back(world - 1);
      for (int r = 0; r < world; ++r) expected.push_back(r * 10 + rank);
      CHECK(results[static_cast<std::size_t>(rank)] == expected);
    }
  }
}

TEST_CASE("scalars of the group are equal bits on all ranks, in the canonical order") {
  for (const int world : worlds) {
    const auto value = [](int rank) { return std::sin(1.0 + rank) * std::pow(10.0, rank); };
    const auto weight = [](int rank) { return 0.1 + rank % 3; };
    const auto results = on_ranks(world, [&](Communicator& comm) {
      const int rank = comm.rank();
      const std::vector<float> piece(static_cast<std::size_t>(rank), 0.1f);
      return std::vector<double>{
          sum(comm, value(rank)),
          mean(comm, value(rank)),
          weighted_mean(comm, value(rank), weight(rank)),
          norm(comm, piece),
          max(comm, value(rank)),
          min(comm, value(rank)),
          static_cast<double>(sum(comm, std::int64_t{1} << 53 | 1)),
          static_cast<double>(sum(comm, std::uint8_t{3})),
          static_cast<double>(max(comm, -rank)),
          any(comm, rank == world - 1) ? 1.0 : 0.0,
          any(comm, rank == world) ? 1.0 : 0.0,
          (all(comm, true) && !all(comm, rank > 0)) ? 1.0 : 0.0,
      };
    });
    std::vector<double> values;
    std::vector<double> weighted;
    std::vector<double> weights;
    std::vector<double> squares;
    for (int r = 0; r < world; ++r) {
      values.push_back(value(r));
      weighted.push_back(weight(r) * value(r));
      weights.push_back(weight(r));
      double square = 0;
      for (int i = 0; i < r; ++i) square += static_cast<double>(0.1f) * static_cast<double>(0.1f);
      squares.push_back(square);
    }
    const std::size_t n = values.size();
    const double total = tree_sum(values.data(), n);
    const std::vector<double> expected{
        total,
        total / world,
        tree_sum(weighted.data(), n) / tree_sum(weights.data(), n),
        std::sqrt(tree_sum(squares.data(), n)),
        *std::max_element(values.begin(), values.end()),
        *std::min_element(values.begin(), values.end()),
        static_cast<double>(world * (std::int64_t{1} << 53 | 1)),
        3.0 * world,
        0.0,
        1.0,
        0.0,
        1.0,
    };
    for (const auto& seen : results) CHECK(seen == expected);
  }
}

TEST_CASE("scalars keep NaN, and say what weights cannot be") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const auto results = on_ranks(3, [&](Communicator& comm) {
    const bool odd = comm.rank() == 1;
    std::vector<bool> seen{std::isnan(max(comm, odd ? nan : 1.0)),
                           std::isnan(min(comm, odd ? nan : 1.0)),
                           std::isnan(sum(comm, odd ? nan : 1.0)),
                           weighted_mean(comm, odd ? nan : 2.0, odd ? 0.0 : 1.0) == 2.0};
    try {
      static_cast<void>(weighted_mean(comm, 1.0, comm.rank() - 1.0, {.name = "loss"}));
      seen.push_back(false);
    } catch (const UsageError& error) {
      seen.push_back(std::string(error.what()).find("\"loss\"") != std::string::npos);
    }
    barrier(comm);
    return seen;
  });
  for (const auto& seen : results) CHECK(seen == std::vector<bool>(5, true));
}

TEST_CASE("sizes that do not fit say what was expected and found") {
  SelfCommunicator self;
  const std::vector<float> two(2);
  std::vector<float> three(3);
  CHECK_THROWS_WITH(all_gather(self, two, three, {.name = "w"}),
                    ContainsSubstring("\"w\"") && ContainsSubstring("3 elements") &&
                        ContainsSubstring("expected 2"));
  CHECK_THROWS_WITH(reduce_scatter(self, two, three), ContainsSubstring("expected 3"));
  CHECK_THROWS_WITH(all_reduce(self, two, three), ContainsSubstring("expected 2"));
  CHECK_THROWS_WITH(all_to_all(self, two, three), ContainsSubstring("expected 2"));
  const auto results = on_ranks(2, [](Communicator& comm) {
    std::vector<float> odd(5);
    try {
      all_gather(comm, odd);
    } catch (const UsageError& error) {
      barrier(comm);
      return std::string(error.what());
    }
    return std::string();
  });
  for (const std::string& text : results) {
    CHECK_THAT(text, ContainsSubstring("5 elements") && ContainsSubstring("2 ranks") &&
                         ContainsSubstring("6"));
  }
}

static_assert(ElementRange<std::vector<float>> && ElementRange<const std::array<bf16, 3>> &&
              ElementRange<std::span<const std::int32_t>> && ElementRange<double[2]>);
static_assert(!ElementRange<std::vector<std::string>> && !ElementRange<float>);
static_assert(MutableElementRange<std::span<float>> &&
              !MutableElementRange<std::span<const float>>);

}  // namespace
}  // namespace shardwise::test
