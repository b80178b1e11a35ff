#pragma once

#include <cuda_runtime_api.h>

#include <concepts>
#include <cstddef>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "../core/error.hpp"
#include "../device/cuda_error.hpp"
#include "communicator.hpp"
#include "nccl_communicator.hpp"
#include "nccl_options.hpp"
#include "rank_failures.hpp"
#include "rendezvous.hpp"

namespace shardwise::inline v0_1 {

/// Runs f(communicator) on `size` threads, rank r with device r as its current one, and waits for
/// all of them. A rank that throws aborts the group: its peers get PeerFailed, and run_cuda_ranks
/// rethrows the first rank's own exception. A rank that returns has left the group. BackendError
/// where there are fewer devices.
template <class F>
requires std::invocable<F&, Communicator&>
void run_cuda_ranks(int size, F&& f, const NcclOptions& options = {}) {
  static_assert(std::same_as<std::invoke_result_t<F&, Communicator&>, void>,
                "run_cuda_ranks: the function must return void; hand results out by captures");
  int devices = 0;
  cuda_check(cudaGetDeviceCount(&devices), "cudaGetDeviceCount");
  if (size > devices) {
    raise<BackendError>("{} ranks need a CUDA device each, and there are {}", size, devices);
  }
  const std::vector<std::shared_ptr<Rendezvous>> meeting = LocalRendezvous::make(size);
  detail::RankFailures failures(size);
  const auto run = [&](std::size_t r) {
    try {
      cuda_check(cudaSetDevice(static_cast<int>(r)), "cudaSetDevice");
      NcclCommunicator communicator(meeting[r], options);
      f(static_cast<Communicator&>(communicator));
    } catch (...) {
      const auto rank = static_cast<int>(r);
      failures.add(rank, [&](const char* message) { meeting[r]->fail({rank, message}); });
    }
  };
  std::vector<std::thread> threads;
  try {
    threads.reserve(meeting.size());
    for (std::size_t r = 0; r < meeting.size(); ++r) threads.emplace_back(run, r);
  } catch (const std::exception& error) {
    meeting.back()->fail({size - 1, error.what()});
    for (std::thread& thread : threads) thread.join();
    throw;
  }
  for (std::thread& thread : threads) thread.join();
  const auto first = meeting.front()->failure();
  failures.rethrow(first ? first->rank : -1);
}

}  // namespace shardwise::inline v0_1
