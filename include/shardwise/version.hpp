#pragma once

/// The version of these headers; CMake reads it from here.
#define SHARDWISE_VERSION_MAJOR 0
#define SHARDWISE_VERSION_MINOR 1
#define SHARDWISE_VERSION_PATCH 0

namespace shardwise::inline v0_1 {

/// The same as numbers, for comparisons.
struct Version {
  int major = SHARDWISE_VERSION_MAJOR;
  int minor = SHARDWISE_VERSION_MINOR;
  int patch = SHARDWISE_VERSION_PATCH;
};

inline constexpr Version version{};

}  // namespace shardwise::inline v0_1
