#pragma once

#include <catch2/catch_test_macros.hpp>
#include <cstddef>
#include <vector>

#include "cases.hpp"

namespace shardwise::test {

/// What one rank got from a row of collectives: by case, by item.
using Results = std::vector<std::vector<Bytes>>;

/// On the main thread: every result holds what the reference says.
inline void check(const Results& results, const std::vector<CollectiveCase>& cases, int rank,
                  int world) {
  REQUIRE(results.size() == cases.size());
  for (std::size_t i = 0; i < cases.size(); ++i) {
    if (results[i] == RankCall::expected(cases[i], rank, world)) continue;
    const ItemCase item = cases[i].items.empty() ? ItemCase() : cases[i].items.front();
    FAIL_CHECK(name_of(cases[i].operation)
               << " case " << i << ", rank " << rank << " of " << world << ", "
               << cases[i].items.size() << " items, " << name_of(item.dtype) << " x " << item.count
               << " -> " << name_of(item.output) << ", in place " << item.in_place
               << ", accumulate " << item.accumulate << ", weighted " << item.weighted);
  }
}

}  // namespace shardwise::test
