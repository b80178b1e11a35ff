#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <set>
#include <shardwise/checkpoint/save_names.hpp>
#include <string>
#include <utility>
#include <vector>

#include "hooked_files.hpp"
#include "saving.hpp"
#include "simulated_disk.hpp"
#include "support/sanitized.hpp"

// A save, and the disk before each call that it makes to the file system: what a crash there may
// leave must load as the save before or as this one, whole.

namespace shardwise::test {
namespace {

using Files = std::map<std::string, std::vector<std::byte>>;

constexpr const char* save_id = "0123456789abcdef0123456789abcdef";

/// What was on the disk when it came to this.
struct Scene {
  std::string name;
  std::vector<std::uint64_t> before;  ///< versions that were saved
  std::uint64_t version;              ///< that is being saved
  std::size_t keep;
  bool leftover = false;  ///< a save of this version died before
};

const std::vector<Scene>& scenes() {
  static const std::vector<Scene> all{{"the first save", {}, 1, 2},
                                      {"a later one", {1}, 2, 0},
                                      {"the oldest goes", {1, 2}, 3, 2},
                                      {"over what a dead save has left", {1, 2}, 3, 1, true},
                                      {"a step again", {1, 2}, 2, 2}};
  return all;
}

/// The calls that a mutation leaves out: they say that they did their work.
using Skips = std::function<bool(const FileCall&, SimulatedDisk&)>;

struct Recording {
  std::vector<std::unique_ptr<SimulatedDisk>> before;  ///< each call; the last one after all
  Files whole;                                         ///< every file as it is when it is whole
};

Recording record(const Scene& scene, const Skips& skips = nullptr) {
  SimulatedDisk disk;
  Recording result;
  const auto keep_files = [&] {
    for (auto& [path, bytes] : disk.files()) result.whole[path] = std::move(bytes);
  };
  CheckpointOptions options{.chunk_bytes = 1024, .files = &disk, .save_id = save_id};
  for (const std::uint64_t version : scene.before) {
    save_version(4, version, options);
    keep_files();
  }
  if (scene.leftover) {
    HookedFiles dying(disk, [](const FileCall& call) -> Instead {
      return {.error = call.path.ends_with("manifest.json.partial") ? ENOSPC : 0};
    });
    options.files = &dying;
    CHECK_THROWS_AS(save_version(4, scene.version, options), FileError);
  }
  std::mutex mutex;
  HookedFiles hooked(disk, [&](const FileCall& call) -> Instead {
    const std::lock_guard lock(mutex);
    result.before.push_back(std::make_unique<SimulatedDisk>(disk));
    return {.nothing = skips != nullptr && skips(call, disk)};
  });
  options.files = &hooked;
  options.keep = scene.keep;
  save_version(4, scene.version, options);
  result.before.push_back(std::make_unique<SimulatedDisk>(disk));
  keep_files();
  return result;
}

/// What is wrong with a disk after a crash; empty: nothing.
std::string violation(const Scene& scene, const Recording& recording, SimulatedDisk disk,
                      bool has_returned, SavedModel<float>& model) {
  const std::set<std::uint64_t> old(scene.before.begin(), scene.before.end());
  const detail::SaveList list = detail::list_saves(disk, "run");
  for (const auto& [path, bytes] : disk.files()) {
    if (path.ends_with(".partial") || path.ends_with("latest")) continue;
    if (recording.whole.contains(path) && recording.whole.at(path) == bytes) continue;
    return path + " has its name and is not whole";
  }
  if (!list.problem.empty()) return list.problem;
  for (const auto& save : list.saves) {
    const Loaded loaded = load_alone(model, disk, {.name = save.text()});
    if (!loaded.error.empty()) return loaded.error;
    if (loaded.differences > 0) return save.text() + " is a mixture";
  }
  const Loaded loaded = load_alone(model, disk);
  if (!loaded.error.empty()) return loaded.error;
  if (!loaded.checkpoint) return old.empty() && !has_returned ? "" : "there is nothing";
  if (!loaded.checkpoint->passed_over.empty()) return loaded.checkpoint->passed_over.front();
  if (loaded.differences > 0) return "a mixture was loaded";
  const std::uint64_t newest_before = scene.before.empty() ? 0 : scene.before.back();
  const std::uint64_t step = loaded.checkpoint->step;
  if (step != scene.version && (has_returned || step != newest_before)) {
    return "step " + std::to_string(step) + " was loaded";
  }
  if (has_returned && list.latest->save != save_id) return "the pointer is not the new save's";
  return "";
}

struct Crashes {
  std::size_t states = 0;
  std::string first_violation;
};

Crashes crash_everywhere(const Scene& scene, const Recording& recording, std::size_t each,
                         SavedModel<float>& model) {
  Crashes result;
  std::mt19937_64 random(20260807);
  for (std::size_t call = 0; call < recording.before.size(); ++call) {
    const bool has_returned = call + 1 == recording.before.size();
    const std::size_t times = has_returned ? 4 * each : each;
    for (std::size_t i = 0; i < times && result.first_violation.empty(); ++i) {
      ++result.states;
      result.first_violation =
          violation(scene, recording, recording.before[call]->crashed(random), has_returned, model);
      if (result.first_violation.empty()) continue;
      result.first_violation += " (before call " + std::to_string(call) + " of " +
                                std::to_string(recording.before.size()) + ')';
    }
  }
  return result;
}

}  // namespace

TEST_CASE("a crash at any call leaves the save before or the new one, whole") {
  SelfCommunicator self;
  SavedModel<float> model(self, Strategy::zero3(), small_layers());
  std::size_t states = 0;
  for (const Scene& scene : scenes()) {
    const Recording recording = record(scene);
    REQUIRE(recording.before.size() > 50);
    const std::size_t wanted = sanitized ? 200 : 2400;
    const Crashes crashes =
        crash_everywhere(scene, recording, wanted / recording.before.size() + 1, model);
    INFO(scene.name);
    CHECK(crashes.first_violation == "");
    states += crashes.states;
  }
  CHECK(states >= (sanitized ? 1000u : 10000u));
}

TEST_CASE("each kind of sync is needed: without it some crash leaves neither") {
  struct Kind {
    const char* name;
    Skips is;
  };
  const auto exists = [](SimulatedDisk& disk, const std::string& path) {
    return disk.files().contains(path);
  };
  const auto names_new_save = [](SimulatedDisk& disk) {
    const auto list = detail::list_saves(disk, "run");
    return list.latest && list.latest->name == "step-000003";
  };
  const std::string manifest = "run/step-000003/manifest.json";
  const Kind kinds[] = {
      {"of the data",
       [](const auto& call, auto&) {
         return call.name == "sync" && call.path.ends_with(".safetensors.partial");
       }},
      {"of the names of the data",
       [&](const auto& call, auto& disk) {
         return call.name == "sync_directory" && call.path == "run/step-000003" &&
                !exists(disk, manifest);
       }},
      {"of the manifest",
       [](const auto& call, auto&) {
         return call.name == "sync" && call.path.ends_with("manifest.json.partial");
       }},
      {"of the manifest's name",
       [&](const auto& call, auto& disk) {
         return call.name == "sync_directory" && call.path == "run/step-000003" &&
                exists(disk, manifest);
       }},
      {"of the directory's name",
       [&](const auto& call, auto& disk) {
         return call.name == "sync_directory" && call.path == "run" && !names_new_save(disk);
       }},
      {"of the pointer",
       [](const auto& call, auto&) {
         return call.name == "sync" && call.path.ends_with("latest.partial");
       }},
      {"of the pointer's name",
       [&](const auto& call, auto& disk) {
         return call.name == "sync_directory" && call.path == "run" && names_new_save(disk);
       }},
      {"of the removal of a manifest",
       [](const auto& call, auto&) {
         return call.name == "sync_directory" && call.path == "run/step-000001";
       }},
  };
  const Scene& scene = scenes()[2];
  SelfCommunicator self;
  SavedModel<float> model(self, Strategy::zero3(), small_layers());
  for (const Kind& kind : kinds) {
    std::size_t skipped = 0;
    const Recording recording = record(scene, [&](const FileCall& call, SimulatedDisk& disk) {
      const bool skip = kind.is(call, disk);
      skipped += skip ? 1 : 0;
      return skip;
    });
    INFO(kind.name);
    CHECK(skipped > 0);
    CHECK(crash_everywhere(scene, recording, 50, model).first_violation != "");
  }
}

}  // namespace shardwise::test
