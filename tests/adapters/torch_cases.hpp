#pragma once

#include <cstddef>
#include <string>
#include <vector>

// Cases of adapters/torch.hpp. libtorch and Catch2 both define CHECK: what includes torch is apart
// from what asserts.
namespace shardwise::test {

/// A small model that a few steps of SGD train, plain and sharded over `world` ranks.
struct TorchComparison {
  std::vector<float> plain;
  std::vector<float> sharded;  // rank 0's; empty where a rank saw something else than rank 0

  [[nodiscard]] bool equal() const { return plain == sharded; }
  /// The largest difference; infinity where there is nothing to compare.
  [[nodiscard]] double distance() const;
};

/// The names of what compare_torch knows, each a way to use modules that could go wrong.
[[nodiscard]] std::vector<std::string> torch_scenarios();

[[nodiscard]] TorchComparison compare_torch(const std::string& scenario, int world, bool debug,
                                            const std::string& strategy);

/// The message of the UsageError (or other exception) that a misuse ends with; empty: none. Runs on
/// `world` ranks; each must end with an exception.
[[nodiscard]] std::vector<std::string> torch_misuses();
[[nodiscard]] std::string misuse_torch(const std::string& misuse, int world);

}  // namespace shardwise::test
