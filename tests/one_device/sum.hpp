#pragma once

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <cstddef>

namespace one_device {

inline constexpr int most_ranks = 16;

struct Pointers {
  const void* in[most_ranks];
  void* out[most_ranks];
  int inputs;
  int outputs;
};

/// Every output becomes the sum of the inputs, which they may be. False where the type is none of
/// the library's, or the launch is refused.
[[nodiscard]] bool sum(cudaStream_t stream, ncclDataType_t type, const Pointers& pointers,
                       std::size_t count);

}  // namespace one_device
