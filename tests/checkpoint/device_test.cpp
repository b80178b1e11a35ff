#include <catch2/catch_test_macros.hpp>
#include <cstddef>
#include <shardwise/checkpoint.hpp>
#include <shardwise/comm/thread.hpp>
#include <string>
#include <vector>

#include "saved_model.hpp"
#include "simulated_disk.hpp"
#include "support/ranks.hpp"

// Saves are the same bytes whatever device and backend they come from, and load on any other.

namespace shardwise::test {
namespace {

template <class D>
std::size_t save_and_load(Communicator& comm, FileSystem& files, std::uint64_t version, bool saves,
                          bool beside) {
  SavedModel<float, AdamW, D> model(comm, Strategy::zero3(), small_layers());
  CheckpointFolder folder("run",
                          {.chunk_bytes = 1024, .files = &files, .save_id = std::string(32, 'a')});
  if (!saves) {
    const auto loaded = folder.load(model.training);
    return loaded && loaded->step == version ? model.differences(version) : 1;
  }
  model.fill(version);
  if (!beside) {
    folder.save(model.training, version);
    return 0;
  }
  SaveHandle saving = folder.save_async(model.training, version);
  model.fill(version + 1);
  saving.finish();
  return 0;
}

}  // namespace

TEST_CASE("a device saves the bytes of the CPU, and each loads what the other saved") {
  for (const int world : {1, 2, 3}) {
    SimulatedDisk from_device;
    SimulatedDisk beside;
    SimulatedDisk from_host;
    on_ranks(world, [&](Communicator& comm) {
      return save_and_load<Device>(comm, from_device, 3, true, false) +
             save_and_load<Device>(comm, beside, 3, true, true);
    });
    on_threads(world, [&](Communicator& comm) {
      return save_and_load<HostDevice>(comm, from_host, 3, true, false);
    });
    CHECK(from_device.files() == from_host.files());
    CHECK(from_device.files() == beside.files());
    for (const int other : {1, 2, 4}) {
      for (const std::size_t wrong : on_ranks(other, [&](Communicator& comm) {
             return save_and_load<Device>(comm, from_host, 3, false, false);
           })) {
        CHECK(wrong == 0);
      }
      for (const std::size_t wrong : on_threads(other, [&](Communicator& comm) {
             return save_and_load<HostDevice>(comm, from_device, 3, false, false);
           })) {
        CHECK(wrong == 0);
      }
    }
  }
}

}  // namespace shardwise::test
