#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <string>
#include <vector>

// Cases of adapters/torch.hpp. libtorch and Catch2 both define CHECK: what includes torch is apart
// from what asserts.
namespace shardwise::test {

/// The largest difference of two lists, relative to what is above 1; infinity where they cannot be
/// compared, NaN where one differs in that.
template <class Value>
[[nodiscard]] double largest_difference(const std::vector<Value>& a, const std::vector<Value>& b) {
  if (a.empty() || a.size() != b.size()) return std::numeric_limits<double>::infinity();
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const auto x = static_cast<double>(a[i]);
    const double difference = std::abs(x - static_cast<double>(b[i])) / std::max(1.0, std::abs(x));
    if (!(difference <= largest)) largest = difference;
    if (std::isnan(largest)) break;
  }
  return largest;
}

/// A small model's parameters after a few steps of SGD.
struct TorchComparison {
  std::vector<double> plain;
  std::vector<double> sharded;  // rank 0's; empty where other ranks have others
};

/// The names of what compare_torch knows, each a way to use modules that could go wrong.
[[nodiscard]] std::vector<std::string> torch_scenarios();

[[nodiscard]] TorchComparison compare_torch(const std::string& scenario, int world, bool debug,
                                            const std::string& strategy);

/// The names of mistakes, and of accidents on one rank.
[[nodiscard]] std::vector<std::string> torch_misuses();

/// What run_ranks throws when they happen; tells of it where a rank does not end with an exception.
[[nodiscard]] std::string misuse_torch(const std::string& misuse, int world);

}  // namespace shardwise::test
