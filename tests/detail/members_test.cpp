#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cstddef>
#include <shardwise/detail/members.hpp>
#include <shardwise/detail/type_counts.hpp>
#include <vector>

using namespace shardwise;

namespace {

struct Item {
  Item* next_member = nullptr;
};
using Members = detail::Members<Item>;

void check_equal(const Members& members, const std::vector<Item*>& expected) {
  std::vector<Item*> found;
  for (Item* item : members) found.push_back(item);
  REQUIRE(found == expected);
  CHECK(members.size() == expected.size());
  CHECK(members.empty() == expected.empty());
  if (expected.empty()) return;
  CHECK(&members.front() == expected.front());
  CHECK(&members.back() == expected.back());
}

}  // namespace

TEST_CASE("members keep their order, in whatever order they go and come back") {
  std::vector<std::size_t> order{0, 1, 2, 3};
  do {
    std::vector<Item> items(order.size());
    Members members;
    std::vector<Item*> expected;
    check_equal(members, expected);
    for (Item& item : items) {
      members.push_back(item);
      expected.push_back(&item);
      check_equal(members, expected);
    }
    for (const std::size_t which : order) {
      members.erase(items[which]);
      std::erase(expected, &items[which]);
      check_equal(members, expected);
      if (which != 2) continue;
      members.push_back(items[2]);
      expected.push_back(&items[2]);
      check_equal(members, expected);
      members.erase(items[2]);
      expected.pop_back();
    }
    CHECK(members.empty());
    members.push_back(items[1]);
    check_equal(members, {&items[1]});
  } while (std::next_permutation(order.begin(), order.end()));
}

TEST_CASE("counts of types come and go, and list each as often as it is there") {
  detail::TypeCounts counts(std::vector<DType>{DType::f32, DType::bf16, DType::f32});
  CHECK(counts.bytes() == 10);
  CHECK(std::ranges::count(counts.list(), DType::f32) == 2);
  CHECK(counts.list().size() == 3);
  counts.remove(DType::f32);
  counts.add(DType::u8);
  CHECK(counts.bytes() == 7);
  CHECK(std::ranges::count(counts.list(), DType::u8) == 1);
  counts.remove(DType::u8);
  counts.remove(DType::bf16);
  counts.remove(DType::f32);
  CHECK(counts.list().empty());
  CHECK(counts.bytes() == 0);
}
