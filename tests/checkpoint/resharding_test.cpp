#include <algorithm>
#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <cstddef>
#include <shardwise/checkpoint.hpp>
#include <string>
#include <utility>
#include <vector>

#include "hooked_files.hpp"
#include "saving.hpp"
#include "simulated_disk.hpp"

// What N ranks save, M ranks load: every bit of it, under every strategy.

namespace shardwise::test {
namespace {

constexpr int many_worlds[] = {1, 2, 3, 4, 5, 7, 8};

struct Shape {
  std::string name;
  std::vector<std::vector<TensorSpec>> layers;
};

/// One parameter of one tensor, and three of several; `count` elements wherever it matters.
std::vector<Shape> shapes(std::size_t count) {
  return {{"one parameter", {{{"w", {count}}}}},
          {"three parameters",
           {{{"embedding", {count, 3}}, {"none", {0, 4}}},
            {{"weight", {count}}, {"bias", {5}, {.weight_decay = 0}}, {"scale", {}}},
            {{"other", {count + 64}}}}}};
}

std::vector<Strategy> strategies() {
  return {Strategy::zero3(), Strategy::ddp(), Strategy::zero1(), Strategy::zero2()};
}

template <FloatingElement T>
void save_by(int world, const Strategy& strategy, const Shape& shape, bool tied, FileSystem& files,
             bool in_place = false) {
  run_ranks(world, [&](Communicator& comm) {
    SavedModel<T> model(comm, strategy, shape.layers, tied, in_place);
    model.fill(7);
    CheckpointFolder("run", {.chunk_bytes = 1024, .files = &files}).save(model.training, 7);
  });
}

template <FloatingElement T>
std::size_t differences_at(int world, const Strategy& strategy, const Shape& shape, bool tied,
                           FileSystem& files, bool in_place = false) {
  std::vector<std::size_t> wrong(static_cast<std::size_t>(world), 0);
  run_ranks(world, [&](Communicator& comm) {
    SavedModel<T> model(comm, strategy, shape.layers, tied, in_place);
    model.fill(1);
    CheckpointFolder folder("run", {.files = &files});
    const auto loaded = folder.load(model.training);
    wrong[static_cast<std::size_t>(comm.rank())] =
        (loaded && loaded->step == 7 ? 0 : 1) + model.differences(7);
  });
  std::size_t sum = 0;
  for (const std::size_t rank : wrong) sum += rank;
  return sum;
}

template <FloatingElement T>
void check_all(const Strategy& settings) {
  std::size_t turn = 0;
  for (const int from : many_worlds) {
    for (const std::size_t count : {std::size_t{0}, std::size_t{1}, std::size_t{6}, std::size_t{7},
                                    std::size_t{997}, std::size_t{1000}}) {
      for (const Shape& shape : shapes(count)) {
        // Strategies and ties go round, so that every pair of worlds sees them all.
        ++turn;
        const bool tied = turn % 2 == 0;
        Strategy saving = strategies()[turn % 4];
        saving.lease = settings.lease;
        SimulatedDisk disk;
        save_by<T>(from, saving, shape, tied, disk);
        for (const int to : many_worlds) {
          Strategy loading = strategies()[++turn % 4];
          loading.lease = settings.lease;
          INFO(from << " ranks (" << saving.name() << ") to " << to << " (" << loading.name()
                    << "), " << count << " elements, " << shape.name << (tied ? ", tied" : ""));
          CHECK(differences_at<T>(to, loading, shape, tied, disk) == 0);
        }
      }
    }
  }
}

}  // namespace

TEST_CASE("any number of ranks loads what any other has saved: fp32") {
  check_all<float>(Strategy::zero3());
}

TEST_CASE("any number of ranks loads what any other has saved: bf16 leases of fp32 masters") {
  Strategy strategy = Strategy::zero3();
  strategy.lease = DType::bf16;
  check_all<float>(strategy);
}

TEST_CASE("any number of ranks loads what any other has saved: bf16 storage") {
  for (const int from : {1, 3, 4}) {
    for (const int to : {1, 2, 7}) {
      const Shape shape = shapes(997)[1];
      SimulatedDisk disk;
      save_by<bf16>(from, Strategy::zero3(), shape, false, disk);
      CHECK(differences_at<bf16>(to, Strategy::zero1(), shape, false, disk) == 0);
    }
  }
}

TEST_CASE("groups that hold copies write each element once, and load from anybody") {
  const Shape shape = shapes(997)[1];
  const std::pair<int, int> hybrids[] = {{2, 1}, {4, 2}, {8, 2}, {8, 4}, {4, 1}, {4, 4}};
  for (const auto& [from, group] : hybrids) {
    for (const bool bf16_leases : {false, true}) {
      Strategy strategy = Strategy::hybrid(group);
      if (bf16_leases) strategy.lease = DType::bf16;
      SimulatedDisk disk;
      save_by<float>(from, strategy, shape, true, disk);
      for (const auto& [to, other] : hybrids) {
        INFO(from << " in groups of " << group << " to " << to << " in groups of " << other);
        CHECK(differences_at<float>(to, Strategy::hybrid(other), shape, true, disk) == 0);
      }
      CHECK(differences_at<float>(3, Strategy::zero3(), shape, true, disk) == 0);
    }
  }
}

TEST_CASE("parameters in the host's own memory are saved and loaded as others are") {
  // Beside crumbs, a tensor whose pages move.
  const Shape shape{
      "", {{{"embedding", {997, 3}}, {"none", {0, 4}}, {"w", {300, 100}}}, {{"b", {70}}}}};
  std::vector<Strategy> all = strategies();
  all.push_back(Strategy::hybrid(1));
  for (const int from : {1, 2, 7}) {
    for (const Strategy& saving : all) {
      SimulatedDisk disk;
      save_by<float>(from, saving, shape, true, disk, true);
      for (const Strategy& loading : all) {
        INFO(saving.name() << " by " << from << " to " << loading.name());
        CHECK(differences_at<float>(4, loading, shape, true, disk, true) == 0);
        CHECK(differences_at<float>(3, loading, shape, true, disk) == 0);
      }
    }
  }
}

TEST_CASE("M - 1 elements: the last rank has none, and every byte is written once") {
  for (const int world : many_worlds) {
    for (const Strategy& strategy : strategies()) {
      const auto count = static_cast<std::size_t>(world) - 1;
      SimulatedDisk disk;
      save_by<float>(world, strategy, {"", {{{"w", {count, Layout::alignment}}}}}, false, disk);
      std::size_t bytes = 0;
      std::size_t headers = 0;
      for (const auto& [path, content] : disk.files()) {
        if (!path.ends_with(".safetensors")) continue;
        bytes += content.size();
        std::size_t header = 8;
        for (std::size_t i = 0; i < 8; ++i) {
          header += std::to_integer<std::size_t>(content[i]) << (8 * i);
        }
        headers += header;
      }
      CHECK(bytes - headers == count * Layout::alignment * 3 * sizeof(float));
      for (const int to : many_worlds) {
        CHECK(differences_at<float>(to, strategy, {"", {{{"w", {count, Layout::alignment}}}}},
                                    false, disk) == 0);
      }
    }
  }
}

TEST_CASE("a rank reads each chunk that it needs once, and no other") {
  SimulatedDisk disk;
  const Shape shape{"", {{{"w", {100000}}}, {{"v", {30000}}}}};
  save_by<float>(4, Strategy::zero3(), shape, false, disk);
  std::size_t bytes = 0;
  for (const auto& [path, content] : disk.files()) {
    if (path.ends_with(".safetensors")) bytes += content.size();
  }
  std::atomic<std::size_t> reads{0};
  HookedFiles hooked(disk, [&](const FileCall& call) -> Instead {
    if (call.name == "read" && call.path.ends_with(".safetensors")) ++reads;
    return {};
  });
  CHECK(differences_at<float>(3, Strategy::zero3(), shape, false, hooked) == 0);
  // Chunks on the borders of shards are read by two ranks.
  const std::size_t chunks = bytes / 1024 + 4;
  CHECK(reads >= chunks - 4);
  CHECK(reads <= chunks + 2 * 2 * 3 * 2);
}

}  // namespace shardwise::test
