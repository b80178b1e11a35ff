#pragma once

#include <cstdint>

namespace shardwise::inline v0_1 {

/// Where a pointer may be dereferenced.
enum class MemoryKind : std::uint8_t {
  host,
  cuda,
  simulated  ///< nowhere: addresses without memory (device/simulated.hpp)
};

/// A stream of any device, as a communicator sees it: `native` is a HostStream* for host memory, a
/// cudaStream_t for CUDA memory and a SimulatedTimeline* for none. Does not own the stream.
struct StreamRef {
  MemoryKind memory = MemoryKind::host;
  void* native = nullptr;  ///< null: the device's default; on the host, inline in the caller
};

}  // namespace shardwise::inline v0_1
