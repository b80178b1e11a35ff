#include <algorithm>
#include <array>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <random>
#include <set>
#include <shardwise/checkpoint.hpp>
#include <shardwise/checkpoint/manifest_json.hpp>
#include <shardwise/checkpoint/manifest_reader.hpp>
#include <span>
#include <string>
#include <vector>

#include "disk_contents.hpp"
#include "hooked_files.hpp"
#include "saving.hpp"
#include "simulated_disk.hpp"
#include "temporary_folder.hpp"

// Saves that do not simply follow each other, and states that have changed since they were saved.

namespace shardwise::test {
namespace {

using Catch::Matchers::ContainsSubstring;

/// Its last byte is another one.
void damage(SimulatedDisk& disk, const std::string& path) {
  flip(disk, path, (disk.files().at(path).size() - 1) * 8);
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

TEST_CASE("a save that a run has gone back on does not take the place of one of its own") {
  SimulatedDisk disk;
  const CheckpointOptions options{.keep = 2, .files = &disk};
  for (const std::uint64_t version : {10u, 20u}) save_version(2, version, options);
  damage(disk, "run/step-000020/rank-00001.safetensors");
  CHECK(resume(disk, 25) == 10);
  // Of the two that stay one would be damaged.
  CHECK(saves_in(disk) == std::set<std::string>{"latest", "step-000010", "step-000025"});
  CHECK(resume(disk, 30) == 25);
  CHECK(saves_in(disk) == std::set<std::string>{"latest", "step-000025", "step-000030"});
  // By name, in two steps: what is later stays until the run is past it.
  CHECK(resume(disk, 27, {.name = "step-000025"}) == 25);
  CHECK(saves_in(disk) ==
        std::set<std::string>{"latest", "step-000025", "step-000027", "step-000030"});
  CHECK(resume(disk, 40) == 27);
  CHECK(saves_in(disk) == std::set<std::string>{"latest", "step-000027", "step-000040"});
}

TEST_CASE("what a damaged save has left in the state is not taken for what was there before") {
  SimulatedDisk disk;
  const auto add_average = [](SavedModel<float>& model, std::span<float> average) {
    model.training.add_replicated("average", average);
  };
  save_version(2, 1, {.files = &disk});
  run_ranks(2, [&](Communicator& comm) {
    SavedModel<float> model(comm, Strategy::zero3(), small_layers());
    model.fill(2);
    std::vector<float> average(600, 2);
    add_average(model, average);
    CheckpointFolder("run", {.chunk_bytes = 1024, .files = &disk}).save(model.training, 2);
  });
  damage(disk, "run/step-000002/rank-00001.safetensors");
  std::array<std::string, 2> errors;
  run_ranks(2, [&](Communicator& comm) {
    SavedModel<float> model(comm, Strategy::zero3(), small_layers());
    std::vector<float> average(600, 7);
    add_average(model, average);
    try {
      const auto loaded =
          CheckpointFolder("run", {.files = &disk}).load(model.training, {.allow_missing = true});
      if (loaded->step == 1 && average == std::vector<float>(600, 7)) return;
      errors[static_cast<std::size_t>(comm.rank())] =
          "loaded " + std::to_string(loaded->step) + ", " + std::to_string(average[0]);
    } catch (const FileError& error) {
      errors[static_cast<std::size_t>(comm.rank())] = error.what();
    }
  });
  for (const std::string& error : errors) {
    CHECK_THAT(error, ContainsSubstring("'average'") && ContainsSubstring("step-000002"));
  }
}

TEST_CASE("a link in the place of a save is left alone, and so is what it leads to") {
  const TemporaryFolder temporary;
  const std::string folder = temporary.name() + "/run";
  const CheckpointOptions options{.keep = 1};
  save_version(2, 1, options, folder);
  std::filesystem::rename(folder + "/step-000001", temporary.name() + "/kept");
  std::filesystem::create_directory_symlink("../kept", folder + "/step-000001");
  for (const std::uint64_t version : {2u, 3u}) {
    CHECK_NOTHROW(save_version(2, version, options, folder));
  }
  CHECK_FALSE(std::filesystem::exists(folder + "/step-000002"));
  PosixFileSystem files;
  SelfCommunicator self;
  SavedModel<float> model(self, Strategy::zero3(), small_layers());
  CHECK(load_alone(model, files, {.name = "step-000001"}, folder).error == "");
  CHECK(model.differences(1) == 0);
}

TEST_CASE("a step of any number has a name") {
  SimulatedDisk disk;
  const std::uint64_t last = std::numeric_limits<std::uint64_t>::max();
  for (const std::uint64_t version : {last / 18, last - 1, last}) {
    save_version(2, version, {.files = &disk});
    SelfCommunicator self;
    SavedModel<float> model(self, Strategy::zero3(), small_layers());
    const Loaded loaded = load_alone(model, disk);
    CHECK(loaded.error == "");
    CHECK((loaded.checkpoint && loaded.checkpoint->step == version));
  }
  CHECK_FALSE(detail::SaveName::parse("step-18446744073709551616"));
  CHECK_FALSE(detail::SaveName::parse("step-99999999999999999999"));
  CHECK_FALSE(detail::SaveName::parse("step-000001.18446744073709551617"));
}

TEST_CASE("parts of a manifest that share bytes are read where they lie") {
  SimulatedDisk disk;
  const std::vector<std::vector<TensorSpec>> layers{{{"a", {2000}}, {"b", {2000}}}};
  run_ranks(1, [&](Communicator& comm) {
    SavedModel<float, Sgd> model(comm, Strategy::zero3(), layers);
    model.fill(3);
    CheckpointFolder("run", {.chunk_bytes = 1024, .files = &disk}).save(model.training, 3);
  });
  const std::string path = "run/step-000003/manifest.json";
  const auto bytes = disk.files().at(path);
  Manifest manifest =
      parse_manifest({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, path);
  // Somebody has written all of it, the checksums, too.
  manifest.tensors[1].parts[0].position = manifest.tensors[0].parts[0].position;
  const std::string text = format_manifest(manifest);
  overwrite(disk, path, std::as_bytes(std::span(text)));
  run_ranks(1, [&](Communicator& comm) {
    SavedModel<float, Sgd> model(comm, Strategy::zero3(), layers);
    CheckpointFolder("run", {.files = &disk}).load(model.training);
    const auto shard = model.parameters[0].shard();
    for (std::size_t i = 0; i < 2000; ++i) {
      REQUIRE(shard[i] == SavedModel<float>::value("a", i, 3));
      REQUIRE(shard[model.parameters[0].layout().tensors()[1].offset + i] == shard[i]);
    }
  });
}

TEST_CASE("a rank's own tensor that is empty now is not what was saved") {
  SimulatedDisk disk;
  const auto run = [&](std::size_t count, const auto& use) {
    run_ranks(2, [&](Communicator& comm) {
      SavedModel<float> model(comm, Strategy::zero3(), small_layers());
      std::vector<float> mine(comm.rank() == 1 ? count : 3);
      model.training.add_by_rank("random", std::span(mine));
      CheckpointFolder folder("run", {.files = &disk});
      use(folder, model.training, comm.rank());
    });
  };
  run(5, [](auto& folder, auto& training, int) { folder.save(training, 1); });
  std::array<std::string, 2> errors;
  run(0, [&](auto& folder, auto& training, int rank) {
    try {
      static_cast<void>(folder.load(training));
    } catch (const UsageError& error) {
      errors[static_cast<std::size_t>(rank)] = error.what();
    }
  });
  for (const std::string& error : errors) {
    CHECK_THAT(error, ContainsSubstring("'random@1' was saved with the shape [5], expected [0]"));
  }
}

namespace {

/// A host's own optimizer without values, with settings of its own.
struct Seeded : Sgd {
  static constexpr std::string_view checkpoint_name = "seeded";
  std::uint64_t seed = 0;

  template <class F>
  void checkpoint_hyperparameters(F&& f) {
    f("learning_rate", learning_rate);
    f("seed", seed);
  }
  template <class F>
  void checkpoint_hyperparameters(F&& f) const {
    f("learning_rate", learning_rate);
    f("seed", seed);
  }
};

template <class Optimizer>
std::string load_error(SimulatedDisk& disk, const std::vector<std::vector<TensorSpec>>& layers,
                       const LoadOptions& options = {}) {
  SelfCommunicator self;
  SavedModel<float, Optimizer> model(self, Strategy::zero3(), layers);
  try {
    static_cast<void>(CheckpointFolder("run", {.files = &disk}).load(model.training, options));
  } catch (const UsageError& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("settings that one optimizer cannot have are an error, and none is left out unasked") {
  SimulatedDisk disk;
  SelfCommunicator self;
  const std::uint64_t large = std::numeric_limits<std::uint64_t>::max();
  const std::vector<std::vector<TensorSpec>> two{{{"a", {20}}}, {{"b", {20}}}};
  const std::vector<std::vector<TensorSpec>> one{{{"a", {20}}, {"b", {20}}}};
  SavedModel<float, Seeded> model(self, Strategy::zero3(), two);
  for (auto& state : model.states) state.optimizer.seed = large;
  CheckpointFolder folder("run", {.files = &disk});
  folder.save(model.training, 1);
  for (auto& state : model.states) state.optimizer.seed = 1;
  CHECK(folder.load(model.training));
  CHECK(model.states[0].optimizer.seed == large);
  CHECK(load_error<Seeded>(disk, one) == "");
  model.states[1].optimizer.learning_rate = 2;
  folder.save(model.training, 2);
  CHECK_THAT(load_error<Seeded>(disk, one),
             ContainsSubstring("tensors 'a' and 'b'") && ContainsSubstring("'learning_rate'"));
  CHECK(load_error<Seeded>(disk, one, {.hyperparameters = false}) == "");
  // Weights alone: this optimizer has no tensor that would be one too many.
  Context<Device> context(self, Strategy::zero3());
  ShardedParameter<float> parameter(context, one[0]);
  TrainingState<Device> weights(context);
  weights.add(parameter);
  std::string error;
  try {
    static_cast<void>(CheckpointFolder("run", {.files = &disk}).load(weights));
  } catch (const UsageError& caught) {
    error = caught.what();
  }
  CHECK_THAT(error, ContainsSubstring("'a' was saved with the optimizer 'seeded'") &&
                        ContainsSubstring("allow_extra"));
  CHECK(CheckpointFolder("run", {.files = &disk}).load(weights, {.allow_extra = true}));
}

TEST_CASE("a value that a manifest cannot hold fails a save before it has begun") {
  SimulatedDisk disk;
  save_version(2, 1, {.files = &disk});
  std::array<std::string, 2> errors;
  run_ranks(2, [&](Communicator& comm) {
    SavedModel<float> model(comm, Strategy::zero3(), small_layers());
    try {
      CheckpointFolder("run", {.files = &disk}).save(model.training, 2, {{"text", "\xff"}});
    } catch (const UsageError& error) {
      errors[static_cast<std::size_t>(comm.rank())] = error.what();
    }
  });
  for (const std::string& error : errors) {
    CHECK_THAT(error, ContainsSubstring("no UTF-8") && ContainsSubstring("step 2 was not saved"));
  }
  CHECK(saves_in(disk) == std::set<std::string>{"latest", "step-000001"});
}

TEST_CASE("a save that goes while another program looks at the folder is none") {
  SimulatedDisk disk;
  for (const std::uint64_t version : {1u, 2u}) save_version(2, version, {.files = &disk});
  HookedFiles hooked(disk, [](const FileCall& call) -> Instead {
    return {.error = call.name == "list" && call.path == "run/step-000001" ? ENOENT : 0};
  });
  SelfCommunicator self;
  SavedModel<float> model(self, Strategy::zero3(), small_layers());
  const Loaded loaded = load_alone(model, hooked);
  CHECK(loaded.error == "");
  CHECK((loaded.checkpoint && loaded.checkpoint->step == 2));
}

TEST_CASE("a scaler that has had more good steps than it needs now grows at the next one") {
  SelfCommunicator self;
  Context<Device> context(self, Strategy::zero3());
  LossScaler scaler({.growth_interval = 2});
  scaler.restore({8, 5, 0});
  CHECK(scaler.unscale(context));
  CHECK(scaler.state() == LossScalerState{16, 0, 0});
}

TEST_CASE("a folder that was there already stays after a loss of power, too") {
  std::mt19937_64 random(1);
  for (int i = 0; i < 50; ++i) {
    SimulatedDisk disk;
    CHECK(disk.make_directory("run") == 0);  // the host's, or a run's that was killed then
    save_version(2, 1, {.files = &disk});
    SimulatedDisk after = disk.crashed(random);
    SelfCommunicator self;
    SavedModel<float> model(self, Strategy::zero3(), small_layers());
    const Loaded loaded = load_alone(model, after);
    REQUIRE(loaded.error == "");
    REQUIRE(loaded.checkpoint);
    REQUIRE(loaded.differences == 0);
  }
}

}  // namespace shardwise::test
