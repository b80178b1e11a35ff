#pragma once

#include <nccl.h>

#include <array>

#include "control.hpp"

/// What tests may ask of the fake NCCL, beside control.hpp; zeros on a device. Its options are in
/// nccl_model.hpp.
namespace emulation_control {

/// How many of the communicator's collectives NCCL 2.28.9 would run inside one NVLink domain by
/// generic kernels, by symmetric kernels and by copy engines.
inline std::array<long, 3> nccl_paths(ncclComm_t communicator) {
  std::array<long, 3> counts{};
  if (auto* const call = find<void(ncclComm_t, long*)>("shardwise_emulation_nccl_paths")) {
    call(communicator, counts.data());
  }
  return counts;
}

/// Communicators that were made and neither destroyed nor aborted.
inline int nccl_communicators() {
  auto* const call = find<int()>("shardwise_emulation_nccl_communicators");
  return call != nullptr ? call() : 0;
}

}  // namespace emulation_control
