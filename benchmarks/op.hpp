#pragma once

#include <algorithm>
#include <string>
#include <vector>

/// Plain C++17: programs of the peers share it.
namespace benchmarks {

/// The collectives that are measured.
enum class Op { all_gather, reduce_scatter, all_reduce, broadcast, all_to_all };
inline const std::vector<std::string> op_names{"all_gather", "reduce_scatter", "all_reduce",
                                               "broadcast", "all_to_all"};

[[nodiscard]] inline Op op_named(const std::string& name) {
  return static_cast<Op>(std::find(op_names.begin(), op_names.end(), name) - op_names.begin());
}

}  // namespace benchmarks
