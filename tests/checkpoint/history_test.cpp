#include <algorithm>
#include <array>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <set>
#include <shardwise/checkpoint.hpp>
#include <shardwise/checkpoint/manifest_json.hpp>
#include <shardwise/checkpoint/manifest_reader.hpp>
#include <span>
#include <string>
#include <vector>

#include "hooked_files.hpp"
#include "saving.hpp"
#include "simulated_disk.hpp"

// Saves that do not simply follow each other, and states that have changed since they were saved.

namespace shardwise::test {
namespace {

using Catch::Matchers::ContainsSubstring;

std::set<std::string> saves_in(SimulatedDisk& disk) {
  std::vector<std::string> names;
  CHECK(disk.list("run", names) == 0);
  return {names.begin(), names.end()};
}

void overwrite(SimulatedDisk& disk, const std::string& path, std::span<const std::byte> bytes) {
  CHECK(disk.remove(path) == 0);
  const auto file = static_cast<int>(disk.create(path));
  CHECK(disk.write(file, bytes) == static_cast<std::int64_t>(bytes.size()));
  CHECK(disk.close(file) == 0);
}

/// Its last byte is another one.
void damage(SimulatedDisk& disk, const std::string& path) {
  auto bytes = disk.files().at(path);
  bytes.back() ^= std::byte{1};
  overwrite(disk, path, bytes);
}

/// Loads, and saves as `step`, as a run that goes on does.
std::uint64_t resume(SimulatedDisk& disk, std::uint64_t step, const LoadOptions& options = {}) {
  std::uint64_t found = 0;
  run_ranks(2, [&](Communicator& comm) {
    SavedModel<float> model(comm, Strategy::zero3(), small_layers());
    CheckpointFolder folder("run", {.keep = 2, .files = &disk});
    const auto loaded = folder.load(model.training, options);
    if (comm.rank() == 0) found = loaded->step;
    model.fill(step);
    folder.save(model.training, step);
  });
  return found;
}

}  // namespace

TEST_CASE("a scaler that has had more good steps than it needs now grows at the next one") {
  SelfCommunicator self;
  Context<Device> context(self, Strategy::zero3());
  LossScaler scaler({.growth_interval = 2});
  scaler.restore({8, 5, 0});
  CHECK(scaler.unscale(context));
  CHECK(scaler.state() == LossScalerState{16, 0, 0});
}

}  // namespace shardwise::test
