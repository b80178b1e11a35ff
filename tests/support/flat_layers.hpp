#pragma once

#include <cstddef>
#include <shardwise/host_tensor.hpp>
#include <string>
#include <vector>

namespace shardwise::test {

/// A C-style host: five layers of two stacked arrays behind a table, all in one allocation.
struct FlatHost {
  static constexpr std::size_t layers = 5, wide = 70001, narrow = 301, table = 40000;
  static constexpr std::size_t elements = table + layers * (wide + narrow);

  explicit FlatHost(float* begin) : wte(begin), big(wte + table), small(big + layers * wide) {}

  [[nodiscard]] std::vector<std::vector<HostTensor>> blocks() const {
    return stacked(layers, {{"big", big, {wide}}, {"small", small, {narrow}, {.weight_decay = 0}}});
  }

  float* wte;
  float* big;
  float* small;
};

/// What a rank has found, for the main thread to check.
struct Seen {
  std::vector<std::string> wrong;
  void expect(bool holds, const std::string& what) {
    if (!holds) wrong.push_back(what);
  }
};

}  // namespace shardwise::test
