#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cerrno>
#include <cstdarg>
#include <cstddef>
#include <cstring>
#include <random>
#include <shardwise/detail/address_range.hpp>
#include <shardwise/detail/page_pool.hpp>
#include <string>
#include <utility>
#include <vector>

using namespace shardwise;
using Catch::Matchers::ContainsSubstring;
using detail::Access;
using detail::AddressRange;
using detail::PagePool;
using detail::PageRange;
using detail::Recycling;
using detail::Release;

namespace {

/// Whether the system is as one before Linux 5.7.
bool cannot_move = false;

}  // namespace

/// The system's, called as the library does.
extern "C" void* mremap(void* from, std::size_t from_bytes, std::size_t to_bytes, int flags,
                        ...) noexcept {
  std::va_list rest;
  va_start(rest, flags);
  void* const to = va_arg(rest, void*);
  va_end(rest);
  if (cannot_move && (flags & ~(MREMAP_MAYMOVE | MREMAP_FIXED)) != 0) {
    errno = EINVAL;
    return MAP_FAILED;
  }
  return reinterpret_cast<void*>(syscall(SYS_mremap, from, from_bytes, to_bytes, flags, to));
}

namespace {

std::size_t page() { return detail::page_size(); }

void fill(const std::vector<PageRange>& ranges, unsigned seed) {
  for (std::size_t r = 0; r < ranges.size(); ++r) {
    for (std::size_t p = 0; p < ranges[r].bytes; p += page()) {
      ranges[r].begin[p] = static_cast<std::byte>(seed + r * 7 + p / page());
      ranges[r].begin[p + page() - 1] = static_cast<std::byte>(seed + 1);
    }
  }
}
bool holds(const std::vector<PageRange>& ranges, unsigned seed) {
  for (std::size_t r = 0; r < ranges.size(); ++r) {
    for (std::size_t p = 0; p < ranges[r].bytes; p += page()) {
      if (ranges[r].begin[p] != static_cast<std::byte>(seed + r * 7 + p / page())) return false;
      if (ranges[r].begin[p + page() - 1] != static_cast<std::byte>(seed + 1)) return false;
    }
  }
  return true;
}
bool zero(const std::vector<PageRange>& ranges) {
  return std::all_of(ranges.begin(), ranges.end(), [](const PageRange& range) {
    return std::all_of(range.begin, range.begin + range.bytes,
                       [](std::byte byte) { return byte == std::byte{0}; });
  });
}

}  // namespace

TEST_CASE("pages go from range to range, directly or by way of the pool, and keep what they hold") {
  // Several users of one pool, of equal and of different shapes, in random order. What a user finds
  // is what the pool's pages held: its own where nobody else came between.
  for (const bool cuts_stay : {false, true}) {
    for (unsigned seed = 0; seed < 40; ++seed) {
      std::mt19937 random(seed);
      Ledger ledger;
      const std::size_t pages = 60;
      PagePool pool(ledger, pages * page(), Recycling::move);
      if (cuts_stay) pool.assume_cuts_stay();
      CHECK(ledger.held().slots == pages * page());
      const PageRange arena{detail::reserve_pages(1000 * page()), 1000 * page()};
      std::byte* next = arena.begin + page();
      std::vector<std::vector<PageRange>> users;
      for (int user = 0; user < 5; ++user) {
        std::vector<PageRange> ranges;
        if (user % 2 == 1) {  // the shape of the one before, elsewhere
          for (const PageRange& range : users.back()) {
            ranges.push_back({next, range.bytes});
            next += range.bytes + page();
          }
        } else {
          std::size_t left = 1 + random() % pages;
          while (left > 0 && ranges.size() < 6) {
            const std::size_t count = 1 + random() % left;
            ranges.push_back({next, count * page()});
            next += (count + random() % 3) * page();
            left -= count;
          }
        }
        users.push_back(ranges);
      }
      std::size_t last = users.size();
      unsigned pattern = 0;
      for (unsigned turn = 0; turn < 60; ++turn) {
        const std::size_t user = random() % users.size();
        pool.lend(users[user]);
        REQUIRE(pool.is_lent_below(users[user]));
        const bool same_shape =
            last < users.size() && users[last].size() == users[user].size() &&
            std::equal(users[last].begin(), users[last].end(), users[user].begin(),
                       [](const auto& a, const auto& b) { return a.bytes == b.bytes; });
        if (last == user || same_shape) REQUIRE(holds(users[user], pattern));
        if (last < users.size() && last != user) REQUIRE(zero(users[last]));
        pattern = static_cast<unsigned>(random() % 200);
        fill(users[user], pattern);
        last = user;
        if (random() % 3 == 0) {
          REQUIRE(pool.take_back(Access::write));
          REQUIRE_FALSE(pool.lent());
          REQUIRE(zero(users[user]));
        }
      }
      pool = {};
      CHECK(ledger.held().slots == 0);
      detail::unmap_pages(arena);
    }
  }
}

TEST_CASE("where pages cannot move they are fresh each time") {
  Ledger ledger;
  PagePool pool(ledger, 4 * page(), Recycling::refill);
  const PageRange arena{detail::reserve_pages(8 * page()), 8 * page()};
  const std::vector<PageRange> ranges = {{arena.begin, 3 * page()},
                                         {arena.begin + 5 * page(), page()}};
  for (unsigned i = 0; i < 3; ++i) {
    pool.lend(ranges);
    CHECK(zero(ranges));
    fill(ranges, i);
    CHECK(pool.take_back(Access::write));
  }
  CHECK_FALSE(pool.keeps_contents());
  detail::unmap_pages(arena);
}

TEST_CASE("aliased pages lie below all ranges to which they were lent") {
  Ledger ledger;
  PagePool pool(ledger, 6 * page(), Recycling::alias);
  CHECK(ledger.held().slots == 6 * page());
  CHECK(pool.stays_below());
  const PageRange arena{detail::reserve_pages(40 * page()), 40 * page()};
  const std::vector<PageRange> first = {{arena.begin + page(), 4 * page()},
                                        {arena.begin + 9 * page(), 2 * page()}};
  const std::vector<PageRange> second = {{arena.begin + 20 * page(), 4 * page()},
                                         {arena.begin + 30 * page(), 2 * page()}};
  pool.lend(first);
  CHECK(zero(first));
  fill(first, 3);
  pool.lend(second);
  CHECK(pool.is_lent_below(second));
  CHECK_FALSE(pool.is_lent_below(first));
  CHECK(holds(second, 3));
  fill(second, 5);
  CHECK(holds(first, 5));
  CHECK(pool.take_back(Access::write));
  CHECK_FALSE(pool.lent());
  CHECK(holds(second, 5));
  pool.lend_again(first);
  CHECK(pool.is_lent_below(first));
  CHECK(arena.begin[0] == std::byte{0});  // and nothing is beside the ranges
  CHECK(arena.begin[8 * page()] == std::byte{0});
  pool.abandon(first);
  CHECK_FALSE(pool.is_lent_below(first));
  for (const PageRange& range : first) CHECK(detail::empty_pages(range, Access::write));
  CHECK(zero(first));
  CHECK(holds(second, 5));
  pool = {};
  CHECK(ledger.held().slots == 0);
  detail::unmap_pages(arena);
}

TEST_CASE("an address range does what the system can, for several ranges at once or for one") {
  const auto kinds = [](Recycling asked, bool debug = false) {
    const AddressRange range(100000, "weights", asked, Release::lazy, debug);
    return std::pair(range.recycling(), range.recycling_singly());
  };
  using Kinds = std::pair<Recycling, Recycling>;
  CHECK(kinds(Recycling::move) == Kinds(Recycling::move, Recycling::move));
  CHECK(kinds(Recycling::alias) == Kinds(Recycling::alias, Recycling::move));
  CHECK(kinds(Recycling::alias, true) == Kinds(Recycling::move, Recycling::move));
  CHECK(kinds(Recycling::refill) == Kinds(Recycling::refill, Recycling::refill));
  cannot_move = true;
  CHECK(kinds(Recycling::move) == Kinds(Recycling::refill, Recycling::refill));
  CHECK(kinds(Recycling::alias) == Kinds(Recycling::alias, Recycling::refill));
  CHECK(kinds(Recycling::alias, true) == Kinds(Recycling::refill, Recycling::refill));
  cannot_move = false;
}

TEST_CASE("an address range knows whose each byte is") {
  AddressRange range(300000 * sizeof(float), "weights", Recycling::move, Release::lazy, false);
  auto* const p = reinterpret_cast<float*>(range.data());
  const auto error_of = [](auto&& f) {
    try {
      f();
    } catch (const UsageError& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  const std::vector<HostTensor> first = {
      {"a", p, {100000}}, {"b", p + 100000, {50000}}, {"c", p + 200000, {100}}};
  const detail::Placed placed = range.claim("first", first, true);
  // a and b are neighbours: one range. c is too small for one.
  CHECK(placed.pages().size() == 1);
  CHECK(placed.pages()[0].begin == range.data());
  CHECK(placed.page_bytes() + placed.crumb_bytes() == (150000 + 100) * sizeof(float));
  CHECK(placed.crumb_bytes() < 2 * page() + 100 * sizeof(float));
  CHECK(range.recycled_bytes() == placed.page_bytes());
  CHECK_THAT(
      error_of([&] {
        const std::vector<HostTensor> again = {{"z", p + 250000, {5}}, {"x", p + 99999, {2}}};
        (void)range.claim("second", again, true);
      }),
      ContainsSubstring("tensor 'x' of parameter 'second' overlaps tensor 'a' of parameter "
                        "'first' in arena 'weights'") ||
          ContainsSubstring("overlaps tensor 'b' of parameter 'first'"));
  CHECK_THAT(error_of([&] {
               const std::vector<HostTensor> within = {{"x", p + 100, {2}}};
               (void)range.claim("second", within, true);
             }),
             ContainsSubstring("overlaps tensor 'a' of parameter 'first'"));
  CHECK_THAT(error_of([&] {
               const std::vector<HostTensor> outside = {{"x", p + 299999, {2}}};
               (void)range.claim("second", outside, true);
             }),
             ContainsSubstring("'x' of parameter 'second' is not within arena 'weights'"));
  CHECK_THAT(error_of([&] { range.check_coverage(); }),
             ContainsSubstring("599600 of 1200000 bytes belong to no parameter") &&
                 ContainsSubstring("bytes [600000, 800000), after b, before c") &&
                 ContainsSubstring("bytes [800400, 1200000), after c, before the end"));
  const std::vector<HostTensor> rest = {{"d", p + 150000, {50000}}, {"e", p + 200100, {99900}}};
  const detail::Placed kept = range.claim("rest", rest, false);
  CHECK(kept.pages().empty());
  CHECK(error_of([&] { range.check_coverage(); }) == "");
  range.release(placed);
  CHECK(range.recycled_bytes() == 0);
  CHECK_THAT(error_of([&] { range.check_coverage(); }), ContainsSubstring("bytes [0, 600000)"));
  CHECK_THAT(error_of([&] { AddressRange none(0, "none", Recycling::move, Release::lazy, false); }),
             ContainsSubstring("has no bytes"));
}
