#include <algorithm>
#include <array>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cerrno>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <set>
#include <shardwise/checkpoint.hpp>
#include <shardwise/checkpoint/inspect.hpp>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "disk_contents.hpp"
#include "hooked_files.hpp"
#include "saving.hpp"
#include "simulated_disk.hpp"
#include "support/sanitized.hpp"
#include "temporary_folder.hpp"

// A folder of saves: which there are, which is loaded, and what is said where one cannot be.

namespace shardwise::test {
namespace {

using Catch::Matchers::ContainsSubstring;

/// What each of 3 ranks says of a load.
std::array<std::string, 3> errors_of(FileSystem& files, const LoadOptions& options,
                                     const std::vector<std::vector<TensorSpec>>& layers,
                                     const std::function<void(TrainingState<Device>&)>& more = {}) {
  std::array<std::string, 3> errors;
  run_ranks(3, [&](Communicator& comm) {
    SavedModel<float> model(comm, Strategy::zero3(), layers);
    if (more) more(model.training);
    CheckpointFolder folder("run", {.files = &files});
    try {
      static_cast<void>(folder.load(model.training, options));
    } catch (const Error& error) {
      errors[static_cast<std::size_t>(comm.rank())] = error.what();
    }
  });
  return errors;
}

}  // namespace

TEST_CASE("the newest saves stay, and a step that is saved again stands beside the old one") {
  SimulatedDisk disk;
  const CheckpointOptions options{.keep = 2, .files = &disk};
  for (const std::uint64_t version : {10u, 20u, 30u}) save_version(3, version, options);
  CHECK(saves_in(disk) == std::set<std::string>{"latest", "step-000020", "step-000030"});
  save_version(3, 30, options);  // a run that went back
  CHECK(saves_in(disk) == std::set<std::string>{"latest", "step-000020", "step-000030.1"});
  SelfCommunicator self;
  SavedModel<float> model(self, Strategy::ddp(), small_layers());
  const Loaded loaded = load_alone(model, disk);
  CHECK(loaded.checkpoint->directory == "run/step-000030.1");
  CHECK(loaded.checkpoint->world == 3);
  save_version(3, 25, options);  // it went back further: what is later is not this run's
  CHECK(load_alone(model, disk).checkpoint->step == 25);
  CHECK(saves_in(disk).contains("step-000030.1"));
}

TEST_CASE("without a save there is nothing to load, and damage is not nothing") {
  SimulatedDisk disk;
  SelfCommunicator self;
  SavedModel<float> model(self, Strategy::zero3(), small_layers());
  CHECK_FALSE(load_alone(model, disk).checkpoint);
  CHECK(load_alone(model, disk).error == "");
  save_version(2, 1, {.files = &disk});
  CHECK(disk.remove("run/step-000001/manifest.json") == 0);
  CHECK_THAT(load_alone(model, disk).error, ContainsSubstring("latest: it names step-000001"));
  // Nor is it removed as if it were left over.
  save_version(2, 1, {.files = &disk});
  CHECK(saves_in(disk) == std::set<std::string>{"latest", "step-000001", "step-000001.1"});
}

TEST_CASE("all ranks fall back together, and say why") {
  SimulatedDisk disk;
  for (const std::uint64_t version : {1u, 2u}) save_version(4, version, {.files = &disk});
  // In the part of the last rank: the others find nothing wrong.
  const std::string path = "run/step-000002/rank-00003.safetensors";
  flip(disk, path, (disk.files().at(path).size() - 1) * 8);
  std::array<std::uint64_t, 4> steps{};
  std::array<std::string, 4> reasons;
  run_ranks(4, [&](Communicator& comm) {
    SavedModel<float> model(comm, Strategy::zero3(), small_layers());
    CheckpointFolder folder("run", {.files = &disk});
    const auto loaded = folder.load(model.training);
    const auto rank = static_cast<std::size_t>(comm.rank());
    steps[rank] = loaded->step + 100 * model.differences(1);
    reasons[rank] = loaded->passed_over.at(0);
  });
  for (std::size_t rank = 0; rank < 4; ++rank) {
    CHECK(steps[rank] == 1);
    CHECK_THAT(reasons[rank], ContainsSubstring(path + ": chunk 0 ") &&
                                  ContainsSubstring("is damaged") && ContainsSubstring("tensor '"));
  }
  SelfCommunicator self;
  SavedModel<float> model(self, Strategy::zero3(), small_layers());
  CHECK_THAT(load_alone(model, disk, {.name = "step-000002"}).error,
             ContainsSubstring("no save in it can be loaded"));
  const InspectedFolder inspected = inspect_folder(disk, "run");
  CHECK_FALSE(inspected.whole());
  REQUIRE(inspected.saves.size() == 2);
  CHECK(inspected.saves[0].problems.empty());
  CHECK_THAT(inspected.saves[1].problems.at(0), ContainsSubstring("rank-00003"));
}

TEST_CASE(
    "what fails on one rank only fails on all, and a save that does not fit changes nothing") {
  SimulatedDisk disk;
  for (const std::uint64_t version : {1u, 2u}) save_version(3, version, {.files = &disk});
  const auto failing = [&](const std::string& call, const std::string& path) {
    return HookedFiles(disk, [=](const FileCall& found) -> Instead {
      return {.error = found.name == call && found.path == path ? EIO : 0};
    });
  };
  // Rank 0 alone lists the folder and reads the manifest.
  HookedFiles no_list = failing("list", "run");
  for (const std::string& error : errors_of(no_list, {}, small_layers())) {
    CHECK_THAT(error, ContainsSubstring("rank 0: run: ") && ContainsSubstring("errno 5"));
  }
  const std::string manifest = "run/step-000002/manifest.json";
  HookedFiles no_manifest = failing("open", manifest);
  std::array<std::string, 3> passed_over;
  std::array<std::string, 3> errors;
  std::array<std::size_t, 3> differences{};
  run_ranks(3, [&](Communicator& comm) {
    const auto rank = static_cast<std::size_t>(comm.rank());
    SavedModel<float> model(comm, Strategy::zero3(), small_layers());
    const auto loaded = CheckpointFolder("run", {.files = &no_manifest}).load(model.training);
    passed_over[rank] = std::to_string(loaded->step) + ' ' + loaded->passed_over.at(0);
    // Rank 1 alone misses a tensor.
    std::array<float, 2> values{};
    model.fill(7);
    if (rank == 1) model.training.add_replicated("averages", std::span<float>(values));
    try {
      static_cast<void>(CheckpointFolder("run", {.files = &disk}).load(model.training));
    } catch (const Error& error) {
      errors[rank] = error.what();
    }
    differences[rank] = model.differences(7);
  });
  for (std::size_t rank = 0; rank < 3; ++rank) {
    CHECK_THAT(passed_over[rank], ContainsSubstring("1 rank 0: " + manifest));
    CHECK_THAT(errors[rank], ContainsSubstring("rank 1: ") && ContainsSubstring("'averages'"));
    CHECK(differences[rank] == 0);
  }
}

TEST_CASE("one flipped bit anywhere is found before its bytes are used") {
  SimulatedDisk disk;
  const CheckpointOptions options{.chunk_bytes = 1024, .files = &disk};
  save_version(4, 1, options);
  save_version(4, 2, options);
  SelfCommunicator self;
  SavedModel<float> model(self, Strategy::zero3(), small_layers());
  const auto files = disk.files();
  std::vector<std::pair<std::string, std::size_t>> places;  // file, bytes
  std::size_t total = 0;
  for (const auto& [path, bytes] : files) {
    if (path.find("step-000001") != path.npos) continue;
    places.emplace_back(path, bytes.size());
    total += bytes.size() * 8;
  }
  const std::size_t wanted = sanitized ? 200 : 10000;
  std::size_t missed = 0;
  std::size_t unnamed = 0;
  std::size_t header = 0;
  for (std::size_t i = 0; i < wanted; ++i) {
    std::size_t bit = i * (total / wanted) + i % 8;
    auto place = places.begin();
    while (bit >= place->second * 8) bit -= place++->second * 8;
    flip(disk, place->first, bit);
    const Loaded loaded = load_alone(model, disk);
    const bool pointer = place->first == "run/latest";
    const bool data = place->first.ends_with(".safetensors");
    const std::string reason = loaded.checkpoint && !loaded.checkpoint->passed_over.empty()
                                   ? loaded.checkpoint->passed_over[0]
                                   : "";
    if (!loaded.error.empty() || !loaded.checkpoint || loaded.differences > 0) ++missed;
    if (data && reason.empty()) {
      // A chunk of the header alone, of which a load reads nothing. Inspection does.
      ++header;
      if (loaded.checkpoint && loaded.checkpoint->step != 2) ++missed;
      if (inspect_folder(disk, "run").whole()) ++missed;
    } else if (reason.find(place->first) == reason.npos ||
               (data &&
                (reason.find("chunk " + std::to_string(bit / 8 / 1024) + ' ') == reason.npos ||
                 reason.find("tensor '") == reason.npos))) {
      ++unnamed;
    } else if (!pointer && loaded.checkpoint->step != 1) {
      ++missed;
    }
    flip(disk, place->first, bit);
  }
  CHECK(missed == 0);
  CHECK(unnamed == 0);
  CHECK(header < wanted / 2);
}

TEST_CASE("missing, extra and mis-shaped tensors are named on all ranks") {
  SimulatedDisk disk;
  save_version(2, 1, {.files = &disk});
  const auto check = [&](const std::vector<std::vector<TensorSpec>>& layers,
                         const LoadOptions& options, std::vector<std::string> parts) {
    const auto errors = errors_of(disk, options, layers);
    for (const std::string& error : errors) {
      CHECK(error == errors[0]);
      if (parts.empty()) CHECK(error == "");
      for (const std::string& part : parts) CHECK_THAT(error, ContainsSubstring(part));
    }
  };
  auto layers = small_layers();
  check(layers, {}, {});
  layers[1].push_back({"new", {3}});
  check(layers, {}, {"'new'", "'new.exp_avg'", "allow_missing"});
  check(layers, {.allow_missing = true}, {});
  layers = small_layers();
  layers[0].pop_back();
  check(layers, {}, {"'position'", "'position.exp_avg_sq'", "allow_extra"});
  check(layers, {.allow_extra = true}, {});
  layers = small_layers();
  layers[0][0].shape = {5, 37};
  check(layers, {.allow_missing = true, .allow_extra = true},
        {"'embedding'", "[37, 5]", "expected [5, 37]"});
  CHECK_THAT(errors_of(disk, {.name = "../step-000001"}, small_layers())[1],
             ContainsSubstring("is not the name of a save"));
}

TEST_CASE("another optimizer, or another type, is an error by name") {
  SimulatedDisk disk;
  save_version(2, 1, {.files = &disk});
  SelfCommunicator self;
  SavedModel<float, Adam> model(self, Strategy::zero3(), small_layers());
  CheckpointFolder folder("run", {.files = &disk});
  CHECK_THROWS_WITH(folder.load(model.training),
                    ContainsSubstring("optimizer 'adamw'") && ContainsSubstring("expected 'adam'"));
  SavedModel<bf16> halves(self, Strategy::zero3(), small_layers());
  CHECK_THROWS_WITH(
      folder.load(halves.training),
      ContainsSubstring("'embedding' was saved as f32") && ContainsSubstring("expected bf16"));
}

TEST_CASE("settings, values, scaler and the host's tensors come back bit for bit") {
  SimulatedDisk disk;
  const CheckpointValue::Bytes bytes{std::byte{0}, std::byte{255}, std::byte{10}};
  const CheckpointValues values{{"bytes", bytes},
                                {"empty", CheckpointValue::Bytes{}},
                                {"infinity", std::numeric_limits<double>::infinity()},
                                {"large", std::numeric_limits<std::uint64_t>::max()},
                                {"negative", std::numeric_limits<std::int64_t>::min()},
                                {"text", "a \"text\"\n\xc3\xa9"},
                                {"third", 1.0 / 3},
                                {"whole", 3.0},
                                {"yes", true},
                                {"zero", -0.0}};
  struct Host {
    std::vector<double> losses = std::vector<double>(5);
    std::vector<std::uint8_t> random = std::vector<std::uint8_t>(4);
    LossScaler scaler;
    void add_to(TrainingState<Device>& training) {
      training.add_replicated("losses", std::span(losses), {5, 1});
      training.add_by_rank("random", std::span(random));
      training.add(scaler);
    }
  };
  run_ranks(3, [&](Communicator& comm) {
    SavedModel<float> model(comm, Strategy::zero2(), small_layers());
    model.fill(4);
    for (auto& state : model.states) state.optimizer.learning_rate = 0.5;
    Host host;
    host.losses = {1, 2, 3, 4, 5e-320};
    for (auto& value : host.random) value = static_cast<std::uint8_t>(comm.rank() + 1);
    host.scaler.restore({1024, 17, 3});
    host.add_to(model.training);
    CheckpointFolder("run", {.files = &disk}).save(model.training, 4, values);
  });
  std::array<bool, 3> good{};
  run_ranks(3, [&](Communicator& comm) {
    SavedModel<float> model(comm, Strategy::zero3(), small_layers());
    Host host;
    host.add_to(model.training);
    const auto loaded = CheckpointFolder("run", {.files = &disk}).load(model.training);
    const double zero = loaded->values.at("zero").as<double>();
    const bool rates = std::all_of(model.states.begin(), model.states.end(), [](const auto& state) {
      return state.optimizer.learning_rate == 0.5 && state.steps() == 4;
    });
    good[static_cast<std::size_t>(comm.rank())] =
        loaded->values == values && std::signbit(zero) && rates &&
        host.losses == std::vector<double>{1, 2, 3, 4, 5e-320} &&
        host.random == std::vector<std::uint8_t>(4, static_cast<std::uint8_t>(comm.rank() + 1)) &&
        host.scaler.state() == LossScalerState{1024, 17, 3};
  });
  CHECK(good == std::array{true, true, true});
  // At another number of ranks what belongs to each rank has no place to go.
  run_ranks(2, [&](Communicator& comm) {
    SavedModel<float> model(comm, Strategy::zero3(), small_layers());
    Host host;
    host.add_to(model.training);
    CheckpointFolder folder("run", {.files = &disk});
    std::string error;
    try {
      static_cast<void>(folder.load(model.training));
    } catch (const UsageError& caught) {
      error = caught.what();
    }
    good[static_cast<std::size_t>(comm.rank())] = error.find("'random@2'") != error.npos;
    static_cast<void>(folder.load(model.training, {.allow_extra = true, .hyperparameters = false}));
    good[static_cast<std::size_t>(comm.rank())] &=
        host.losses[4] == 5e-320 && model.states[0].optimizer.learning_rate == 1e-3;
  });
  CHECK(good == std::array{true, true, true});
}

TEST_CASE("an asynchronous save has the bytes of the other, and not those of what came after") {
  const std::string id = "00112233445566778899aabbccddeeff";
  for (const int world : {1, 2, 3, 4, 7}) {
    SimulatedDisk plain;
    SimulatedDisk beside;
    save_version(world, 5, {.files = &plain, .save_id = id});
    std::vector<std::string> wrong(static_cast<std::size_t>(world));
    run_ranks(world, [&](Communicator& comm) {
      auto& error = wrong[static_cast<std::size_t>(comm.rank())];
      SavedModel<float> model(comm, Strategy::zero3(), small_layers());
      model.fill(5);
      CheckpointFolder folder("run", {.files = &beside, .save_id = id});
      SaveHandle saving = folder.save_async(model.training, 5);
      model.fill(6);  // the training goes on
      try {
        static_cast<void>(folder.save_async(model.training, 6));
        error = "two saves at a time";
      } catch (const UsageError&) {
      }
      while (!saving.try_finish()) {
      }
      if (saving.pending()) error = "it is pending";
      saving.finish();
    });
    for (const std::string& error : wrong) CHECK(error == "");
    CHECK(plain.files() == beside.files());
  }
}

TEST_CASE(
    "an asynchronous save that failed says so in finish, on all ranks; a lost one is left over") {
  SimulatedDisk disk;
  HookedFiles hooked(disk, [](const FileCall& call) -> Instead {
    return {.error = call.path.find("rank-00002") != call.path.npos ? ENOSPC : 0};
  });
  std::array<std::string, 3> errors;
  run_ranks(3, [&](Communicator& comm) {
    SavedModel<float> model(comm, Strategy::zero3(), small_layers());
    CheckpointFolder folder("run", {.files = &hooked});
    SaveHandle saving = folder.save_async(model.training, 1);
    try {
      saving.finish();
    } catch (const FileError& error) {
      errors[static_cast<std::size_t>(comm.rank())] = error.what();
    }
    const SaveHandle lost = folder.save_async(model.training, 2);
  });
  for (const std::string& error : errors) {
    CHECK_THAT(error, ContainsSubstring("rank 2: run/step-000001/rank-00002.safetensors.partial"));
  }
  CHECK(saves_in(disk) == std::set<std::string>{"step-000002"});
  save_version(3, 3, {.files = &disk});
  CHECK(saves_in(disk) == std::set<std::string>{"latest", "step-000003"});
}

TEST_CASE("ranks that save different things are told so") {
  SimulatedDisk disk;
  std::array<std::string, 3> errors;
  run_ranks(3, [&](Communicator& comm) {
    SavedModel<float> model(comm, Strategy::zero3(), small_layers());
    CheckpointFolder folder("run", {.files = &disk});
    try {
      folder.save(model.training, comm.rank() == 2 ? 4 : 3);
    } catch (const UsageError& error) {
      errors[static_cast<std::size_t>(comm.rank())] = error.what();
    }
  });
  for (const std::string& error : errors) {
    CHECK_THAT(error, ContainsSubstring("ranks 0 and 2 save different things"));
  }
}

TEST_CASE("the machine's own files: a folder below folders, links are not followed") {
  const TemporaryFolder temporary;
  const std::string folder = temporary.name() + "/a/b";
  save_version(4, 1, {}, folder);
  save_version(4, 2, {.keep = 1}, folder);
  PosixFileSystem files;
  SelfCommunicator self;
  SavedModel<float> model(self, Strategy::zero3(), small_layers());
  const Loaded loaded = load_alone(model, files, {}, folder);
  CHECK(loaded.error == "");
  CHECK(loaded.checkpoint->step == 2);
  CHECK(loaded.differences == 0);
  CHECK(inspect_folder(files, folder).whole());
  const std::string data = folder + "/step-000002/rank-00001.safetensors";
  std::filesystem::rename(data, temporary.name() + "/elsewhere");
  std::filesystem::create_symlink(temporary.name() + "/elsewhere", data);
  CHECK_THAT(load_alone(model, files, {}, folder).error, ContainsSubstring("cannot open it"));
}

}  // namespace shardwise::test
