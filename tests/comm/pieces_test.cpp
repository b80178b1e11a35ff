#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cstddef>
#include <shardwise/comm/self.hpp>
#include <shardwise/comm/thread.hpp>
#include <string>
#include <vector>

#include "../support/ranks.hpp"
#include "piece_cases.hpp"

using namespace shardwise;
using Catch::Matchers::ContainsSubstring;
using shardwise::test::compare_pieces;
using shardwise::test::on_ranks;
using shardwise::test::worlds;

TEST_CASE("collectives over pieces give the bits of flat buffers, and zeros between pieces") {
  for (unsigned seed = 0; seed < 30; ++seed) {
    const std::size_t part = 1 + seed * 7 % 61;
    for (const int world : worlds) {
      const auto wrong =
          on_ranks(world, [&](Communicator& comm) { return compare_pieces(comm, seed, part); });
      INFO("world " << world << " seed " << seed);
      for (const auto& text : wrong) CHECK(text == "");
    }
    SelfCommunicator self;
    CHECK(compare_pieces(self, seed, part) == "");
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
