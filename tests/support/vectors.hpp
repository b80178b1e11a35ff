#pragma once

#include <shardwise/kernels/vectors.hpp>
#include <vector>

namespace shardwise::test {

/// Those that this machine has, from the baseline on.
inline std::vector<detail::Vectors> all_vectors() {
  std::vector<detail::Vectors> found;
  for (const auto each : {detail::Vectors::baseline, detail::Vectors::avx2, detail::Vectors::avx512,
                          detail::Vectors::avx512_bf16}) {
    if (each <= detail::widest_vectors()) found.push_back(each);
  }
  return found;
}

}  // namespace shardwise::test
