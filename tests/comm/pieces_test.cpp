#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cstddef>
#include <cstring>
#include <memory>
#include <random>
#include <shardwise/comm/self.hpp>
#include <shardwise/comm/thread.hpp>
#include <string>
#include <vector>

#include "../support/ranks.hpp"

using namespace shardwise;
using Catch::Matchers::ContainsSubstring;
using shardwise::test::on_ranks;
using shardwise::test::worlds;

namespace {

/// A flat buffer of floats that lies in pieces, with gaps between them, in memory of its own.
struct Scattered {
  Scattered(std::size_t elements, unsigned seed) {
    std::mt19937 random(seed);
    std::size_t offset = elements > 3 ? random() % 3 : 0;
    while (offset < elements) {
      const std::size_t count = std::min<std::size_t>(random() % 9, elements - offset);
      memory.emplace_back(count + 1, -1.0f);  // one more, to see who writes past the end
      pieces.push_back({nullptr, offset, count});
      offset += count + random() % 4;
    }
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      if (pieces[i].count > 0) pieces[i].data = reinterpret_cast<std::byte*>(memory[i].data());
    }
  }
  /// f(flat offset, element) for each element of a piece.
  template <class F>
  void each(F&& f) {
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      for (std::size_t k = 0; k < pieces[i].count; ++k) f(pieces[i].offset + k, memory[i][k]);
    }
  }
  [[nodiscard]] bool ends_untouched() const {
    return std::all_of(memory.begin(), memory.end(), [](const auto& m) { return m.back() == -1; });
  }

  std::vector<std::vector<float>> memory;
  std::vector<Piece> pieces;
};

float value(std::size_t rank, std::size_t element) {
  return static_cast<float>(rank * 1000 + element);
}

/// What pieces give, against the same call on flat buffers; empty where all is equal.
std::string compare(Communicator& comm, unsigned seed, std::size_t part) {
  const auto world = static_cast<std::size_t>(comm.size());
  const auto rank = static_cast<std::size_t>(comm.rank());
  const std::size_t all = world * part;
  const CallInfo info{"pieces"};
  std::vector<float> flat(all), mine(part);
  for (std::size_t i = 0; i < part; ++i) mine[i] = value(rank, rank * part + i);

  for (const bool inside : {false, true}) {  // each rank's own part is in its pieces already
    Scattered target(all, seed);
    if (inside) {
      target.each([&](std::size_t at, float& element) {
        if (at / part == rank) element = value(rank, at);
      });
    }
    const GatherItem item{inside ? nullptr : mine.data(), nullptr, part, DType::f32, target.pieces};
    comm.all_gather({&item, 1}, info, {});
    bool good = target.ends_untouched();
    target.each(
        [&](std::size_t at, float& element) { good = good && element == value(at / part, at); });
    if (!good) return "all_gather";
  }

  for (const bool scatter : {true, false}) {
    for (const bool accumulate : {false, true}) {
      Scattered source(all, seed);
      std::fill(flat.begin(), flat.end(), 0.0f);
      source.each([&](std::size_t at, float& element) {
        element = 0.37f * value(rank, at);
        flat[at] = element;
      });
      const std::size_t count = scatter ? part : all;
      std::vector<float> expected(count, 5.0f), result(count, 5.0f);
      ReduceSpec spec{DType::f32, 0.25, 1.0 + static_cast<double>(rank), accumulate, true};
      ReduceItem of_flat{flat.data(), expected.data(), count, DType::f32, spec};
      ReduceItem of_pieces{nullptr, result.data(), count, DType::f32, spec};
      of_pieces.pieces = source.pieces;
      if (scatter) {
        comm.reduce_scatter({&of_flat, 1}, info, {});
        comm.reduce_scatter({&of_pieces, 1}, info, {});
      } else {
        comm.all_reduce({&of_flat, 1}, info, {});
        comm.all_reduce({&of_pieces, 1}, info, {});
      }
      if (std::memcmp(expected.data(), result.data(), count * sizeof(float)) != 0) {
        return fmt::format("{} accumulate {}", scatter ? "reduce_scatter" : "all_reduce",
                           accumulate);
      }
    }
  }
  return {};
}

}  // namespace

TEST_CASE("collectives over pieces give the bits of flat buffers, and zeros between pieces") {
  for (unsigned seed = 0; seed < 30; ++seed) {
    const std::size_t part = 1 + seed * 7 % 61;
    for (const int world : worlds) {
      const auto wrong =
          on_ranks(world, [&](Communicator& comm) { return compare(comm, seed, part); });
      INFO("world " << world << " seed " << seed);
      for (const auto& text : wrong) CHECK(text == "");
    }
    SelfCommunicator self;
    CHECK(compare(self, seed, part) == "");
  }
}

TEST_CASE("pieces that cannot be right are refused, and ranks whose pieces differ as well") {
  SelfCommunicator self;
  std::vector<float> memory(20), other(20);
  auto* const bytes = reinterpret_cast<std::byte*>(memory.data());
  const std::vector<std::vector<Piece>> wrong = {
      {{bytes, 5, 5}, {bytes, 3, 2}},  // not ascending
      {{bytes, 0, 5}, {bytes, 4, 2}},  // overlapping
      {{bytes, 8, 5}},                 // beyond the end
      {{nullptr, 0, 1}},               // null
      {{bytes, SIZE_MAX, 1}},
  };
  for (const auto& pieces : wrong) {
    const GatherItem gather{other.data(), nullptr, 10, DType::f32, pieces};
    CHECK_THROWS_AS(self.all_gather({&gather, 1}, {"wrong"}, {}), UsageError);
    ReduceItem reduce{nullptr, other.data(), 10, DType::f32, {}};
    reduce.pieces = pieces;
    CHECK_THROWS_AS(self.reduce_scatter({&reduce, 1}, {"wrong"}, {}), UsageError);
  }
  const std::vector<Piece> good = {{bytes, 0, 10}};
  const GatherItem both{other.data(), memory.data(), 10, DType::f32, good};
  CHECK_THROWS_AS(self.all_gather({&both, 1}, {"wrong"}, {}), UsageError);

  for (const int kind : {0, 1, 2}) {
    const auto texts = on_ranks(2, [&](Communicator& comm) {
      std::vector<float> send(4), recv(8);
      auto* const at = reinterpret_cast<std::byte*>(recv.data());
      std::vector<Piece> pieces = {{at, 0, 3}, {at + 12, 4, 2}};
      const bool odd = comm.rank() == 1;
      if (odd && kind == 0) pieces[1].offset = 5;
      GatherItem item{send.data(), nullptr, 4, DType::f32, pieces};
      if (odd && kind == 1) item = {send.data(), recv.data(), 4, DType::f32, {}};
      if (odd && kind == 2) item.send = nullptr;
      try {
        comm.all_gather({&item, 1}, {"odd"}, {});
      } catch (const CollectiveMismatch& error) {
        return std::string(error.what());
      }
      return std::string();
    });
    for (const auto& text : texts) CHECK_THAT(text, ContainsSubstring("\"odd\""));
  }
}
