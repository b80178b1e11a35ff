#include <array>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cerrno>
#include <cstddef>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "hooked_files.hpp"
#include "saving.hpp"
#include "simulated_disk.hpp"

// A save of 4 ranks in which one call to the file system does not do what it should.

namespace shardwise::test {
namespace {

using Catch::Matchers::ContainsSubstring;

struct Fault {
  const char* name;
  Instead instead;
};

const Fault faults[] = {{"no space", {.error = ENOSPC}},
                        {"input or output error", {.error = EIO}},
                        {"interrupted", {.error = EINTR}},
                        {"half of the bytes", {.partly = true}}};

struct Ends {
  std::array<std::string, 4> errors;  ///< of each rank; empty: it returned
  std::optional<FileCall> hit;
  std::size_t calls = 0;

  [[nodiscard]] bool good() const {
    for (const std::string& error : errors) {
      if (!error.empty()) return false;
    }
    return true;
  }
};

Ends save_with(FileSystem& disk, std::uint64_t version, std::size_t call, const Instead& instead) {
  Ends ends;
  std::mutex mutex;
  HookedFiles hooked(disk, [&](const FileCall& found) -> Instead {
    if (found.index != call) return {};
    const std::lock_guard lock(mutex);
    ends.hit = found;
    return instead;
  });
  run_ranks(4, [&](Communicator& comm) {
    SavedModel<float> model(comm, Strategy::zero3(), small_layers());
    model.fill(version);
    CheckpointFolder saves("run", {.keep = 1, .chunk_bytes = 1024, .files = &hooked});
    try {
      saves.save(model.training, version);
    } catch (const FileError& error) {
      ends.errors[static_cast<std::size_t>(comm.rank())] = error.what();
    }
  });
  ends.calls = hooked.calls();
  return ends;
}

}  // namespace

TEST_CASE("a call that fails fails the save on all ranks, and leaves what was there") {
  SimulatedDisk before;
  save_version(4, 1, {.files = &before});
  SelfCommunicator self;
  SavedModel<float> model(self, Strategy::zero3(), small_layers());
  std::size_t calls = 0;
  {
    SimulatedDisk disk(before);
    calls = save_with(disk, 2, SIZE_MAX, {}).calls;
  }
  REQUIRE(calls > 50);
  std::size_t failed = 0;
  for (const Fault& fault : faults) {
    for (std::size_t call = 0; call < calls; ++call) {
      SimulatedDisk disk(before);
      const Ends ends = save_with(disk, 2, call, fault.instead);
      if (!ends.hit) continue;  // the other ranks came first, and there were fewer
      INFO(fault.name << " at call " << call << ": " << ends.hit->name << ' ' << ends.hit->path
                      << ": " << ends.errors[0]);
      const bool transfers = ends.hit->name == "write" || ends.hit->name == "create" ||
                             ends.hit->name == "read" || ends.hit->name == "open" ||
                             ends.hit->name == "close";
      const bool harmless = fault.instead.error == 0 || (fault.instead.error == EINTR && transfers);
      const bool pointer_read = ends.hit->path == "run/latest" && ends.hit->name != "rename";
      if (harmless || pointer_read) {
        CHECK(ends.good());
      } else {
        ++failed;
        for (const std::string& error : ends.errors) {
          CHECK(error == ends.errors[0]);
          CHECK_THAT(error, ContainsSubstring("rank ") && ContainsSubstring(ends.hit->path) &&
                                ContainsSubstring("errno " + std::to_string(fault.instead.error)));
        }
      }
      const Loaded loaded = load_alone(model, disk);
      CHECK(loaded.error == "");
      REQUIRE(loaded.checkpoint);
      CHECK(loaded.differences == 0);
      if (ends.good()) CHECK(loaded.checkpoint->step == 2);
      // What the message says of the save is so.
      if (ends.errors[0].find("was not saved") != std::string::npos) {
        CHECK(loaded.checkpoint->step == 1);
      }
      if (ends.errors[0].find("the new save is there") != std::string::npos) {
        CHECK(loaded.checkpoint->step == 2);
      }
      // The next one cleans up and is not in the way of anybody.
      CHECK(save_with(disk, 3, SIZE_MAX, {}).good());
      CHECK(load_alone(model, disk).checkpoint->step == 3);
    }
  }
  CHECK(failed > 120);
}

TEST_CASE("an fsync that failed is not tried again") {
  SimulatedDisk disk;
  std::size_t syncs = 0;
  std::mutex mutex;
  HookedFiles hooked(disk, [&](const FileCall& call) -> Instead {
    if (call.name != "sync" || !call.path.ends_with("rank-00001.safetensors.partial")) return {};
    const std::lock_guard lock(mutex);
    ++syncs;
    return {.error = EINTR};
  });
  CHECK_THROWS_AS(save_version(4, 1, {.files = &hooked}), FileError);
  CHECK(syncs == 1);
}

}  // namespace shardwise::test
