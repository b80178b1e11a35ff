#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <set>
#include <shardwise/layout.hpp>
#include <string>
#include <vector>

#include "support/property.hpp"

using namespace shardwise;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::MessageMatches;
using Segments = std::vector<Layout::Segment>;
using Runs = std::vector<Layout::Run>;

namespace {

constexpr std::size_t nobody = std::numeric_limits<std::size_t>::max();

/// For each element of the flat buffer the tensor that it belongs to, or nobody: padding.
std::vector<std::size_t> owners(const Layout& layout) {
  std::vector<std::size_t> result(layout.padded_size(), nobody);
  for (std::size_t t = 0; t < layout.tensors().size(); ++t) {
    const Layout::Tensor& tensor = layout.tensors()[t];
    for (std::size_t i = 0; i < tensor.count; ++i) result.at(tensor.offset + i) = t;
  }
  return result;
}

/// The segments of [begin, end), one element after the other.
Segments segments_by_element(const Layout& layout, std::size_t begin, std::size_t end) {
  const auto owner = owners(layout);
  Segments result;
  for (std::size_t i = begin; i < end; ++i) {
    if (owner[i] == nobody) continue;
    if (i > begin && owner[i - 1] == owner[i]) {
      ++result.back().count;
    } else {
      result.push_back({owner[i], i - layout.tensors()[owner[i]].offset, i, 1});
    }
  }
  return result;
}

/// The runs of [begin, end), one element after the other.
Runs runs_by_element(const Layout& layout, std::size_t begin, std::size_t end) {
  const auto owner = owners(layout);
  Runs result;
  for (std::size_t i = begin; i < end; ++i) {
    if (owner[i] == nobody) continue;
    const TensorOptions& options = layout.tensors()[owner[i]].options;
    if (i > begin && owner[i - 1] != nobody && result.back().options == options) {
      ++result.back().count;
    } else {
      result.push_back({options, i, 1});
    }
  }
  return result;
}

/// What is wrong with the tensors' places and the shards' sizes; empty: nothing.
std::string fault_of_places(const Layout& layout, const std::vector<TensorSpec>& specs) {
  std::size_t end = 0;
  std::size_t size = 0;
  if (layout.tensors().size() != specs.size()) return "tensors are missing";
  for (std::size_t t = 0; t < specs.size(); ++t) {
    const Layout::Tensor& tensor = layout.tensors()[t];
    std::size_t count = 1;
    for (const std::size_t extent : specs[t].shape) count *= extent;
    if (tensor.name != specs[t].name || tensor.options != specs[t].options) return "a wrong tensor";
    if (tensor.count != count || tensor.shape.size() != specs[t].shape.size())
      return "a wrong count";
    if (tensor.offset % 32 != 0) return "a tensor is not aligned";
    if (tensor.offset < end || tensor.offset - end >= 32) return "tensors overlap or lie apart";
    if (layout.find(tensor.name) != t) return "a tensor is not found";
    end = tensor.offset + count;
    size += count;
  }
  const auto world = static_cast<std::size_t>(layout.world());
  if (layout.size() != size) return "a wrong size";
  if (layout.padded_size() != world * layout.shard_size()) return "shards do not cover the buffer";
  if (layout.shard_size() % 32 != 0) return "shards are not aligned";
  if (layout.padded_size() < end) return "the buffer ends too early";
  if (layout.padded_size() - end >= world * 32) return "too much padding at the end";
  return "";
}

/// What is wrong with the segments of the shards; empty: nothing.
std::string fault_of_shards(const Layout& layout) {
  const auto owner = owners(layout);
  std::vector<int> seen(layout.padded_size(), 0);
  std::size_t next = 0;
  for (int rank = 0; rank < layout.world(); ++rank) {
    const std::size_t begin = layout.shard_begin(rank);
    const std::size_t end = begin + layout.shard_size();
    if (begin != next) return "shards overlap or leave a gap";
    next = end;
    for (const Layout::Segment& segment : layout.segments(rank)) {
      const Layout::Tensor& tensor = layout.tensors()[segment.tensor];
      if (segment.count == 0) return "an empty segment";
      if (segment.offset < begin || segment.offset + segment.count > end) return "out of the shard";
      if (segment.offset != tensor.offset + segment.tensor_offset) return "offsets do not agree";
      for (std::size_t i = 0; i < segment.count; ++i) {
        if (owner[segment.offset + i] != segment.tensor) return "an element of somebody else";
        ++seen[segment.offset + i];
      }
    }
    if (layout.runs(begin, end) != runs_by_element(layout, begin, end)) return "wrong runs";
  }
  if (next != layout.padded_size()) return "the last shard ends elsewhere";
  for (std::size_t i = 0; i < seen.size(); ++i) {
    if (seen[i] != (owner[i] == nobody ? 0 : 1)) return "an element is in no shard, or in several";
  }
  return "";
}

std::string fault(const std::vector<TensorSpec>& specs, int world) {
  const Layout layout(specs, world);
  const std::string places = fault_of_places(layout, specs);
  return places.empty() ? fault_of_shards(layout) : places;
}

/// Up to 8 tensors of up to 3 extents, many of them 0, 1 or around the alignment.
std::vector<TensorSpec> random_tensors() {
  const auto extents = rc::gen::weightedOneOf<int>({{1, rc::gen::just(0)},
                                                    {3, rc::gen::just(1)},
                                                    {6, rc::gen::inRange(2, 9)},
                                                    {3, rc::gen::element(31, 32, 33, 64)}});
  const auto multipliers = rc::gen::element(1.0f, 0.0f, 0.5f);
  std::vector<TensorSpec> tensors(static_cast<std::size_t>(*rc::gen::inRange(0, 9)));
  for (std::size_t t = 0; t < tensors.size(); ++t) {
    tensors[t].name = "t" + std::to_string(t * 7 % 11);
    const int rank = *rc::gen::inRange(0, 4);
    for (int i = 0; i < rank; ++i) tensors[t].shape.emplace_back(*extents);
    tensors[t].options = {.weight_decay = *multipliers, .learning_rate = *multipliers};
  }
  return tensors;
}

int random_world() {
  return *rc::gen::weightedOneOf<int>(
      {{4, rc::gen::inRange(1, 10)}, {1, rc::gen::inRange(10, 70)}, {1, rc::gen::just(1000)}});
}

}  // namespace

TEST_CASE("shards are disjoint, covering, in bounds and aligned; segments are their elements") {
  test::check_property(
      "shards partition the tensors",
      [] {
        const auto tensors = random_tensors();
        const int world = random_world();
        RC_ASSERT(fault(tensors, world) == std::string());
      },
      300);
}

TEST_CASE("segments and runs of any range are those of its elements") {
  test::check_property(
      "ranges",
      [] {
        const Layout layout(random_tensors(), *rc::gen::inRange(1, 10));
        const auto size = static_cast<long>(layout.padded_size());
        const auto begin = static_cast<std::size_t>(*rc::gen::inRange(0L, size + 1));
        const auto end =
            static_cast<std::size_t>(*rc::gen::inRange(static_cast<long>(begin), size + 1));
        RC_ASSERT(layout.segments(begin, end) == segments_by_element(layout, begin, end));
        RC_ASSERT(layout.runs(begin, end) == runs_by_element(layout, begin, end));
      },
      300);
}

TEST_CASE("small and strange layouts") {
  const std::vector<std::vector<TensorSpec>> all = {
      {},
      {{"scalar", {}}},
      {{"nothing", {0}}},
      {{"a", {0}}, {"b", {5, 0, 3}}, {"c", {0, 0}}},
      {{"a", {0}}, {"one", {1}}, {"b", {0}}},
      {{"one", {1}}, {"nothing", {0}}, {"another", {1}}},
      {{"a", {32}}, {"b", {32}}, {"c", {32}, {.weight_decay = 0}}, {"d", {31}}, {"e", {32}}},
      {{"large", {1000, 7}}, {"b", {7}, {.weight_decay = 0}}},
  };
  for (const auto& tensors : all) {
    for (const int world : {1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 100, 1023}) {
      CAPTURE(tensors.size(), world);
      CHECK(fault(tensors, world) == "");
    }
  }
}

TEST_CASE("a layout without elements needs no memory") {
  for (const auto& tensors : {std::vector<TensorSpec>{}, {{"a", {0}}, {"b", {0, 4}}}}) {
    const Layout layout(tensors, 4);
    CHECK(layout.size() == 0);
    CHECK(layout.padded_size() == 0);
    CHECK(layout.shard_size() == 0);
    CHECK(layout.shard_begin(3) == 0);
    CHECK(layout.segments(2).empty());
  }
}

TEST_CASE("where there are more ranks than elements, most shards are padding") {
  const Layout layout({{"w", {40}}}, 8);
  CHECK(layout.shard_size() == 32);
  CHECK(layout.segments(0) == Segments{{0, 0, 0, 32}});
  CHECK(layout.segments(1) == Segments{{0, 32, 32, 8}});
  for (int rank = 2; rank < 8; ++rank) CHECK(layout.segments(rank).empty());
}

TEST_CASE("a host writes shapes with its own integers and options by name") {
  const int d = 64;
  const Layout layout({{"w", {3 * d, d}}, {"b", {3 * d}, {.weight_decay = 0}}}, 2);
  REQUIRE(layout.tensors().size() == 2);
  CHECK(layout.tensors()[0].shape == std::vector<std::size_t>{192, 64});
  CHECK(layout.tensors()[1].options == TensorOptions{.weight_decay = 0});
  CHECK(layout.tensors()[1].offset == 192 * 64);
  CHECK(layout.size() == 192 * 64 + 192);
  CHECK_THROWS_AS(Layout({{"w", {-1}}}, 2), UsageError);
}

TEST_CASE("runs merge neighbours with equal options, but never across padding") {
  const Layout layout(
      {{"a", {32}}, {"b", {40}}, {"c", {32}}, {"d", {32}, {.weight_decay = 0}}, {"e", {32}}}, 1);
  const TensorOptions decays;
  CHECK(layout.runs(0, layout.padded_size()) ==
        Runs{{decays, 0, 72}, {decays, 96, 32}, {{.weight_decay = 0}, 128, 32}, {decays, 160, 32}});
  CHECK(layout.runs(10, 50) == Runs{{decays, 10, 40}});
  CHECK(layout.runs(72, 96).empty());
}

TEST_CASE("find names what there is") {
  const Layout layout({{"b", {1}}, {"a", {1}}, {"c", {1}}}, 1);
  CHECK(layout.find("a") == 1);
  CHECK(layout.find("b") == 0);
  CHECK(layout.find("c") == 2);
  for (const char* name : {"", "A", "aa", "d"}) {
    CHECK_THROWS_MATCHES(layout.find(name), UsageError,
                         MessageMatches(ContainsSubstring("'" + std::string(name) + "'") &&
                                        ContainsSubstring("'b', 'a', 'c'")));
  }
  CHECK_THROWS_MATCHES(Layout({}, 1).find("a"), UsageError,
                       MessageMatches(ContainsSubstring("none at all")));
  std::vector<TensorSpec> many;
  for (int i = 0; i < 40; ++i) many.push_back({"t" + std::to_string(i), {1}});
  CHECK_THROWS_MATCHES(Layout(many, 1).find("a"), UsageError,
                       MessageMatches(ContainsSubstring("and 8 more")));
}

TEST_CASE("names are given once") {
  CHECK_THROWS_MATCHES(
      Layout({{"a", {1}}, {"b", {1}}, {"a", {2}}}, 1), UsageError,
      MessageMatches(ContainsSubstring("tensors 0 and 2") && ContainsSubstring("'a'")));
  CHECK_THROWS_MATCHES(Layout({{"a", {1}}, {"", {1}}}, 1), UsageError,
                       MessageMatches(ContainsSubstring("tensor 1")));
}

TEST_CASE("worlds, ranks, ranges and multipliers are checked") {
  CHECK_THROWS_AS(Layout({}, 0), UsageError);
  CHECK_THROWS_AS(Layout({}, -1), UsageError);
  const Layout layout({{"a", {100}}}, 3);
  CHECK_THROWS_MATCHES(layout.shard_begin(3), UsageError,
                       MessageMatches(ContainsSubstring("rank 3")));
  CHECK_THROWS_AS(layout.shard_begin(-1), UsageError);
  CHECK_THROWS_AS(layout.segments(3), UsageError);
  CHECK_THROWS_AS(layout.segments(0, layout.padded_size() + 1), UsageError);
  CHECK_THROWS_AS(layout.segments(2, 1), UsageError);
  CHECK(layout.segments(layout.padded_size(), layout.padded_size()).empty());
  for (const float bad : {-1.0f, static_cast<float>(NAN), static_cast<float>(INFINITY)}) {
    CHECK_THROWS_MATCHES(Layout({{"a", {1}, {.weight_decay = bad}}}, 1), UsageError,
                         MessageMatches(ContainsSubstring("weight_decay")));
    CHECK_THROWS_MATCHES(Layout({{"a", {1}, {.learning_rate = bad}}}, 1), UsageError,
                         MessageMatches(ContainsSubstring("learning_rate")));
  }
}

TEST_CASE("what does not fit into memory is refused by name") {
  constexpr std::size_t huge = std::size_t{1} << 40;
  CHECK_THROWS_MATCHES(Layout({{"a", {1}}, {"w", {huge, huge}}}, 1), UsageError,
                       MessageMatches(ContainsSubstring("'w'")));
  const std::size_t most = std::numeric_limits<std::size_t>::max();
  CHECK_THROWS_MATCHES(Layout({{"v", {most - 40}}, {"w", {most - 40}}}, 1), UsageError,
                       MessageMatches(ContainsSubstring("'w'")));
  CHECK_THROWS_AS(Layout({{"w", {most}}}, 1), UsageError);
  CHECK_THROWS_AS(Layout({{"w", {most}}}, 7), UsageError);
  CHECK_THROWS_AS(Layout({{"w", {std::size_t{1} << 61}}}, 1), UsageError);
  // Large, but within reach of a 64-bit machine.
  CHECK(Layout({{"w", {huge}}}, 1024).shard_size() == (std::size_t{1} << 30));
  // Nothing, whatever the other extents.
  CHECK(Layout({{"w", {huge, huge, 0}}}, 1).size() == 0);
}

TEST_CASE("the hash sees names, shapes, options, order and world, and nothing else") {
  const std::vector<std::vector<TensorSpec>> different = {
      {},
      {{"a", {4, 6}}},
      {{"b", {4, 6}}},
      {{"a", {6, 4}}},
      {{"a", {24}}},
      {{"a", {4, 6, 1}}},
      {{"a", {4, 6}, {.weight_decay = 0}}},
      {{"a", {4, 6}, {.learning_rate = 0}}},
      {{"a", {4, 6}}, {"b", {1}}},
      {{"b", {1}}, {"a", {4, 6}}},
      {{"a", {4}}, {"b", {6}}},
      {{"ab", {4}}, {"c", {6}}},
      {{"a", {4}}, {"bc", {6}}},
      {{"a", {}}},
      {{"a", {0}}},
  };
  std::set<std::uint64_t> hashes;
  for (const auto& tensors : different) {
    for (const int world : {1, 2, 3}) {
      const Layout layout(tensors, world);
      hashes.insert(layout.hash());
      CHECK(layout.hash() == Layout(tensors, world).hash());
    }
  }
  CHECK(hashes.size() == 3 * different.size());
  CHECK(Layout({{"a", {1}, {.weight_decay = -0.0f}}}, 1).hash() ==
        Layout({{"a", {1}, {.weight_decay = 0.0f}}}, 1).hash());
}
