#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <shardwise/checkpoint.hpp>
#include <shardwise/checkpoint/checksum.hpp>
#include <span>
#include <string>
#include <vector>

#include "saving.hpp"
#include "temporary_folder.hpp"

// Ratios within one run, of what both do to one disk in turn.

namespace shardwise::test {
namespace {

using Clock = std::chrono::steady_clock;

// 192 MiB with the optimizer's values.
constexpr std::size_t elements = std::size_t{16} << 20;
constexpr std::size_t state_bytes = elements * 3 * sizeof(float);
const std::vector<std::vector<TensorSpec>> layers{{{"w", {elements}}}};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

template <class F>
double seconds(const F& f) {
  const auto begin = Clock::now();
  f();
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// Bytes, of /proc/self/status.
std::size_t memory(const std::string& line) {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    std::size_t kilobytes = 0;
    if (word == line + ':' && status >> kilobytes) return kilobytes << 10;
  }
  return 0;
}
// Peak of the memory that f() takes beyond what there was.
template <class F>
std::size_t extra_memory(const F& f) {
  std::ofstream("/proc/self/clear_refs") << 5 << std::flush;
  const std::size_t before = memory("VmRSS");
  f();
  return memory("VmHWM") - before;
}

// What checksums add to a pass over the state that copies it chunk by chunk, as a write does.
double checksum_seconds() {
  constexpr std::size_t chunk = std::size_t{4} << 20;
  const std::vector<float> values(state_bytes / sizeof(float), 1.5f);
  const auto bytes = std::as_bytes(std::span(values));
  std::vector<std::byte> pages(chunk);
  std::uint64_t sink = 0;
  double fastest[2] = {1e9, 1e9};  // without, with
  for (int turn = 0; turn < 10; ++turn) {
    double& best = fastest[turn % 2];
    best = std::min(best, seconds([&] {
                      for (std::size_t at = 0; at < bytes.size(); at += chunk) {
                        if (turn % 2 == 1) sink += detail::checksum(bytes.subspan(at, chunk));
                        std::memcpy(pages.data(), bytes.data() + at, chunk);
                        sink += std::to_integer<std::uint64_t>(pages[sink % chunk]);
                      }
                    }));
  }
  CHECK(sink != 0);
  return fastest[1] - fastest[0];
}

}  // namespace

TEST_CASE("a save takes little longer than dd conv=fsync, and its checksums little of that") {
  constexpr int ranks = 2;
  std::vector<double> saves;
  std::vector<double> copies;
  std::vector<double> stalls;
  const TemporaryFolder temporary;
  run_ranks(ranks, [&](Communicator& comm) {
    SavedModel<float> model(comm, Strategy::zero3(), layers);
    model.fill(1);
    const bool leads = comm.rank() == 0;
    CheckpointFolder saving(temporary.name() + "/saves");
    for (std::uint64_t turn = 0; turn < 7; ++turn) {
      const double save = seconds([&] { saving.save(model.training, 2 * turn); });
      SaveHandle handle;
      const double stall =
          seconds([&] { handle = saving.save_async(model.training, 2 * turn + 1); });
      handle.finish();
      if (leads) {
        saves.push_back(save);
        stalls.push_back(stall);
        std::filesystem::remove_all(temporary.path() / "saves");
        const std::string file = temporary.name() + "/copy";
        const std::string line =
            "dd if=/dev/zero of=" + file +
            " bs=4M conv=fsync status=none count=" + std::to_string(state_bytes >> 22);
        copies.push_back(seconds([&] {
          if (std::system(line.c_str()) != 0) std::abort();
        }));
        std::filesystem::remove(file);
      }
      barrier(comm);
    }
  });
  const double sums = checksum_seconds() / ranks;
  const double save = median(saves);
  const double copy = median(copies);
  const double megabytes = static_cast<double>(state_bytes) / 1e6;
  std::printf(
      "%.0f MB by %d ranks: save %.0f MB/s, dd conv=fsync %.0f MB/s, ratio %.2f; checksums %.1f %% "
      "of a save; asynchronous: stalls %.0f %% of a save\n",
      megabytes, ranks, megabytes / save, megabytes / copy, copy / save, 100 * sums / save,
      100 * median(stalls) / save);
  CHECK(copy / save >= 0.8);
  CHECK(sums / save < 0.05);
}

TEST_CASE("a save and a load take 64 MiB beside the state, an asynchronous save one shard more") {
  const TemporaryFolder temporary;
  SelfCommunicator self;
  SavedModel<float> model(self, Strategy::zero3(), layers);
  model.fill(1);
  CheckpointFolder folder(temporary.name());
  constexpr std::size_t slack = std::size_t{64} << 20;
  const std::size_t save = extra_memory([&] { folder.save(model.training, 1); });
  const std::size_t async = extra_memory([&] { folder.save_async(model.training, 2).finish(); });
  const std::size_t load = extra_memory([&] { static_cast<void>(folder.load(model.training)); });
  std::printf("state of %zu MiB: save takes %zu MiB, asynchronous %zu MiB, load %zu MiB\n",
              state_bytes >> 20, save >> 20, async >> 20, load >> 20);
  CHECK(save < slack);
  CHECK(async < state_bytes + slack);
  CHECK(async > state_bytes / 2);  // the measurement works
  CHECK(load < slack);
}

}  // namespace shardwise::test
