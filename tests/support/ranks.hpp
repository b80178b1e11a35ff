#pragma once

#include <cstddef>
#include <memory>
#include <shardwise/comm/thread.hpp>
#include <utility>
#include <vector>

#ifdef SHARDWISE_TEST_CUDA
#include <cuda_runtime_api.h>

#include <catch2/catch_test_macros.hpp>
#include <shardwise/comm/nccl.hpp>

#include "process_ranks.hpp"
#else
#include <shardwise/comm/self.hpp>
#endif

namespace shardwise::test {

/// What f(communicator) gave on each of the `world` ranks of run(body): assertions belong to the
/// main thread.
template <class Run, class F>
auto collect(int world, const Run& run, F&& f) {
  using Result = decltype(f(std::declval<Communicator&>()));
  std::vector<Result> results(static_cast<std::size_t>(world));
  run([&](Communicator& communicator) {
    results[static_cast<std::size_t>(communicator.rank())] = f(communicator);
  });
  return results;
}

/// Runs f(communicator) on `world` ranks of the CPU and returns what each gave.
template <class F>
auto on_threads(int world, F&& f, const ThreadOptions& options = {}) {
  return collect(
      world, [&](auto&& body) { run_ranks(world, body, options); }, std::forward<F>(f));
}

#ifdef SHARDWISE_TEST_CUDA

inline constexpr int largest_world = 8;
using RankOptions = NcclOptions;

/// Skips the rest of the test where there are fewer devices. run_on_ranks does it itself; first
/// where it is called within an assertion.
inline void need_devices(int wanted) {
  int devices = 0;
  const cudaError_t status = cudaGetDeviceCount(&devices);
  if (status == cudaSuccess && devices >= wanted) return;
  SKIP("needs " << wanted << " CUDA device(s), found " << devices << " ("
                << cudaGetErrorString(status) << ')');
}

/// Calls that differ between ranks are found, as they always are between threads. The host waits
/// before each call then, which hides wrong orders.
[[nodiscard]] inline RankOptions checked() { return {.checked = true}; }

/// A world of this thread and its device alone.
[[nodiscard]] inline std::unique_ptr<Communicator> communicator_of_one() {
  need_devices(1);
  return std::make_unique<NcclCommunicator>(LocalRendezvous::make(1)[0]);
}

/// Runs f(communicator) on `world` ranks, one thread a device.
template <class F>
void run_on_ranks(int world, F&& f, const RankOptions& options = {}) {
  need_devices(world);
  run_cuda_ranks(world, std::forward<F>(f), options);
}

#else

inline constexpr int largest_world = 7;
using RankOptions = ThreadOptions;

inline void need_devices(int /*wanted*/) {}

[[nodiscard]] inline std::unique_ptr<Communicator> communicator_of_one() {
  return std::make_unique<SelfCommunicator>();
}

/// Runs f(communicator) on `world` rank threads.
template <class F>
void run_on_ranks(int world, F&& f, const RankOptions& options = {}) {
  run_ranks(world, std::forward<F>(f), options);
}
[[nodiscard]] inline RankOptions checked() { return {}; }  // they are

#endif

/// The worlds over which every behaviour is tested; that of the processes where ranks are such.
inline const std::vector<int> worlds = [] {
#ifdef SHARDWISE_TEST_CUDA
  if (const auto* const processes = ProcessRanks::of_this_run()) {
    return std::vector<int>{processes->size()};
  }
#endif
  return std::vector<int>{1, 2, 3, 4, largest_world};
}();

/// run_on_ranks, and what f gave on each. Where this process is one rank of `world`, what f gave
/// there takes the place of what it gave on that rank's thread: all must fit together.
template <class F>
auto on_ranks(int world, F&& f, const RankOptions& options = {}) {
  auto results = collect(
      world, [&](auto&& body) { run_on_ranks(world, body, options); }, f);
#ifdef SHARDWISE_TEST_CUDA
  auto* const processes = ProcessRanks::of_this_run();
  if (processes != nullptr && processes->size() == world) {
    results[static_cast<std::size_t>(processes->rank())] = processes->run(f, options);
  }
#endif
  return results;
}

}  // namespace shardwise::test
