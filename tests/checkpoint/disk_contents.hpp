#pragma once

#include <catch2/catch_test_macros.hpp>
#include <cstddef>
#include <cstdint>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "simulated_disk.hpp"

namespace shardwise::test {

/// The names in the folder "run".
inline std::set<std::string> saves_in(SimulatedDisk& disk) {
  std::vector<std::string> names;
  CHECK(disk.list("run", names) == 0);
  return {names.begin(), names.end()};
}

/// The file has these bytes instead.
inline void overwrite(SimulatedDisk& disk, const std::string& path,
                      std::span<const std::byte> bytes) {
  CHECK(disk.remove(path) == 0);
  const auto file = static_cast<int>(disk.create(path));
  CHECK(disk.write(file, bytes) == static_cast<std::int64_t>(bytes.size()));
  CHECK(disk.close(file) == 0);
}

/// One of its bits, counted from the first byte's lowest, is the other way round.
inline void flip(SimulatedDisk& disk, const std::string& path, std::size_t bit) {
  auto bytes = disk.files().at(path);
  bytes[bit / 8] ^= static_cast<std::byte>(1u << (bit % 8));
  overwrite(disk, path, bytes);
}

}  // namespace shardwise::test
