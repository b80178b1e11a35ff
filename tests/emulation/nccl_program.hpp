#pragma once

#include <map>
#include <string>

#include "plain_nccl.hpp"

/// What the programs of nccl_program.cpp have in common: a rank's buffers and two operations on
/// them.
namespace program {

using plain::Communicator;
using plain::DeviceArray;
using plain::Event;
using plain::PinnedArray;
using plain::Rank;
using plain::Stream;

constexpr std::size_t part = 512;
constexpr auto on_device = cudaMemcpyDeviceToDevice;

struct Buffers {
  DeviceArray<float> whole;
  DeviceArray<float> other;
  explicit Buffers(const Rank& own)
      : whole(part * static_cast<std::size_t>(own.ranks)),
        other(part * static_cast<std::size_t>(own.ranks)) {
    PLAIN_CUDA(cudaMemsetAsync(whole.data, 0, whole.bytes(), own.stream));
    PLAIN_CUDA(cudaMemsetAsync(other.data, 0, other.bytes(), own.stream));
    own.stream.synchronize();
  }
  float* mine(const Rank& own) const {
    return whole.data + static_cast<std::size_t>(own.rank) * part;
  }
};

inline void gather(const Rank& own, const Buffers& buffers, std::size_t count = part) {
  PLAIN_NCCL(ncclAllGather(buffers.whole.data + static_cast<std::size_t>(own.rank) * count,
                           buffers.whole.data, count, ncclFloat32, own.world, own.stream));
}

inline void reduce(const Rank& own, const Buffers& buffers, ncclRedOp_t reduction = ncclSum) {
  PLAIN_NCCL(ncclAllReduce(buffers.other.data, buffers.other.data, part, ncclFloat32, reduction,
                           own.world, own.stream));
}

/// Scenarios about memory, by name: nccl_program_memory.cpp.
using Scenario = void (*)(Rank& own, bool bug);
std::map<std::string, Scenario> memory_scenarios();

}  // namespace program
